"""Candidates of a search for a better recipe have equal costs, and a stopped one goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import recipes
from simclr.data.dataset import open_dataset
from simclr.train.loop import count_steps
from simclr.train.step import Training, train_step
from tests.helpers import tiny

CPU = torch.device("cpu")
CONFIG = tiny(data={"dataset": "digits", "limit": 200}, train={"batch_size": 32, "checkpoint_minutes": 1e-9})


def test_dearer_steps_are_fewer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipes, "home", lambda: tmp_path)
    monkeypatch.setattr(recipes, "relative_cost", lambda *_: 2.5)
    found: dict[str, Any] = {"epochs": 1}
    recipes.run(found, CONFIG, CONFIG, tmp_path / "run", lambda: None)
    steps = count_steps(CONFIG, open_dataset(CONFIG.data, tmp_path)).per_epoch
    assert found["steps"] == round(steps / 2.5)
    assert 0 < found["linear"] <= 100
    assert 0 < found["knn"] <= 100


def test_a_stopped_candidate_ends_in_the_same_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = open_dataset(CONFIG.data, tmp_path)
    whole = recipes.train(CONFIG, data, CPU, tmp_path / "whole", 3)

    def stopping(training: Training, images: Tensor, labels: Tensor) -> Tensor:
        if training.step == 2:
            raise KeyboardInterrupt
        return train_step(training, images, labels)

    monkeypatch.setattr(recipes, "train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        recipes.train(CONFIG, data, CPU, tmp_path / "stopped", 3)
    monkeypatch.setattr(recipes, "train_step", train_step)
    resumed = recipes.train(CONFIG, data, CPU, tmp_path / "stopped", 3)
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name
