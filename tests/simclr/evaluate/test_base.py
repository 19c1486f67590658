"""Accuracies, and the accuracy of guessing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from simclr.data.dataset import Dataset
from simclr.evaluate.base import accuracies, accuracy, are_unequal, balanced_accuracy
from simclr.evaluate.knn import Knn
from tests.helpers import subject_of


def test_accuracy_counts_labels_among_the_k_highest_scores() -> None:
    scores = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1]])
    assert accuracy(scores, torch.tensor([0, 0, 0])) == pytest.approx(1 / 3)
    assert accuracy(scores, torch.tensor([0, 0, 0]), 2) == pytest.approx(2 / 3)
    assert accuracy(scores, torch.tensor([0, 0, 0]), 5) == 1


def test_top_5_is_given_for_more_than_five_classes() -> None:
    y = torch.tensor([0, 1])
    assert set(accuracies(torch.eye(2), y, "x").metrics) == {"x_top1"}
    assert set(accuracies(torch.eye(2, 6), y, "x").metrics) == {"x_top1", "x_top5"}


def test_chance_is_the_share_of_the_most_common_classes(digits: Dataset) -> None:
    labels = digits.labels.copy()
    rows = digits.parts["test"]
    labels[rows] = 0
    labels[rows[:90]] = [i % 9 + 1 for i in range(90)]
    chance, images = Knn().chance(subject_of(replace(digits, labels=labels)))
    assert images == len(rows)
    assert chance["top1"] == pytest.approx((len(rows) - 90) / len(rows))
    assert chance["top5"] == pytest.approx((len(rows) - 50) / len(rows))


def test_balanced_accuracy_is_scikit_learns_and_is_given_for_unequal_classes() -> None:
    y = torch.tensor([0] * 12 + [1] * 5 + [3] * 3)  # no image of class 2
    predicted = torch.tensor([0, 1, 3])[torch.randint(3, (20,), generator=torch.Generator().manual_seed(0))]
    assert balanced_accuracy(predicted, y) == pytest.approx(balanced_accuracy_score(y, predicted))
    scores = torch.eye(4)[predicted]
    assert accuracies(scores, y, "x").metrics["x_balanced"] == pytest.approx(balanced_accuracy_score(y, predicted))
    assert not are_unequal(torch.tensor([0, 0, 0, 0, 1, 1]))
    assert are_unequal(torch.tensor([0, 0, 0, 0, 0, 1, 1]))
