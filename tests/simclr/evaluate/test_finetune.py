"""Classifiers trained by SGD, on a frozen encoder and together with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate import finetune
from simclr.evaluate.base import accuracy
from simclr.evaluate.evaluations import check
from simclr.evaluate.finetune import (
    Classifier,
    Finetune,
    LinearSgd,
    Sgd,
    best_rate,
    class_scores,
    fit,
    held_out,
    label_subset,
    new_classifier,
)
from simclr.evaluate.linear import Linear
from simclr.evaluate.subject import model_fingerprint
from tests.helpers import subject_of, tiny


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
    before = model_fingerprint(subject.model)
    settings = Sgd(lr=(0.1,), epochs=1, batch_size=128)
    classifier, again, other = (
        fit(subject, few.parts["train"], settings, 0.1, seed, frozen=frozen) for seed in (0, 0, 1)
    )
    assert model_fingerprint(subject.model) == before
    assert (model_fingerprint(classifier.model) == before) == frozen
    assert model_fingerprint(classifier) == model_fingerprint(again)
    assert model_fingerprint(classifier) != model_fingerprint(other)


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
    outcome = settings.run(subject)
    metrics, predictions = outcome.metrics, outcome.predictions
    assert isinstance(outcome.network, Classifier)
    kept = class_scores(outcome.network, subject, few.parts["test"]).argmax(1)
    assert torch.equal(kept, predictions["finetune_100pct_top1"])  # it is that of the first seed
    kinds = ("top1", "top5", "balanced", "lr", "std")  # of 60 test images, the classes are unequal
    assert set(metrics) == {f"finetune_{f}_{k}" for f in ("10pct", "100pct") for k in kinds}
    assert set(predictions) == {"finetune_10pct_top1", "finetune_100pct_top1"}
    found = []
    for seed in range(2):
        rows = label_subset(few.labels, few.parts["train"], 0.1, seed)
        classifier = fit(subject, rows, settings, metrics["finetune_10pct_lr"], seed, frozen=False)
        predicted = class_scores(classifier, subject, few.parts["test"]).argmax(1)
        found.append((predicted == subject.labels("test")).double().numpy())
        if seed == 0:
            assert torch.equal(predictions["finetune_10pct_top1"], predicted)
    assert outcome.right["finetune_10pct_top1"].numpy() == pytest.approx(np.mean(found, axis=0))
    assert set(outcome.right) == {f"finetune_{f}_{k}" for f in ("10pct", "100pct") for k in ("top1", "top5")}
    accuracies = np.mean(found, axis=1)
    assert metrics["finetune_10pct_top1"] == pytest.approx(accuracies.mean(), abs=1e-6)
    assert metrics["finetune_10pct_std"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-6)


def test_the_rate_is_the_best_on_the_images_that_are_judged(few: Dataset) -> None:
    subject, rows, judged = subject_of(few), few.parts["train"], few.parts["val"]
    settings = Sgd(lr=(1e-6, 0.1), epochs=3, batch_size=64)
    lr, classifier = best_rate(subject, rows, judged, settings, 0, frozen=False)
    truth = subject.labels("val")
    scores = {
        rate: accuracy(class_scores(fit(subject, rows, settings, rate, 0, frozen=False), subject, judged), truth)
        for rate in settings.lr
    }
    assert lr == max(scores, key=lambda rate: scores[rate])
    assert accuracy(class_scores(classifier, subject, judged), truth) == scores[lr]


def test_what_is_held_out_is_a_fifth_of_every_class_that_can_spare_it(digits: Dataset) -> None:
    labels = np.repeat(np.arange(4), [1, 2, 10, 25])
    rows = np.arange(len(labels))[::-1].copy()
    held = held_out(labels, rows)
    assert np.bincount(labels[held], minlength=4).tolist() == [0, 1, 2, 5]
    assert len(set(held)) == len(held)
    assert held.tolist() == held_out(labels, rows).tolist()
    assert held_out(labels, rows[-1:]).tolist() == []
    few_labels = label_subset(digits.labels, digits.parts["train"], 0.1, 0)
    assert set(held_out(digits.labels, few_labels)) < set(few_labels)


def test_the_rate_is_chosen_with_the_labels_that_are_trained_on(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """All other labels, those of validation too, are hidden: reading one of them is an error."""
    used: list[set[int]] = []

    def watch(subject: object, rows: np.ndarray, settings: Sgd, *arguments: object, frozen: bool) -> str:
        used.append(set(rows))
        return f"trained {len(rows)}"

    def judge(classifier: str, subject: object, rows: np.ndarray) -> torch.Tensor:
        used.append(set(rows))
        return torch.eye(10)[torch.from_numpy(few.labels[rows])]

    monkeypatch.setattr(finetune, "fit", watch)
    monkeypatch.setattr(finetune, "class_scores", judge)
    metrics = Finetune(seeds=1, fractions=(0.3,)).run(subject_of(few)).metrics
    own = set(label_subset(few.labels, few.parts["train"], 0.3, 0))
    *choosing, trained, tested = used
    assert (trained, tested) == (own, set(few.parts["test"]))
    assert len(choosing) == 6
    assert set().union(*choosing) == own
    for rows, judged in zip(choosing[::2], choosing[1::2], strict=True):
        assert not rows & judged
        assert len(judged) < len(rows)
    assert metrics["finetune_30pct_lr"] == 0.05  # all are equally good, so it is the paper's


@pytest.mark.parametrize(("fraction", "epochs"), [(0.01, 60), (0.1, 30), (1.0, 30)])
def test_one_percent_is_trained_for_60_epochs_as_in_the_paper(
    few: Dataset, fraction: float, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def watch(subject: object, rows: object, settings: Sgd, *arguments: object, frozen: bool) -> str:
        trained.append(settings.epochs)
        return "a classifier"

    monkeypatch.setattr(finetune, "fit", watch)
    monkeypatch.setattr(finetune, "class_scores", lambda c, s, rows: torch.zeros(len(rows), 10))
    Finetune(seeds=2, fractions=(fraction,)).run(subject_of(few))
    assert set(trained) == {epochs}


def test_fine_tuning_needs_no_validation_images(few: Dataset) -> None:
    none = replace(few, parts=few.parts | {"val": few.parts["val"][:0]})
    check(subject_of(none), ["finetune"])


def test_float32_on_cuda_is_another_protocol_than_that_of_versions_that_used_tf32() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    config = tiny()
    assert Finetune().depends_on(config, None, cpu) == {"dtype": "torch.float32"}  # type: ignore[arg-type]
    assert Finetune().depends_on(config, None, cuda) == {"dtype": "torch.float32", "tf32": "never"}  # type: ignore[arg-type]
    assert "tf32" not in Finetune().depends_on(tiny(train={"precision": "bf16"}), None, cuda)  # type: ignore[arg-type]


def test_the_hidden_layer_of_a_head_is_as_wide_as_h(digits: Dataset) -> None:
    subject = subject_of(digits)
    width = subject.model.features
    shapes = [tuple(parameter.shape) for parameter in new_classifier(subject, 10, "mlp", 0).head.parameters()]
    assert shapes == [(width, width), (width,), (10, width), (10,)]


def test_a_classifier_can_be_trained_on_a_layer_of_the_head(digits: Dataset) -> None:
    subject = subject_of(digits, layer="z")
    classifier = new_classifier(subject, 10, "linear", 0)
    assert classifier(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert classifier.head.in_features == subject.config.model.out_dim  # type: ignore[union-attr]


def test_a_fraction_that_leaves_one_image_is_rejected(digits: Dataset) -> None:
    parts = digits.parts | {"train": digits.parts["train"][digits.labels[digits.parts["train"]] == 3]}
    with pytest.raises(UserError, match=r"finetune\.fractions = 0\.001 leaves 1 labelled image"):
        Finetune(fractions=(0.001,)).run(subject_of(replace(digits, parts=parts)))
