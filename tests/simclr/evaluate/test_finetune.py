"""Classifiers trained by SGD, on a frozen encoder and together with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate.base import accuracy
from simclr.evaluate.finetune import Classifier, Finetune, LinearSgd, Sgd, best_rate, class_scores, fit, label_subset
from simclr.evaluate.linear import Linear
from simclr.evaluate.subject import fingerprint
from tests.helpers import subject_of


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    """Fewer images, so that training takes a moment."""
    sizes = {"train": 256, "val": 60, "test": 60}
    return replace(digits, parts=digits.parts | {part: digits.parts[part][:size] for part, size in sizes.items()})


def test_label_subsets_are_balanced_and_depend_on_the_seed(digits: Dataset) -> None:
    rows = digits.parts["train"]
    for fraction in (0.01, 0.1):
        chosen = label_subset(digits.labels, rows, fraction, 0)
        counts = np.bincount(digits.labels[chosen], minlength=10)
        assert set(counts) == {max(1, round(fraction * len(rows) / 10))}
        assert set(chosen) <= set(rows)
        assert chosen.tolist() == label_subset(digits.labels, rows, fraction, 0).tolist()
        assert chosen.tolist() != label_subset(digits.labels, rows, fraction, 1).tolist()
    assert label_subset(digits.labels, rows, 1.0, 0).tolist() == rows.tolist()


def test_a_smaller_fraction_is_part_of_a_larger_one(digits: Dataset) -> None:
    small, large = (label_subset(digits.labels, digits.parts["train"], f, 3) for f in (0.05, 0.5))
    assert set(small) < set(large)


@pytest.mark.parametrize("frozen", [True, False])
def test_training_changes_the_copy_and_never_the_subject(frozen: bool, few: Dataset) -> None:
    subject = subject_of(few)
    before = fingerprint(subject.model)
    settings = Sgd(lr=(0.1,), epochs=1, batch_size=128)
    classifier, again, other = (
        fit(subject, few.parts["train"], settings, 0.1, seed, frozen=frozen) for seed in (0, 0, 1)
    )
    assert fingerprint(subject.model) == before
    assert (fingerprint(classifier.model) == before) == frozen
    assert fingerprint(classifier) == fingerprint(again)
    assert fingerprint(classifier) != fingerprint(other)


def test_linear_sgd_learns_about_as_much_as_logistic_regression(few: Dataset) -> None:
    subject = subject_of(few, layer="pixels")  # no encoder to wait for
    probe = LinearSgd(crop=(0.9, 1.0), lr=(0.01, 0.1), epochs=20, batch_size=64).run(subject).metrics
    exact = Linear(l2_values=5).run(subject).metrics
    assert exact["linear_top1"] > 0.8
    assert probe["linear_sgd_top1"] > exact["linear_top1"] - 0.15  # flips and crops hurt digits
    assert probe["linear_sgd_lr"] in (0.01, 0.1)


def test_finetune_gives_mean_and_deviation_over_seeds_for_each_fraction(few: Dataset) -> None:
    subject = subject_of(few)
    settings = Finetune(epochs=2, min_steps=4, seeds=2, lr=(0.02, 0.1), fractions=(0.1, 1.0))
    metrics, predictions = settings.run(subject)
    assert set(metrics) == {f"finetune_{f}_{k}" for f in ("10pct", "100pct") for k in ("top1", "top5", "lr", "std")}
    assert set(predictions) == {"finetune_10pct_top1", "finetune_100pct_top1"}
    found = []
    for seed in range(2):
        rows = label_subset(few.labels, few.parts["train"], 0.1, seed)
        classifier = fit(subject, rows, settings, metrics["finetune_10pct_lr"], seed, frozen=False)
        predicted = class_scores(classifier, subject, "test").argmax(1)
        found.append((predicted == subject.labels("test")).double().numpy())
        if seed == 0:
            assert torch.equal(predictions["finetune_10pct_top1"], predicted)
    accuracies = np.mean(found, axis=1)
    assert metrics["finetune_10pct_top1"] == pytest.approx(accuracies.mean(), abs=1e-6)
    assert metrics["finetune_10pct_std"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-6)


def test_the_rate_is_chosen_on_validation(few: Dataset) -> None:
    subject, rows = subject_of(few), few.parts["train"]
    settings = Sgd(lr=(1e-6, 0.1), epochs=3, batch_size=64)
    lr, classifier = best_rate(subject, rows, settings, 0, frozen=False)
    truth = subject.labels("val")
    scores = {
        rate: accuracy(class_scores(fit(subject, rows, settings, rate, 0, frozen=False), subject, "val"), truth)
        for rate in settings.lr
    }
    assert lr == max(scores, key=lambda rate: scores[rate])
    assert accuracy(class_scores(classifier, subject, "val"), truth) == scores[lr]


def test_the_hidden_layer_of_a_head_is_as_wide_as_h(digits: Dataset) -> None:
    subject = subject_of(digits)
    width = subject.model.features
    shapes = [tuple(parameter.shape) for parameter in Classifier(subject, 10, "mlp", 0).head.parameters()]
    assert shapes == [(width, width), (width,), (10, width), (10,)]


def test_a_classifier_can_be_trained_on_a_layer_of_the_head(digits: Dataset) -> None:
    subject = subject_of(digits, layer="z")
    classifier = Classifier(subject, 10, "linear", 0)
    assert classifier(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert classifier.head.in_features == subject.config.model.out_dim  # type: ignore[union-attr]


def test_a_fraction_that_leaves_one_image_is_rejected(digits: Dataset) -> None:
    parts = digits.parts | {"train": digits.parts["train"][digits.labels[digits.parts["train"]] == 3]}
    with pytest.raises(UserError, match=r"finetune\.fractions = 0\.001 leaves 1 labelled image"):
        Finetune(fractions=(0.001,)).run(subject_of(replace(digits, parts=parts)))
