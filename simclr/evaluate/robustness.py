"""Accuracy on corrupted test images of a classifier that was fitted on clean ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from simclr.data.images import Array
from simclr.evaluate.base import Evaluation, Outcome, share_of_true, share_right
from simclr.evaluate.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from simclr.evaluate.knn import knn_predict
from simclr.evaluate.linear import fit_linear, logits, preprocessing
from simclr.evaluate.subject import PIXELS_PER_BATCH, BaseProtocol, Subject, features
from simclr.randomness import permutation, uniforms
from simclr.settings import Count, Seed

Classifier = Callable[[Tensor], Tensor]  # features (N x D, as the subject scales them) to classes (N)


def clean_classifier(subject: Subject, name: str) -> Classifier:
    """kNN or the linear classifier with the protocol's settings (of several k the first), fitted on clean images."""
    (train, train_y), (val, val_y) = subject.train, subject.val
    classes = len(subject.data.classes)
    if name == "knn":
        knn = subject.protocol.knn  # type: ignore[attr-defined]
        bank, labels, k = torch.cat([train, val]), torch.cat([train_y, val_y]), knn.k[0]
        return lambda x: knn_predict(bank, labels, x, classes, [k], knn.temperature)[k]
    linear = subject.protocol.linear  # type: ignore[attr-defined]
    scale = preprocessing(linear, train)
    weights, _ = fit_linear(scale(train), train_y, scale(val), val_y, classes, linear, subject.observer)
    return lambda x: logits(scale(x), weights).argmax(1)


class Robustness(Evaluation):
    """The classifier is fitted on clean images, and tested on test images that are corrupted at five strengths.

    The metrics are means: robustness_knn_top1 over all corruptions and strengths, robustness_knn_blur_top1 over the
    strengths of one corruption, robustness_knn_strength3_top1 over the corruptions at one strength.
    robustness_knn_clean_top1 is the accuracy on the same images without corruption.
    """

    section_name = "robustness"
    reads = ("knn", "linear")
    in_metric_names = frozenset({"classifier"})
    scales_features = True

    classifier: Literal["knn", "linear"] = "knn"  # which classifier is fitted on the clean images
    images: Count = 5000  # largest number of test images that are corrupted, drawn at random
    seed: Seed = 0  # seed of the draw and of the noise

    def check(self, subject: Subject) -> None:
        """Raise UserError as the linear classifier does, if it is fitted."""
        if self.classifier == "linear":
            subject.protocol.linear.check(subject)  # type: ignore[attr-defined]

    def chooses(self, protocol: BaseProtocol) -> str:
        return protocol.linear.chooses(protocol) if self.classifier == "linear" else ""  # type: ignore[attr-defined]

    def chance(self, subject: Subject) -> tuple[dict[str, float], int]:
        odds, total = super().chance(subject)
        return odds, min(total, self.images)

    def run(self, subject: Subject) -> Outcome:
        """Accuracies on corrupted and on clean test images."""
        rows = subject.data.parts["test"]
        rows = rows[permutation(len(rows), self.seed, "robustness").numpy()[: self.images]]
        classify = clean_classifier(subject, self.classifier)
        conditions = [(name, strength) for name in CORRUPTIONS for strength in range(1, STRENGTHS + 1)]
        start = f"robustness_{self.classifier}"
        right = {f"{start}_clean_top1": [self._right(subject, classify, rows, "clean", 0)]}
        found: dict[tuple[str, int], Tensor] = {}
        for done, (name, strength) in enumerate(conditions, 1):
            found[name, strength] = self._right(subject, classify, rows, name, strength)
            subject.observer.progress("corruptions", done, len(conditions))
        right[f"{start}_top1"] = [*found.values()]
        for name in CORRUPTIONS:
            right[f"{start}_{name}_top1"] = [value for key, value in found.items() if key[0] == name]
        for strength in range(1, STRENGTHS + 1):
            right[f"{start}_strength{strength}_top1"] = [value for key, value in found.items() if key[1] == strength]
        metrics = {metric: float(np.mean([*map(share_of_true, answers)])) for metric, answers in right.items()}
        return Outcome(metrics, right={metric: share_right(answers) for metric, answers in right.items()})

    def _right(self, subject: Subject, classify: Classifier, rows: Array, name: str, strength: int) -> Tensor:
        """Which images in `rows` are classified right after one corruption in one strength, or clean ones."""
        data, right = subject.data, []
        u = uniforms((len(rows), 2), self.seed, "corruption", name, strength)
        block = max(1, PIXELS_PER_BATCH // data.side**2)  # images that are corrupted at once
        for start in range(0, len(rows), block):
            some = rows[start : start + block]
            images = data.images[some]
            if name != "clean":
                given = torch.from_numpy(images).to(subject.device)
                images = corrupted(given, name, strength, u[start : start + block]).cpu().numpy()
            x = features(subject.model, images, np.arange(len(some)), torch.float32, subject.protocol.layer)
            truth = torch.from_numpy(data.labels[some]).to(subject.device)
            right.append((classify(subject.scale(x)) == truth).cpu())
        return torch.cat(right)
