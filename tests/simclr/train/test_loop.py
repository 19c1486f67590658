from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import weakref
from itertools import count
from pathlib import Path

import pytest
import torch

from simclr import optim
from simclr.build import build_model
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.errors import RunFailed, UserError
from simclr.methods.ntxent import chance_loss
from simclr.train.loop import Interrupted, batch_rows, count_steps, pretrain, stored_images
from simclr.train.step import Training, accumulate, begin, embed, train_step
from simclr.views import apply, draw, two_views
from simclr.weights import checkpoint
from tests.helpers import ROOT, tiny

CPU = torch.device("cpu")
ALL = slice(None)


def ignore(metrics: dict[str, float], step: int) -> None:
    pass


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_step_is_the_gradient_of_the_loss_written_out(digits: Dataset) -> None:
    config = tiny(optim={"name": "sgd", "momentum": 0.0, "lr": 0.1, "weight_decay": 0.0}, train={"batch_size": 8})
    training = begin(config, digits, CPU)
    reference = build_model(config, digits, CPU).train()
    images = stored_images(digits, CPU, False)[batch_rows(config, digits, count_steps(config, digits)[1], 0)]
    first, second = two_views(images, config.pipelines(), config.seed, 0)(ALL)
    z = torch.nn.functional.normalize(reference(torch.cat([first, second]))[1], dim=1)
    terms = []
    for i in range(16):
        others = torch.stack([z[i] @ z[k] for k in range(16) if k != i]) / 0.2
        terms.append(-(z[i] @ z[(i + 8) % 16] / 0.2 - others.exp().sum().log()))
    loss = torch.stack(terms).mean()
    loss.backward()
    report = train_step(training, images)
    assert report[0].item() == pytest.approx(loss.item(), rel=1e-5)
    for mine, theirs in zip(training.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_falls_below_chance(digits: Dataset, tmp_path: Path) -> None:
    losses: list[float] = []
    config = tiny(train={"epochs": 8, "batch_size": 64}, model={"width": 0.25}, augment={"crop": {"scale": [0.6, 1.0]}})
    pretrain(config, digits, CPU, tmp_path, lambda metrics, step: losses.append(metrics["train/loss"]))
    assert losses[0] == pytest.approx(chance_loss(64), rel=0.1)
    assert losses[-1] < chance_loss(64) - 0.5


def test_views_are_new_at_each_step_and_the_same_at_the_same_step(digits: Dataset) -> None:
    images, pipelines = stored_images(digits, CPU, False)[:4], tiny().pipelines()
    first, second = two_views(images, pipelines, 0, 7)(ALL)
    assert torch.equal(first, two_views(images, pipelines, 0, 7)(ALL)[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, two_views(images, pipelines, 0, 8)(ALL)[0])
    assert not torch.equal(first, two_views(images, pipelines, 1, 7)(ALL)[0])


@pytest.mark.parametrize("second", [{}, {"augment2": {"color_jitter": {"p": 0.0}, "noise": {"p": 0.5}}}])
def test_views_are_those_of_each_pipeline_by_itself(second: dict[str, object], digits: Dataset) -> None:
    images, pipelines = stored_images(digits, CPU, False)[:16], tiny(**second).pipelines()
    assert (pipelines[0] == pipelines[1]) == (not second)
    for view, made in enumerate(two_views(images, pipelines, 0, 7)(ALL)):
        assert torch.equal(made, apply(images, pipelines[view], draw(pipelines[view], 16, 0, 7, view)))


def test_an_epoch_visits_no_image_twice_and_only_training_images(digits: Dataset) -> None:
    config = tiny()
    total, per_epoch = count_steps(config, digits)
    assert total == 2 * per_epoch
    epochs = [
        torch.cat([batch_rows(config, digits, per_epoch, e * per_epoch + s) for s in range(per_epoch)]) for e in (0, 1)
    ]
    for rows in epochs:
        assert len(rows.unique()) == len(rows)
        assert set(rows.tolist()) <= set(digits.parts["pretrain"].tolist())
    assert not torch.equal(*epochs)


def test_fused_and_split_views_differ_only_by_batch_norm(digits: Dataset) -> None:
    def report(views: str, backbone: dict[str, object]) -> float:
        training = begin(tiny(train={"views": views, "batch_size": 16}, model=backbone), digits, CPU)
        return train_step(training, stored_images(digits, CPU, False)[:16])[0].item()

    assert report("fused", {}) != pytest.approx(report("split", {}), rel=1e-4)
    # Without batch norm (AlexNet-like networks have dropout, VGG too; evaluation mode of the norms stands in).
    training = [begin(tiny(train={"views": v, "batch_size": 16}), digits, CPU) for v in ("fused", "split")]
    losses = [train_step(_frozen_norms(t), stored_images(digits, CPU, False)[:16])[0].item() for t in training]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def _frozen_norms(training):  # type: ignore[no-untyped-def]
    training.model.eval()
    return training


def exact(digits: Dataset, network: dict[str, object] | None = None, **train: object) -> Training:
    """A training in float64, where what is equal but for the order of sums is equal to ten digits."""
    training = begin(tiny(train=train, model=network or {}, optim={"name": "sgd", "lr": 0.1}), digits, CPU)
    training.model.double()
    return training


def three_steps(training: Training, digits: Dataset) -> Training:
    images = stored_images(digits, CPU, False)
    size = training.config.train.batch_size
    for step in range(3):
        train_step(training, images[step * size : (step + 1) * size])
    return training


def equal(a: Training, b: Training) -> bool:
    """Weights and buffers, but for rounding."""
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in pairs)


@pytest.mark.parametrize("views", ["fused", "split"])
@pytest.mark.parametrize("micro_batch", [32, 16, 4])
def test_micro_batches_give_the_whole_batch_s_gradient(micro_batch: int, views: str, digits: Dataset) -> None:
    whole, parts = (
        exact(digits, batch_size=64, micro_batch=size, norm_batch=4, views=views) for size in (64, micro_batch)
    )
    for training in (whole, parts):
        training.model.eval()  # batch norm out of the way
        training.group = None
        accumulate(training, two_views(stored_images(digits, CPU, False)[:64], training.config.pipelines(), 0, 0))
    for mine, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-12)
    assert equal(three_steps(parts, digits), three_steps(whole, digits))
    assert not equal(parts, exact(digits, batch_size=64))  # they have moved


def test_a_batch_in_one_piece_goes_through_the_network_once(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    for size in (64, 16):
        training = exact(digits, batch_size=64, micro_batch=size, norm_batch=16)
        training.model.register_forward_pre_hook(lambda *_: passes.append(1))
        accumulate(training, two_views(stored_images(digits, CPU, False)[:64], training.config.pipelines(), 0, 0))
        assert len(passes) == {64: 4, 16: 8}[size]  # groups of 16: each once, or once without and once with a graph
        passes.clear()


NETWORKS: dict[str, dict[str, object]] = {
    "batch norm": {},
    "batch norm in the head": {"head_batch_norm": True},
    "dropout": {"backbone": "efficientnet_b0", "stem": "imagenet", "width": 1},  # stochastic depth
}


@pytest.mark.parametrize("network", NETWORKS)
def test_with_norm_batch_the_micro_batch_changes_nothing(network: str, digits: Dataset) -> None:
    def trained(micro_batch: int) -> Training:
        train = {"batch_size": 32, "micro_batch": micro_batch, "norm_batch": 8}
        return three_steps(exact(digits, NETWORKS[network], **train), digits)

    whole = trained(32)
    assert equal(trained(16), whole)
    assert equal(trained(8), whole)


def test_running_averages_are_updated_once_by_each_group(digits: Dataset) -> None:
    training = exact(digits, batch_size=32, micro_batch=8, norm_batch=8)
    before = next(m for m in training.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    three_steps(training, digits)
    assert before.num_batches_tracked == 3 * 4


def test_batch_norm_sees_its_group_and_a_key_says_so(digits: Dataset) -> None:
    whole, parts = exact(digits, batch_size=32), exact(digits, batch_size=32, norm_batch=16)
    assert not equal(three_steps(whole, digits), three_steps(parts, digits))
    assert whole.config.key() != parts.config.key()


def full_memory(monkeypatch: pytest.MonkeyPatch, limit: int, spared: int = 0) -> None:
    """More than `limit` images with a graph are out of memory, from the call after `spared` on."""
    calls, held = count(), []

    def within(model: torch.nn.Module, both: torch.Tensor, views: str) -> torch.Tensor:
        z = embed(model, both, views)  # type: ignore[arg-type]
        held[:] = [n for n in held if n() is not None]
        if torch.is_grad_enabled():
            held.append(weakref.ref(z))
            if next(calls) >= spared and len(held) * both.shape[1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return z

    monkeypatch.setattr("simclr.train.embed", within)


@pytest.mark.parametrize("spared", [0, 3])
def test_out_of_memory_halves_the_micro_batch_with_the_same_result(
    spared: int, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"batch_size": 32, "norm_batch": 4}
    whole = three_steps(exact(digits, **settings), digits)
    full_memory(monkeypatch, limit=8, spared=spared)
    limited = three_steps(exact(digits, **settings), digits)
    assert limited.micro_batch == 8
    assert equal(limited, whole)


def test_out_of_memory_is_an_error_where_a_smaller_micro_batch_would_change_the_result(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_memory(monkeypatch, limit=8)
    with pytest.raises(torch.OutOfMemoryError):
        three_steps(exact(digits, batch_size=32), digits)
    with pytest.raises(torch.OutOfMemoryError):
        three_steps(exact(digits, batch_size=32, norm_batch=16), digits)


def test_batch_norm_over_one_image_is_refused(digits: Dataset) -> None:
    with pytest.raises(
        UserError, match=r"batch norm needs 2 or more images, and train\.norm_batch = 1 leaves groups of 1"
    ):
        begin(tiny(train={"batch_size": 32, "norm_batch": 1}), digits, CPU)


def test_a_row_s_views_do_not_depend_on_the_rows_beside_it(digits: Dataset) -> None:
    views = two_views(stored_images(digits, CPU, False)[:16], tiny(augment={"noise": {"p": 0.5}}).pipelines(), 0, 7)
    for whole, part in zip(views(ALL), views(slice(5, 9)), strict=True):
        assert torch.equal(whole[5:9], part)


def test_a_batch_larger_than_the_data_is_refused(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size = 4000 is larger than the \d+ images"):
        pretrain(tiny(train={"batch_size": 4000}), digits, CPU, tmp_path, ignore)


RESUMABLE = {
    "adamw": tiny(),
    "lars": tiny(optim={"name": "lars", "lr": 0.3, "warmup_epochs": 1}),
    "plateau": tiny(optim={"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.5, "lr": 1e-8}),
    "micro-batches": tiny(train={"epochs": 1, "micro_batch": 64, "norm_batch": 32}),
    "muon": tiny(optim={"name": "muon", "lr": 0.02, "momentum": 0.95}),
    "bf16": tiny(train={"precision": "bf16"}),
    "dropout": tiny(model={"backbone": "mobilenet_v2", "stem": "imagenet", "width": 1}, train={"epochs": 1}),
}


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(name: str, digits: Dataset, tmp_path: Path) -> None:
    config = RESUMABLE[name]
    whole = pretrain(config, digits, CPU, tmp_path / "whole", ignore)
    total = count_steps(config, digits)[0]
    first, second = sorted(random.Random(name).sample(range(1, total), 2))
    for steps, resume in ((first, False), (second - first, True)):
        calls = count(steps, -1)  # down to 1 at the last of these steps
        with pytest.raises(Interrupted):
            pretrain(
                config,
                digits,
                CPU,
                tmp_path / "parts",
                ignore,
                resume=resume,
                stop=lambda c=calls: next(c) == 1,
            )
    parts = pretrain(config, digits, CPU, tmp_path / "parts", ignore, resume=True)
    assert same_weights(whole, parts)


def test_a_checkpoint_of_another_config_is_refused(digits: Dataset, tmp_path: Path) -> None:
    pretrain(tiny(train={"epochs": 1}), digits, CPU, tmp_path, ignore)
    with pytest.raises(UserError, match="another config"):
        pretrain(tiny(train={"epochs": 1}, loss={"temperature": 0.3}), digits, CPU, tmp_path, ignore, resume=True)


HARNESS = """
import sys, torch
from pathlib import Path
from tests.helpers import tiny
from simclr.data import open_dataset
from simclr.train import pretrain
from simclr.checkpoint import checkpoints, save_weights
torch.set_num_threads(1)
config, folder, home = tiny(train={"epochs": 12, "checkpoint_minutes": 1e-9}), Path(sys.argv[1]), Path(sys.argv[2])
"""
RUN = """
say = lambda metrics, step: print(step, flush=True)
model = pretrain(config, open_dataset(config.data, home), torch.device("cpu"), folder, say,
                 resume=bool(checkpoints(folder)))
save_weights(folder / "done.safetensors", model, {})
"""
DIE_WHILE_WRITING = """
import os, signal, simclr.checkpoint as c
whole = torch.save
def half(state, file):
    if state["step"] == 8:
        file.write(b"PK half a checkpoint"); file.flush(); os.kill(os.getpid(), signal.SIGKILL)
    whole(state, file)
c.torch.save = half
"""


def start(script: str, folder: Path, home: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(home)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_run_killed_at_random_steps_and_while_saving_ends_in_the_same_bits(
    digits: Dataset, home: Path, tmp_path: Path
) -> None:
    assert start(HARNESS + RUN, tmp_path / "whole", home).wait() == 0
    folder, luck = tmp_path / "killed", random.Random(0)
    assert start(HARNESS + DIE_WHILE_WRITING + RUN, folder, home).wait() == -signal.SIGKILL
    assert [p.name for p in checkpoint.checkpoints(folder)] == ["step-000000006.pt", "step-000000007.pt"]
    for _ in range(2):
        process = start(HARNESS + RUN, folder, home)
        assert process.stdout is not None
        process.stdout.readline()  # a step has been logged
        time.sleep(luck.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it had not come to its end
    assert start(HARNESS + RUN, folder, home).wait() == 0
    assert (folder / "done.safetensors").read_bytes() == (tmp_path / "whole" / "done.safetensors").read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(train={"checkpoint_minutes": 1e-9})
    rate = optim.learning_rate
    monkeypatch.setattr(optim, "learning_rate", lambda *a: float("nan") if a[2] >= 3 else rate(*a))
    with pytest.raises(RunFailed, match=r"training diverged, with a .* by step [45]: lower --lr"):
        pretrain(config, digits, CPU, tmp_path, ignore)
    state = checkpoint.latest(tmp_path)
    assert state is not None
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def test_the_same_config_gives_the_same_bits_and_another_seed_others(digits: Dataset, tmp_path: Path) -> None:
    def train(config: Config, folder: str) -> torch.nn.Module:
        return pretrain(config, digits, CPU, tmp_path / folder, ignore)

    one = tiny(train={"epochs": 1})
    assert same_weights(train(one, "a"), train(one, "b"))
    assert not same_weights(train(one, "c"), train(tiny(train={"epochs": 1}, seed=1), "d"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_a_run_on_the_accelerator_learns_and_resumes(digits: Dataset, tmp_path: Path) -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    losses: list[float] = []
    config = tiny(train={"epochs": 10, "precision": "auto"})
    pretrain(config, digits, device, tmp_path, lambda metrics, step: losses.append(metrics["train/loss"]))
    assert losses[-1] < losses[0] - 0.5
