"""What an evaluation is: its settings, how it runs, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.evaluate.subject import Subject
from simclr.settings import Section


class Outcome(NamedTuple):
    """What an evaluation found. Names of accuracies, which lie in [0, 1], end in _top1 or _top5."""

    metrics: dict[str, float]
    predictions: dict[str, Tensor] = {}  # noqa: RUF012  predicted class of each test image, by accuracy
    network: nn.Module | None = None  # the last one that was fine-tuned, of the first seed


class Evaluation(Section):
    """One way to evaluate a frozen encoder. Its fields are its settings, which form a table of the protocol.

    Choices such as a learning rate are made on validation, and the test set is used once.
    """

    section_name: ClassVar[str]  # the table of its settings in the protocol
    needs_labels: ClassVar[bool] = True
    takes_crops: ClassVar[bool] = False  # whether it reads features only, which may be averages over crops
    fixed: ClassVar[Mapping[str, str]] = {}  # what records say besides the settings
    in_metric_names: ClassVar[frozenset[str]] = frozenset()  # settings with one metric for each value, named after it

    def run(self, subject: Subject) -> Outcome:
        """Evaluate an encoder, which must stay as it is."""
        raise NotImplementedError

    def check(self, subject: Subject) -> None:
        """Raise UserError if the data or the network can't give these figures."""

    def chooses(self) -> str:
        """What it chooses on the validation images, which it then needs. Empty if it chooses nothing."""
        return ""

    def chance(self, subject: Subject) -> tuple[dict[str, float], int]:
        """Top-1 and top-5 accuracy of guessing, and the number of images that accuracies are measured on.

        The best guess is the most common classes of the test set.
        """
        counts = subject.labels("test").bincount().sort(descending=True).values
        total = int(counts.sum())
        return {f"top{k}": int(counts[:k].sum()) / total for k in (1, 5)}, total

    def depends_on(self, config: Config, data: Dataset, device: torch.device) -> dict[str, Any]:  # noqa: ARG002
        """Everything that the figures depend on besides the encoder, the layer, these settings and the labelled images.

        `config` is that of the encoder's pre-training.
        """
        return {}


def accuracy(scores: Tensor, y: Tensor, k: int = 1) -> float:
    """Fraction of rows of `scores` (N x classes) whose label is among their k highest scores."""
    highest = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (highest == y.unsqueeze(1)).any(1).float().mean().item()


def accuracies(scores: Tensor, y: Tensor, name: str) -> Outcome:
    """Top-1 accuracy with its predictions, and top-5 accuracy if there are more than five classes."""
    metrics = {f"{name}_top1": accuracy(scores, y)}
    if scores.shape[1] > 5:
        metrics[f"{name}_top5"] = accuracy(scores, y, 5)
    return Outcome(metrics, {f"{name}_top1": scores.argmax(1)})
