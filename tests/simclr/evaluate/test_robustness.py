"""Accuracy on corrupted images: what is fitted on clean images and what is averaged."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate import robustness
from simclr.evaluate.corruptions import CORRUPTIONS, corrupted
from simclr.evaluate.evaluations import check
from simclr.evaluate.knn import Knn
from simclr.evaluate.linear import Linear
from simclr.evaluate.robustness import Robustness
from simclr.randomness import uniforms
from tests.helpers import subject_of


@pytest.mark.parametrize(("classifier", "scaled"), [("knn", "raw"), ("linear", "raw"), ("knn", "whitened")])
def test_the_clean_accuracy_is_that_of_the_classifier(classifier: str, scaled: str, few: Dataset) -> None:
    subject = subject_of(few, ["linear.l2_values=3", f"features={scaled}"])
    found = Robustness(classifier=classifier).run(subject).metrics
    peer = Knn() if classifier == "knn" else Linear(l2_values=3)
    (top1,) = (value for name, value in peer.run(subject).metrics.items() if name.endswith("_top1"))
    assert found[f"robustness_{classifier}_clean_top1"] == pytest.approx(top1, abs=1e-6)


def test_means_are_over_the_corruptions_and_their_strengths(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(few, layer="pixels")
    outcome = Robustness().run(subject)
    metrics = outcome.metrics
    monkeypatch.setattr(robustness, "PIXELS_PER_BATCH", 7 * few.side**2)
    assert Robustness().run(subject).metrics == metrics  # noise belongs to images, not to blocks
    classify = robustness.clean_classifier(subject, "knn")
    rows = few.parts["test"][robustness.permutation(60, 0, "robustness").numpy()]
    right = {}
    for name, strength in product(CORRUPTIONS, range(1, 6)):
        u = uniforms((60, 2), 0, "corruption", name, strength)
        images = corrupted(torch.from_numpy(few.images[rows]), name, strength, u)
        x = subject.model.normalize(images / 255).flatten(1)
        right[name, strength] = classify(x).numpy() == few.labels[rows]
    one = {condition: each.mean() for condition, each in right.items()}
    for top, shares in outcome.right.items():
        assert shares.mean().item() == pytest.approx(metrics[top])
    assert outcome.right["robustness_knn_top1"].numpy() == pytest.approx(np.mean([*right.values()], axis=0))
    assert metrics["robustness_knn_top1"] == pytest.approx(np.mean([*one.values()]))
    assert metrics["robustness_knn_noise_top1"] == pytest.approx(np.mean([one["noise", s] for s in range(1, 6)]))
    assert metrics["robustness_knn_strength5_top1"] == pytest.approx(np.mean([one[name, 5] for name in CORRUPTIONS]))
    assert metrics["robustness_knn_strength5_top1"] < metrics["robustness_knn_strength1_top1"]


def test_the_linear_classifier_needs_validation_images(digits: Dataset) -> None:
    none = replace(digits, parts=digits.parts | {"val": digits.parts["val"][:0]})
    check(subject_of(none), ["robustness"])
    with pytest.raises(
        UserError, match=r"--robustness chooses the L2 penalty .* of the linear classifier on validation"
    ):
        check(subject_of(none, ["robustness.classifier=linear"]), ["robustness"])
    assert Robustness(images=10).chance(subject_of(digits))[1] == 10
