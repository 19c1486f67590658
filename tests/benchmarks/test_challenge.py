"""The clock of a record attempt stops at the first kNN accuracy that reaches the target."""

from __future__ import annotations

import pytest
import torch

from benchmarks.challenge import measure
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from tests.helpers import tiny

CPU = torch.device("cpu")
CONFIG = {"model": {"backbone": "resnet10"}, "train": {"batch_size": 256, "epochs": 2, "knn_every": 1}}


@pytest.mark.parametrize(("target", "evaluated"), [(0.01, 1), (1.0, 2)])
def test_the_clock_stops_at_the_target_or_at_the_end(target: float, evaluated: int, digits: Dataset) -> None:
    found = measure(tiny(**CONFIG), digits, CPU, target)
    assert found["reached"] == (target < 1)
    assert len(found["accuracies"]) == evaluated
    assert 0 < found["seconds"] == found["accuracies"][-1]["seconds"]
    assert set(found["test"]) >= {"knn_k10_top1", "knn_top1"}


def test_a_run_without_accuracies_on_validation_is_refused(digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"set train\.knn_every and data\.val_fraction"):
        measure(tiny(train={"knn_every": 0}), digits, CPU, 0.9)
