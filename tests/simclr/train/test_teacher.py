"""A fine-tuned network is kept in a file, and teaches the network that `distill` trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simclr.config import Config, to_toml
from simclr.data.dataset import Dataset
from simclr.data.source import UNLABELLED
from simclr.model import check_finite
from simclr.train.step import start_training, train_step
from simclr.train.teacher import load_teacher
from simclr.weights.checkpoint import save_weights
from tests.helpers import subject_of, tiny
from tests.simclr.train.helpers import keep_teacher
from tests.simclr.weights.helpers import error_of

CPU = torch.device("cpu")


def distilling(path: Path, weight: float = 1.0, **model: Any) -> Config:
    settings = {"teacher": str(path), "weight": weight}
    return tiny(method="distill", distill=settings, model={"out_dim": 10} | model)


@pytest.mark.parametrize(("kind", "layer"), [("linear", "head.1"), ("mlp", "h")])
def test_a_kept_network_gives_the_same_scores(kind: str, layer: str, digits: Dataset, tmp_path: Path) -> None:
    classifier = keep_teacher(tmp_path / "kept.safetensors", digits, kind=kind, layer=layer)
    teacher, classes, _ = load_teacher(str(tmp_path / "kept.safetensors"))
    images = torch.from_numpy(digits.images[:8]).float() / 255
    assert tuple(classes) == digits.classes
    torch.testing.assert_close(teacher(images), classifier(images))


def test_the_teacher_is_not_trained_and_ignores_the_batch(digits: Dataset, tmp_path: Path) -> None:
    keep_teacher(tmp_path / "kept.safetensors", digits)
    config = distilling(tmp_path / "kept.safetensors")
    training = start_training(config, digits, CPU)
    method: Any = training.method
    before = {name: tensor.clone() for name, tensor in method.teacher.state_dict().items()}
    rows = digits.parts["pretrain"][:256]
    report = train_step(training, torch.from_numpy(digits.images[rows]), torch.from_numpy(digits.labels[rows]))
    check_finite(report.view(1, -1))
    assert all(torch.equal(before[name], tensor) for name, tensor in method.teacher.state_dict().items())
    views = torch.rand(2, 4, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(method.embed(views)[2:, :2], method.embed(views[:, :2])[2:], atol=1e-5)


def test_a_teacher_that_can_not_be_used_is_refused(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    message = f"there is no fine-tuned network in {path}"
    assert message in error_of(start_training, distilling(path), digits, CPU)
    assert "set distill.teacher to its run" in error_of(start_training, tiny(method="distill"), digits, CPU)
    keep_teacher(path, digits, classes=7)
    message = "the teacher knows 7 classes, but the network has 10 outputs: set model.out_dim to 7"
    assert message in error_of(start_training, distilling(path), digits, CPU)
    digest = load_teacher(str(path))[2]
    keep_teacher(path, digits)
    assert "has changed" in error_of(load_teacher, f"{path}@{digest}")
    subject = subject_of(digits)
    save_weights(path, subject.model, {"config": to_toml(subject.config), "digest": ""})
    assert "holds no fine-tuned network" in error_of(load_teacher, str(path))


def test_labels_are_only_learned_if_they_are_there_and_mean_what_the_teacher_says(
    digits: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "kept.safetensors"
    keep_teacher(path, digits)
    bare = replace(digits, labels=np.full_like(digits.labels, UNLABELLED), classes=())
    others = replace(digits, classes=tuple(reversed(digits.classes)))
    start_training(distilling(path, 0.5), digits, CPU)
    for data, message in ((bare, "no training image has one"), (others, "the teacher knows other classes")):
        start_training(distilling(path), data, CPU)
        error = error_of(start_training, distilling(path, 0.5), data, CPU)
        assert message in error
        assert error.startswith("distill.weight = 0.5 also learns from labels")
        assert error.endswith("set it to 1")


def test_a_student_without_batch_norm_may_learn_from_a_resnet_in_groups_of_one(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    keep_teacher(path, digits)
    vit = {"backbone": "vit_tiny_4", "head": "linear", "width": 1.0, "stem": "imagenet", "out_dim": 10}
    config = tiny(method="distill", distill={"teacher": str(path)}, model=vit, train={"norm_batch": 1})
    assert start_training(config, digits, CPU).step == 0


def test_a_checkpoint_leaves_the_teacher_to_its_file(digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    keep_teacher(path, digits)
    training = start_training(distilling(path), digits, CPU)
    state = training.state()
    assert "method" not in state
    method: Any = training.method
    earlier = {f"teacher.{name}": 2 * tensor for name, tensor in method.teacher.state_dict().items()}
    for own in ({}, earlier):  # earlier versions kept it
        training.load(state | {"method": own})
    assert all(torch.equal(earlier[f"teacher.{name}"], t) for name, t in method.teacher.state_dict().items())
