"""The training loop: its order of images, metrics, checkpoints and resuming."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

from simclr import optim
from simclr.augment import AUGMENTATIONS
from simclr.build import build_model
from simclr.config import Config
from simclr.data.dataset import Dataset, open_dataset
from simclr.errors import RunFailed, UserError
from simclr.methods.ntxent import chance_loss
from simclr.settings import merge
from simclr.train import step
from simclr.train.cost import timed_steps
from simclr.train.loop import (
    Interrupted,
    batch_rows,
    count_steps,
    host_batches,
    load_batches,
    one_ahead,
    pretrain,
)
from simclr.train.step import start_training, train_step
from simclr.weights import checkpoint
from tests.helpers import tiny
from tests.simclr.train.helpers import Watch, same_weights

CPU = torch.device("cpu")
LIMIT = 260  # images to pre-train on, of which an epoch of batches of 64 leaves out 4


def short(**sections: object) -> Config:
    """A config of two epochs with four steps each."""
    small = {"model": {"backbone": "resnet10"}, "train": {"batch_size": 64}, "data": {"limit": LIMIT}}
    return tiny(**merge(small, sections))


LEARNING = short(
    train={"batch_size": 32, "epochs": 6, "precision": "auto"},
    optim={"lr": 3e-3},
    augment={"crop": {"scale": [0.8, 1.0]}, "color_jitter": {"p": 0.0}, "grayscale": {"p": 0.0}},
)


@pytest.fixture(scope="module")
def few(home: Path) -> Dataset:
    """The digits with only a few images to pre-train on."""
    return open_dataset(short().data, home)


def test_the_loss_falls_below_chance(few: Dataset, tmp_path: Path) -> None:
    watch = Watch()
    pretrain(LEARNING, few, CPU, tmp_path, watch)
    assert watch.losses[0] == pytest.approx(chance_loss(32), rel=0.1)
    assert watch.losses[-1] < chance_loss(32) - 1


def test_metrics_are_those_of_the_method_with_rate_and_speed(few: Dataset, tmp_path: Path) -> None:
    watch = Watch()
    pretrain(short(train={"epochs": 2, "knn_every": 2}), few, CPU, tmp_path, watch)
    logged = [step for step, metrics in watch.history if "train/loss" in metrics]
    assert logged == list(range(1, 9))
    train = {"train/loss", "train/contrastive_top1", "train/contrastive_top5", "train/learning_rate"}
    assert set(watch.history[0][1]) == train | {"perf/images_per_second"}
    assert [(step, set(metrics)) for step, metrics in watch.history if "train/loss" not in metrics] == [
        (8, {"val/knn_top1"})
    ]


def test_an_epoch_visits_no_image_twice_and_only_training_images(few: Dataset) -> None:
    steps = count_steps(short(), few)
    assert steps == (8, 4)
    rows = list(islice(batch_rows(short(), few), steps.total))
    epochs = [torch.cat(rows[:4]), torch.cat(rows[4:])]
    for epoch in epochs:
        assert len(epoch.unique()) == len(epoch) == 256
        assert set(epoch.tolist()) <= set(few.parts["pretrain"].tolist())
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("start", [1, 4, 6])
def test_a_later_start_gives_the_same_rows(start: int, few: Dataset) -> None:
    rows = islice(batch_rows(short(), few), start, start + 5)
    for whole, resumed in zip(rows, batch_rows(short(), few, start), strict=False):
        assert torch.equal(whole, resumed)


@pytest.mark.parametrize("images_on_device", [False, True])
def test_batches_are_the_images_and_labels_of_their_rows(images_on_device: bool, few: Dataset) -> None:
    images, labels = next(load_batches(short(), few, CPU, images_on_device, start=3))
    rows = next(batch_rows(short(), few, 3)).numpy()
    assert (images.numpy() == few.images[rows]).all()
    assert (labels.numpy() == few.labels[rows]).all()


def test_more_steps_than_the_names_of_checkpoints_can_number_are_an_error(few: Dataset) -> None:
    with pytest.raises(UserError, match=r"train\.epochs = 10000000 takes 1300000000 steps"):
        count_steps(short(train={"epochs": 10**7, "batch_size": 2}), few)


def test_a_batch_larger_than_the_data_is_an_error(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"train.batch_size = 4000 is larger than the 260 images .*: lower it, or add images"
    ):
        pretrain(tiny(train={"batch_size": 4000}), few, CPU, tmp_path)


def test_timing_steps_may_take_longer_than_the_run(few: Dataset) -> None:
    one = Dataset(**(vars(few) | {"parts": few.parts | {"pretrain": few.parts["pretrain"][:8]}}))
    assert timed_steps(short(train={"batch_size": 8, "epochs": 1}), one, CPU) > 0


RESUMABLE = {
    "adamw": short(train={"keep_every": 1}),
    "lars": short(optim={"name": "lars", "lr": 0.3, "warmup_epochs": 1}),
    "plateau": short(optim={"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.5, "lr": 1e-8}),
    "micro-batches": short(train={"micro_batch": 32, "norm_batch": 16}),
    "muon": short(optim={"name": "muon", "lr": 0.02, "momentum": 0.95}),
    "bf16": short(train={"precision": "bf16"}),
    "dropout": short(),
}


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_run_stopped_at_any_step_resumes_to_the_same_bits(
    name: str, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "dropout":

        def build_with_dropout(*arguments: object) -> nn.Module:
            network = build_model(*arguments)  # type: ignore[arg-type]
            network.head.append(nn.Dropout(0.5))
            return network

        monkeypatch.setattr(step, "build_model", build_with_dropout)
    config = RESUMABLE[name]
    whole = pretrain(config, few, CPU, tmp_path / "whole")
    first, second = sorted(random.Random(name).sample(range(1, count_steps(config, few).total), 2))
    for steps, resume in ((first, False), (second - first, True)):
        with pytest.raises(Interrupted) as stopped:
            pretrain(config, few, CPU, tmp_path / "parts", Watch(steps), resume=resume)
    assert stopped.value.step == second
    assert same_weights(whole, pretrain(config, few, CPU, tmp_path / "parts", resume=True))
    kept, same = (checkpoint.snapshots(tmp_path / folder) for folder in ("whole", "parts"))
    assert list(kept) == list(same) == ([1] if config.train.keep_every else [])
    for epoch, path in kept.items():
        (stated, weights, digest), (_, others, _) = map(checkpoint.load_weights, (path, same[epoch]))
        assert (stated, digest) == (config, few.identity)
        assert all(torch.equal(others[name], tensor) for name, tensor in weights.items())
        assert not all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in weights.items())


def test_all_metrics_are_reported_before_the_checkpoint_is_announced_and_saved(few: Dataset, tmp_path: Path) -> None:
    """A run that is killed after a checkpoint then has no gap in its curves when it is resumed."""

    class Saving(Watch):
        def saving(self, step: int) -> None:
            announced.append((step, self.history[-1][0], len(checkpoint.checkpoints(tmp_path))))

    announced: list[tuple[int, int, int]] = []
    pretrain(short(train={"checkpoint_minutes": 1e-9}), few, CPU, tmp_path, Saving())
    assert announced == [(step, step, min(step - 1, checkpoint.KEEP)) for step in range(1, 9)]


def test_the_same_config_gives_the_same_bits_and_a_different_seed_does_not(few: Dataset, tmp_path: Path) -> None:
    def train(folder: str, **sections: object) -> nn.Module:
        return pretrain(short(train={"epochs": 1}, **sections), few, CPU, tmp_path / folder)

    first = train("a")
    assert same_weights(first, train("b"))
    assert not same_weights(first, train("c", seed=1))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = optim.learning_rate
    monkeypatch.setattr(optim, "learning_rate", lambda *a: float("nan") if a[2] >= 3 else rate(*a))
    with pytest.raises(RunFailed, match=r"training diverged, with a .* by step [45]: lower optim.lr \(now 0\.001\)"):
        pretrain(short(train={"checkpoint_minutes": 1e-9}), few, CPU, tmp_path)
    state = checkpoint.latest(tmp_path)
    assert state["step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def test_batches_that_a_thread_collects_on_the_host_are_those_of_the_rows(few: Dataset) -> None:
    config = short()
    rows = batch_rows(config, few, 3)
    made = one_ahead(host_batches(torch.from_numpy(few.images), torch.from_numpy(few.labels), rows))
    for (images, labels), expected in zip(made, islice(load_batches(config, few, CPU, False, 3), 9), strict=False):
        assert torch.equal(images, expected[0])
        assert torch.equal(labels, expected[1])


def test_an_error_in_the_thread_that_collects_batches_ends_the_loop() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    made = one_ahead(items())
    assert next(made) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(made)


OWN_VIEWS = {name: {"p": 0.5} for name in AUGMENTATIONS if name != "auto_augment"}  # whose operations are torchvision's


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("images_on_device", [True, False])
@pytest.mark.parametrize("augment", [{}, OWN_VIEWS], ids=["default", "all"])
def test_no_step_waits_for_the_gpu(augment: dict[str, object], images_on_device: bool, few: Dataset) -> None:
    device = torch.device("cuda")
    training = start_training(short(augment=augment, train={"precision": "fp32"}), few, device)
    batches = load_batches(training.config, few, device, images_on_device)
    train_step(training, *next(batches))  # which creates the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images, labels in islice(batches, 3):
            train_step(training, images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_a_run_on_the_accelerator_learns_as_on_the_cpu_and_resumes(few: Dataset, tmp_path: Path) -> None:
    """The tolerance is for rounding: on a CPU, bfloat16 moves the mean loss of the last epoch by 0.16."""
    device = torch.accelerator.current_accelerator()
    assert device is not None
    in_float32 = LEARNING.model_copy(update={"train": LEARNING.train.model_copy(update={"precision": "fp32"})})
    reference, first, rest = Watch(), Watch(stop_after=29), Watch()
    pretrain(in_float32, few, CPU, tmp_path / "cpu", reference)
    with pytest.raises(Interrupted):
        pretrain(LEARNING, few, device, tmp_path / "parts", first)
    pretrain(LEARNING, few, device, tmp_path / "parts", rest, resume=True)
    assert [step for step, _ in first.history + rest.history] == [step for step, _ in reference.history]
    assert mean(reference.losses[-8:]) < chance_loss(32) - 1
    assert mean(rest.losses[-8:]) == pytest.approx(mean(reference.losses[-8:]), abs=0.4)
