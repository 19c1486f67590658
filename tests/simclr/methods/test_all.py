"""What every method must do: split its batch, resume, compute in 16 bits, and take the memory that was planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from simclr.config import Config, make
from simclr.data.dataset import Dataset, open_dataset
from simclr.data.source import UNLABELLED
from simclr.errors import UserError
from simclr.methods import METHODS
from simclr.settings import merge
from simclr.train.loop import Interrupted, batch_rows, pretrain
from simclr.train.step import start_training, train_step
from simclr.train.teacher import FILE
from simclr.weights import checkpoint
from tests.helpers import tiny
from tests.simclr.train.helpers import Watch, assert_predicted, keep_teacher, same_weights

CPU = torch.device("cpu")
LIMIT = 128
FOUR = {"views": 4}
MULTI_CROP = {"local": {"count": 3, "size": 8, "scale": [0.1, 0.3]}}
MORE_VIEWS = [
    ("simclr", "fused", FOUR),
    ("moco", "fused", FOUR),
    ("simclr", "split", MULTI_CROP),
    ("vicreg", "fused", MULTI_CROP),
]
SMALL: dict[str, dict[str, object]] = {
    "moco": {"queue": 100},
    "byol": {"hidden_dim": 32},
    "simsiam": {"hidden_dim": 8},
    "distill": {},  # whose teacher is made below
}


@pytest.fixture(scope="module", autouse=True)
def teacher(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> None:
    """A fine-tuned network that knows as many classes as the network has outputs."""
    path = tmp_path_factory.mktemp("teacher") / FILE
    keep_teacher(path, digits, classes=tiny().model.out_dim, layer="h")
    SMALL["distill"]["teacher"] = str(path)


@pytest.fixture(scope="module")
def few(home: Path) -> Dataset:
    """The digits with only a few images to pre-train on."""
    return open_dataset(tiny(data={"limit": LIMIT}).data, home)


def config_of(method: str, stem: str = "stride2", augment: Mapping[str, Any] | None = None, **train: object) -> Config:
    own = {method: SMALL[method]} if method in SMALL else {}
    settings = {"batch_size": 64, "precision": "fp32"} | train
    model = {"backbone": "resnet10", "stem": stem}
    return tiny(method=method, model=model, data={"limit": LIMIT}, train=settings, augment=augment or {}, **own)


@pytest.mark.parametrize(
    ("method", "views", "augment"),
    [*((method, "fused", {}) for method in METHODS), ("byol", "split", {"views": 3}), *MORE_VIEWS],
)
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    method: str, views: str, augment: Mapping[str, Any], few: Dataset
) -> None:
    trained = []
    for size in (32, 8):
        config = config_of(method, batch_size=32, micro_batch=size, norm_batch=8, views=views, augment=augment)
        training = start_training(config, few, CPU)
        training.method.double()
        for rows in islice(batch_rows(training.config, few), 2):
            train_step(training, torch.from_numpy(few.images)[rows], torch.from_numpy(few.labels)[rows])
        trained.append(training.method.state_dict())
    for name, whole in trained[0].items():
        torch.testing.assert_close(trained[1][name], whole, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    ("method", "augment"), [*((method, {}) for method in METHODS), ("simclr", FOUR), ("vicreg", MULTI_CROP)]
)
def test_the_gpu_computes_what_the_cpu_does(method: str, augment: Mapping[str, Any], few: Dataset) -> None:
    """In float64, so that only the views, which are made in float32, are rounded differently."""
    reports, weights = [], []
    for device in (CPU, torch.device("cuda")):
        training = start_training(config_of(method, augment=augment, batch_size=32, norm_batch=8), few, device)
        training.method.double()
        images, labels = torch.from_numpy(few.images).to(device), torch.from_numpy(few.labels).to(device)
        batches = islice(batch_rows(training.config, few), 3)
        reports.append(torch.stack([train_step(training, images[rows], labels[rows]).cpu() for rows in batches]))
        weights.append(torch.cat([weight.flatten().cpu() for weight in training.method.parameters()]))
    torch.testing.assert_close(reports[1], reports[0], rtol=1e-3, atol=1e-5)
    assert (weights[1] - weights[0]).norm() < 1e-3 * weights[0].norm()


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_resumes_to_the_same_bits(method: str, few: Dataset, tmp_path: Path) -> None:
    watch = Watch()
    whole = pretrain(config_of(method), few, CPU, tmp_path / "whole", watch)
    with pytest.raises(Interrupted):
        pretrain(config_of(method), few, CPU, tmp_path / "parts", Watch(stop_after=3))
    parts = pretrain(config_of(method), few, CPU, tmp_path / "parts", resume=True)
    assert same_weights(whole, parts)
    states = [checkpoint.latest(tmp_path / name).get("method", {}) for name in ("whole", "parts")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    logged = {name for name in watch.history[-1][1] if name.startswith("train/")} - {"train/loss"}
    assert logged == {"train/learning_rate"} | {f"train/{name}" for name in METHODS[method].figures}


@pytest.mark.parametrize(
    ("method", "augment"), [*((method, {}) for method in METHODS), ("simclr", FOUR), ("simclr", MULTI_CROP)]
)
def test_its_memory_is_predicted(method: str, augment: Mapping[str, Any]) -> None:
    sizes = dict.fromkeys(("batch_size", "micro_batch", "norm_batch"), 64)
    assert_predicted(config_of(method, stem="cifar", augment=augment, **sizes), 64)


def test_a_run_with_more_views_and_local_crops_resumes_to_the_same_bits(few: Dataset, tmp_path: Path) -> None:
    config = config_of("simclr", augment=FOUR | MULTI_CROP, epochs=1, batch_size=32)
    whole = pretrain(config, few, CPU, tmp_path / "whole")
    with pytest.raises(Interrupted):
        pretrain(config, few, CPU, tmp_path / "parts", Watch(stop_after=2))
    assert same_weights(whole, pretrain(config, few, CPU, tmp_path / "parts", resume=True))


@pytest.mark.parametrize("method", METHODS)
def test_bf16_changes_little(method: str, few: Dataset) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        training = start_training(config_of(method, precision=precision), few, CPU)
        rows = next(batch_rows(training.config, few))
        report = train_step(training, torch.from_numpy(few.images)[rows], torch.from_numpy(few.labels)[rows])
        assert report.isfinite().all()
        losses.append(float(report[0]))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("method", ["supcon", "supervised"])
def test_missing_labels_are_refused(method: str, few: Dataset) -> None:
    labels = few.labels.copy()
    labels[few.parts["pretrain"][:3]] = UNLABELLED
    with pytest.raises(UserError, match=r"trains on labels, but 3 of the 128 training images have none"):
        start_training(config_of(method), replace(few, labels=labels), CPU)


def test_more_classes_than_outputs_are_refused(few: Dataset) -> None:
    config = make(merge(config_of("supervised").model_dump(), {"model": {"out_dim": 9}}))
    with pytest.raises(
        UserError, match=r"10 classes, but the network has only 9 outputs: set model.out_dim to 10 or more"
    ):
        start_training(config, few, CPU)


def test_some_methods_refuse_local_crops() -> None:
    refused = {name for name, kind in METHODS.items() if not kind.takes_local}
    assert refused == {"byol", "simsiam", "moco", "imix", "distill"}
    for name in refused:
        with pytest.raises(UserError, match=rf"method '{name}' takes whole views only: leave out augment.local"):
            config_of(name, augment=MULTI_CROP)


def test_a_network_without_the_batch_norm_of_a_published_head_is_remarked() -> None:
    remarks = {name: kind.remark(config_of(name).model) for name, kind in METHODS.items()}
    assert {name for name, text in remarks.items() if text} == {"byol", "simsiam", "barlow", "vicreg", "emp"}
    assert remarks["byol"].endswith("only after the head's hidden layers: add --set model.head_batch_norm=hidden")
    assert remarks["emp"] == remarks["byol"]
    assert remarks["simsiam"].endswith("after each layer of the head: add --set model.head_batch_norm=true")
    assert METHODS["byol"].remark(tiny(model={"head_batch_norm": True}).model) == remarks["byol"]
    for model in ({"head_batch_norm": "hidden"}, {"head": "none"}, {"head": "linear"}):  # no use in adding it
        assert not METHODS["byol"].remark(tiny(model=model).model)


def test_methods_have_keys_of_their_own() -> None:
    keys = {config_of(method).key() for method in METHODS}
    assert len(keys) == len(METHODS)
