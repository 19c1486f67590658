"""A method with state, layers and targets of its own needs nothing but its class and a line in METHODS."""

from __future__ import annotations

from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr.config import Config
from simclr.data.dataset import Dataset, open_dataset
from simclr.methods import METHODS
from simclr.methods.base import Method
from simclr.methods.simclr import LossConfig
from simclr.model import Network
from simclr.train.budget import Images, MemoryBudget, plan_memory
from simclr.train.loop import Interrupted, batch_rows, pretrain
from simclr.train.memory import predict
from simclr.train.step import start_training, train_step
from simclr.weights import checkpoint
from tests.helpers import tiny
from tests.simclr.train.helpers import Watch, assert_predicted, same_weights

CPU = torch.device("cpu")
LIMIT = 256


class Align(Method):
    """Predictions of each view approach a moving average's embedding of the other, as in BYOL but smaller."""

    section_name = "loss"
    section = LossConfig
    loss_label = "alignment loss"
    figures = ("images_seen", "labels_seen")

    def __init__(self, settings: Any, network: Network, *, fused: bool) -> None:
        super().__init__(settings, network, fused=fused)
        self.predictor = nn.Linear(16, 16)
        self.average = deepcopy(network).requires_grad_(False)
        self.register_buffer("images_seen", torch.zeros(()))
        self.labels: list[Tensor] = []

    def embed(self, views: Tensor) -> Tensor:
        online = [self.predictor(self.network(view)[1]) for view in views]
        with torch.no_grad():
            targets = [self.average(view)[1] for view in views.flip(0)]
        return torch.stack(online + targets)

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.labels.append(labels)
        online, targets = F.normalize(embeddings, dim=2).chunk(2)
        self.batch = embeddings.shape[1]
        figures = torch.stack([self.images_seen, (labels >= 0).sum().to(self.images_seen.dtype)])
        return (online - targets.detach()).square().sum(2).mean(), figures

    def after_step(self) -> None:
        self.images_seen += self.batch
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), self.network.parameters(), strict=True):
                average.lerp_(parameter, 0.1)


@pytest.fixture(scope="module")
def few(home: Path) -> Dataset:
    """The digits with only a few images to pre-train on."""
    return open_dataset(tiny(data={"limit": LIMIT}).data, home)


@pytest.fixture(autouse=True)
def align(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "align", Align)


def config_of(method: str = "align", stem: str = "stride2", **train: object) -> Config:
    settings = {"batch_size": 64, "precision": "fp32"} | train
    return tiny(method=method, model={"backbone": "resnet10", "stem": stem}, data={"limit": LIMIT}, train=settings)


def test_its_loss_and_figures_are_logged(few: Dataset, tmp_path: Path) -> None:
    watch = Watch()
    pretrain(config_of(epochs=1), few, CPU, tmp_path, watch)
    logged = {name for name in watch.history[-1][1] if name.startswith("train/")}
    assert logged == {"train/loss", "train/learning_rate", "train/images_seen", "train/labels_seen"}
    assert watch.history[1][1]["train/labels_seen"] == 64
    assert watch.losses[-1] < watch.losses[0]


def test_its_layers_are_trained_and_its_targets_are_not(few: Dataset) -> None:
    training = start_training(config_of(), few, CPU)
    before = deepcopy(training.method)
    rows = next(batch_rows(training.config, few))
    train_step(training, torch.from_numpy(few.images)[rows], torch.from_numpy(few.labels)[rows])
    method = training.method
    assert isinstance(method, Align)
    assert not torch.equal(method.predictor.weight, before.predictor.weight)
    assert torch.equal(method.labels[0], torch.from_numpy(few.labels)[rows])
    moved = zip(method.average.parameters(), before.average.parameters(), method.network.parameters(), strict=True)
    for after, start, parameter in moved:
        assert after.grad is None
        torch.testing.assert_close(after, start + 0.1 * (parameter - start))


def test_its_layers_start_from_the_seed(few: Dataset) -> None:
    first, again = (start_training(config_of(), few, CPU).method for _ in range(2))
    assert same_weights(first, again)


def test_micro_batches_give_the_gradient_of_the_whole_batch(few: Dataset) -> None:
    trained = []
    for size in (32, 8):
        training = start_training(config_of(batch_size=32, micro_batch=size, norm_batch=8), few, CPU)
        training.method.double()
        for rows in islice(batch_rows(training.config, few), 2):
            train_step(training, torch.from_numpy(few.images)[rows], torch.from_numpy(few.labels)[rows])
        trained.append(training.method.state_dict())
    for name, whole in trained[0].items():
        torch.testing.assert_close(trained[1][name], whole, rtol=1e-9, atol=1e-12, msg=name)


def test_a_stopped_run_resumes_to_the_same_bits(few: Dataset, tmp_path: Path) -> None:
    pretrain(config_of(), few, CPU, tmp_path / "whole")
    with pytest.raises(Interrupted):
        pretrain(config_of(), few, CPU, tmp_path / "parts", Watch(stop_after=3))
    pretrain(config_of(), few, CPU, tmp_path / "parts", resume=True)
    whole, parts = (checkpoint.latest(tmp_path / name) for name in ("whole", "parts"))
    assert whole["method"]["images_seen"] == whole["step"] * 64
    for part in ("model", "method"):
        assert whole[part].keys() == parts[part].keys()
        assert all(torch.equal(whole[part][name], parts[part][name]) for name in whole[part])


def test_only_a_method_with_state_has_an_entry_in_the_checkpoint(few: Dataset) -> None:
    entries = {name: start_training(config_of(name), few, CPU).state() for name in ("align", "simclr")}
    assert set(entries["align"]) - set(entries["simclr"]) == {"method"}
    assert not any(name.startswith("network.") for name in entries["align"]["method"])
    assert set(entries["align"]["model"]) == set(entries["simclr"]["model"])


def test_a_method_may_know_no_chance_level() -> None:
    assert Align.chance(LossConfig(), 64) == {}
    chance = METHODS["simclr"].chance(LossConfig(include_self=True), 2)
    assert chance == {
        "train/loss": pytest.approx(1.386, abs=1e-3),
        "train/contrastive_top1": 1 / 3,
        "train/contrastive_top5": 1.0,
    }


@pytest.mark.parametrize("micro_batch", [64, 32])
def test_its_memory_is_predicted(micro_batch: int) -> None:
    config = config_of(stem="cifar", micro_batch=micro_batch, norm_batch=micro_batch)
    without = config_of("simclr", stem="cifar", norm_batch=micro_batch)
    assert predict(config, micro_batch)["weights"] > 1.9 * predict(without, micro_batch)["weights"]
    assert_predicted(config, micro_batch)


def test_its_micro_batch_is_planned() -> None:
    config = config_of(micro_batch="auto", norm_batch=16)
    room = sum(predict(config, 32).values())
    assert plan_memory(config, Images(0), MemoryBudget(round(room / 0.95) + 1, {})).micro_batch == 32
