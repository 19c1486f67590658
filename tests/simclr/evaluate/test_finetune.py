from __future__ import annotations

import numpy as np
import pytest
import torch

from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate import finetune as ft
from simclr.evaluate.protocol import Sgd
from simclr.evaluate.subject import fingerprint
from tests.helpers import subject_of

QUICK = ["finetune.epochs=2", "finetune.min_steps=4", "finetune.seeds=2", "finetune.lr=[0.02,0.1]"]


def test_label_subsets_are_balanced_fixed_by_seed_and_differ_between_seeds(digits: Dataset) -> None:
    rows = digits.parts["train"]
    for fraction in (0.01, 0.1):
        chosen = ft.label_subset(digits.labels, rows, fraction, 0)
        counts = np.bincount(digits.labels[chosen], minlength=10)
        assert set(counts) == {max(1, round(fraction * len(rows) / 10))}
        assert set(chosen) <= set(rows)
        assert chosen.tolist() == ft.label_subset(digits.labels, rows, fraction, 0).tolist()
        assert chosen.tolist() != ft.label_subset(digits.labels, rows, fraction, 1).tolist()
    assert ft.label_subset(digits.labels, rows, 1.0, 0).tolist() == rows.tolist()


def test_a_smaller_fraction_is_part_of_a_larger_one(digits: Dataset) -> None:
    small, large = (ft.label_subset(digits.labels, digits.parts["train"], f, 3) for f in (0.05, 0.5))
    assert set(small) < set(large)


@pytest.mark.parametrize("frozen", [True, False])
def test_training_a_classifier_changes_the_copy_and_never_the_subject(frozen: bool, digits: Dataset) -> None:
    subject = subject_of(digits)
    before = fingerprint(subject.model)
    settings = Sgd(lr=(0.1,), epochs=1, batch_size=128)
    classifier = ft.fit(subject, digits.parts["train"], settings, 0.1, 0, frozen=frozen)
    assert fingerprint(subject.model) == before
    assert (fingerprint(classifier.model) == before) == frozen
    again = ft.fit(subject, digits.parts["train"], settings, 0.1, 0, frozen=frozen)
    assert fingerprint(classifier) == fingerprint(again)
    other = ft.fit(subject, digits.parts["train"], settings, 0.1, 1, frozen=frozen)
    assert fingerprint(classifier) != fingerprint(other)


def test_linear_sgd_learns_about_what_logistic_regression_learns(digits: Dataset) -> None:
    from simclr.evaluate.linear import linear

    crop = ["linear_sgd.crop=[0.9,1.0]", "linear_sgd.lr=[0.3,3.0]", "linear_sgd.epochs=30"]
    subject = subject_of(digits, crop, model={"width": 0.25})
    probe, exact = ft.linear_sgd(subject).metrics, linear(subject).metrics
    assert probe["linear_sgd_top1"] > 0.5
    assert probe["linear_sgd_top1"] > exact["linear_top1"] - 0.25  # flips and crops hurt digits
    assert probe["linear_sgd_lr"] in (0.3, 3.0)


def test_finetune_gives_mean_and_deviation_over_seeds_for_each_fraction(digits: Dataset) -> None:
    subject = subject_of(digits, [*QUICK, "finetune.fractions=[0.1,1.0]"])
    metrics, predictions, shares = ft.finetune(subject)
    assert set(metrics) == {f"finetune_{f}_{k}" for f in ("10pct", "100pct") for k in ("top1", "top5", "lr", "std")}
    assert set(predictions) == {"finetune_10pct_top1", "finetune_100pct_top1"}
    found = []
    for seed in range(2):
        rows = ft.label_subset(digits.labels, digits.parts["train"], 0.1, seed)
        classifier = ft.fit(subject, rows, subject.protocol.finetune, metrics["finetune_10pct_lr"], seed, frozen=False)
        scores = ft.scores_of(classifier, subject, "test")
        found.append((scores.argmax(1) == subject.labels("test")).double().numpy())
    accuracies = np.mean(found, axis=1)
    assert metrics["finetune_10pct_top1"] == pytest.approx(accuracies.mean(), abs=1e-6)
    assert metrics["finetune_10pct_std"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-6)
    assert set(shares) == {key for key in metrics if key.endswith(("top1", "top5"))}
    np.testing.assert_allclose(shares["finetune_10pct_top1"].numpy(), np.mean(found, axis=0), atol=1e-6)
    for key, share in shares.items():
        assert share.mean().item() == pytest.approx(metrics[key], abs=1e-6)


def test_the_rate_is_picked_on_validation(digits: Dataset) -> None:
    subject = subject_of(digits)
    settings = Sgd(lr=(1e-6, 0.1), epochs=3, batch_size=64)
    rows = digits.parts["train"]
    lr, classifier = ft.best_rate(subject, rows, settings, 0, frozen=False)
    scores = {
        rate: (
            ft.scores_of(ft.fit(subject, rows, settings, rate, 0, frozen=False), subject, "val").argmax(1)
            == subject.labels("val")
        ).sum()
        for rate in settings.lr
    }
    assert lr == max(scores, key=lambda rate: scores[rate])
    assert (ft.scores_of(classifier, subject, "val").argmax(1) == subject.labels("val")).sum() == scores[lr]


def test_a_head_of_two_layers_keeps_the_width_of_h(digits: Dataset) -> None:
    subject = subject_of(digits)
    head = ft.Classifier(subject, 10, "mlp", 0).head
    shapes = [tuple(p.shape) for p in head.parameters()]
    width = subject.model.features
    assert shapes == [(width, width), (width,), (10, width), (10,)]  # the seed system's 512-512-10


def test_a_layer_of_the_head_can_be_trained_on(digits: Dataset) -> None:
    subject = subject_of(digits, layer="z")
    classifier = ft.Classifier(subject, 10, "linear", 0)
    assert classifier(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert classifier.head.in_features == subject.config.model.out_dim  # type: ignore[union-attr]


def test_a_fraction_that_leaves_one_image_is_refused(digits: Dataset) -> None:
    from dataclasses import replace

    parts = digits.parts | {"train": digits.parts["train"][digits.labels[digits.parts["train"]] == 3]}
    with pytest.raises(UserError, match=r"finetune\.fractions = 0\.001 leaves 1 labelled image"):
        ft.finetune(subject_of(replace(digits, parts=parts), ["finetune.fractions=[0.001]"]))
