"""Few-shot classification against a plain form of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate.few_shot import FewShot, draw_shots
from tests.helpers import subject_of


def test_the_accuracy_is_that_of_the_nearest_mean_direction_over_the_same_draws(digits: Dataset) -> None:
    subject, settings = subject_of(digits), FewShot(shots=(1, 3), draws=4)
    outcome = settings.run(subject)
    (train, train_y), (test, test_y) = (tuple(x.numpy() for x in part) for part in (subject.train, subject.test))
    for shots in (1, 3):
        found = []
        for draw in range(4):
            rows = draw_shots(train_y, 3, 0, draw)[:, :shots]
            assert (train_y[rows] == np.arange(10)[:, None]).all()
            unit = train[rows] / np.linalg.norm(train[rows], axis=2, keepdims=True)
            peer = KNeighborsClassifier(1, metric="cosine").fit(unit.mean(1), np.arange(10))
            found.append(peer.score(test, test_y))
        assert outcome.samples[f"few_shot_{shots}_top1"] == pytest.approx(found, abs=0.003)  # an image, if it rounds
        assert outcome.metrics[f"few_shot_{shots}_top1"] == pytest.approx(np.mean(found), abs=0.003)
        assert outcome.metrics[f"few_shot_{shots}_std"] == pytest.approx(np.std(found, ddof=1), abs=0.003)
    assert outcome.metrics["few_shot_3_top1"] > outcome.metrics["few_shot_1_top1"]


def test_draws_are_nested_distinct_and_keyed_by_the_seed(digits: Dataset) -> None:
    labels = digits.labels[digits.parts["train"]]
    many, few = (draw_shots(labels, most, 0, 1) for most in (10, 3))
    assert (many[:, :3] == few).all()
    assert all(len(set(rows)) == 10 for rows in many)
    assert (few != draw_shots(labels, 3, 0, 2)).any()
    assert (few != draw_shots(labels, 3, 1, 1)).any()


def test_classes_without_a_training_image_are_not_predicted(digits: Dataset) -> None:
    train = digits.parts["train"]
    subject = subject_of(replace(digits, parts=digits.parts | {"train": train[digits.labels[train] > 2]}))
    known = (subject.labels("test") > 2).float().mean().item()
    found = FewShot(shots=(20,), draws=3).run(subject).metrics["few_shot_20_top1"]
    assert 0.3 < found <= known


def test_more_shots_than_images_of_a_class_are_refused_with_those_that_fit(digits: Dataset) -> None:
    train = digits.parts["train"]
    rows = np.concatenate([train[digits.labels[train] == label][:6] for label in range(10)])
    subject = subject_of(replace(digits, parts=digits.parts | {"train": rows}))
    with pytest.raises(UserError, match=r"10 needs 10 training images of each class, .*shots=\[1,5\]"):
        FewShot().check(subject)
    assert torch.isfinite(torch.tensor(FewShot(shots=(1, 5), draws=3).run(subject).samples["few_shot_5_top1"])).all()
