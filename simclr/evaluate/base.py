"""What an evaluation is: its settings, how it runs, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.evaluate.subject import BaseProtocol, Subject
from simclr.settings import Section

UNEQUAL = 2  # times as many test images of the most common class as of the rarest, above which accuracy misleads


class Outcome(NamedTuple):
    """What an evaluation found.

    Names of accuracies, which lie in [0, 1], end in _top1 or _top5. Those of balanced accuracies end in _balanced, and
    those of mean average precisions in _map.
    """

    metrics: dict[str, float]
    predictions: dict[str, Tensor] = {}  # noqa: RUF012  predicted class of each test image, by accuracy
    network: nn.Module | None = None  # the last one that was fine-tuned, of the first seed
    samples: dict[str, list[float]] = {}  # noqa: RUF012  the values that a metric is the mean of, if not images
    # The share of right answers to each image, by accuracy, if it averages several answers (of seeds, or corruptions).
    right: dict[str, Tensor] = {}  # noqa: RUF012
    used: tuple[int, int] | None = None  # how many images were used, and of how many, if not all test images


class Evaluation(Section):
    """One way to evaluate a frozen encoder. Its fields are its settings, which form a table of the protocol.

    Choices such as a learning rate are made on validation, and the test set is used once.
    """

    section_name: ClassVar[str]  # the table of its settings in the protocol
    needs_labels: ClassVar[bool] = True
    uses_test: ClassVar[bool] = True  # whether it measures on the part `test`, whose use is counted
    takes_crops: ClassVar[bool] = False  # whether it reads features only, which may be averages over crops
    scales_features: ClassVar[bool] = False  # whether the protocol's setting `features` applies to it
    whole_network: ClassVar[bool] = False  # whether it gives figures of h and of z, whatever the protocol's layer
    reads: ClassVar[tuple[str, ...]] = ()  # other tables of the protocol that its figures depend on
    fixed: ClassVar[Mapping[str, str]] = {}  # what records say besides the settings
    prefixes: ClassVar[tuple[str, ...]] = ()  # prefixes of its metrics' names, if not its section's name
    training_settings: ClassVar[tuple[str, ...]] = ()  # prefixes of the settings of training that it depends on
    in_metric_names: ClassVar[frozenset[str]] = frozenset()  # settings with one metric for each value, named after it

    def run(self, subject: Subject) -> Outcome:
        """Evaluate an encoder, which must stay as it is."""
        raise NotImplementedError

    def check(self, subject: Subject) -> None:
        """Raise UserError if the data or the network can't give these figures."""

    def chooses(self, protocol: BaseProtocol) -> str:  # noqa: ARG002
        """What it chooses under a protocol on the validation images, which it then needs. Empty if it is nothing."""
        return ""

    def chance(self, subject: Subject) -> tuple[dict[str, float], int]:
        """The accuracies of guessing, by the ends of metrics' names, and the number of images they are measured on.

        The best guess is the most common classes of the test set. Balanced accuracy is the same for every guess.
        """
        counts = subject.labels("test").bincount().sort(descending=True).values
        total = int(counts.sum())
        guessed = {f"top{k}": int(counts[:k].sum()) / total for k in (1, 5)}
        return guessed | {"balanced": 1 / int((counts > 0).sum())}, total

    def depends_on(self, config: Config, data: Dataset, device: torch.device) -> dict[str, Any]:  # noqa: ARG002
        """Everything that the results depend on apart from the encoder, the layer, these settings and the labelled
        images.

        `config` is that of the encoder's pre-training.
        """
        return {}


def share_of_true(right: Tensor) -> float:
    """The share of the elements (bool) that are true, or nan if there are none. In float32, 0.5002 is 0.50019997."""
    return right.cpu().double().mean().item()  # as not every device has float64


def is_right(scores: Tensor, y: Tensor, k: int = 1) -> Tensor:
    """Whether the label of each row of `scores` (N x classes) is among its k highest scores."""
    highest = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (highest == y.unsqueeze(1)).any(1)


def accuracy(scores: Tensor, y: Tensor, k: int = 1) -> float:
    """The share of the rows of `scores` that `is_right`."""
    return share_of_true(is_right(scores, y, k))


def share_right(answers: Sequence[Tensor]) -> Tensor:
    """The share of right answers to each of N images. Each answer is N booleans: right or not."""
    return torch.stack([*answers]).cpu().double().mean(0)


def are_unequal(y: Tensor) -> bool:
    """Whether the most common of some classes (N) has over UNEQUAL times as many images as the rarest."""
    counts = y.unique(return_counts=True)[1]
    return bool(counts.max() > UNEQUAL * counts.min())


def balanced_accuracy(predicted: Tensor, y: Tensor) -> float:
    """The mean over the classes of the share of their images that are predicted right. Both are N classes."""
    right = predicted == y
    return fmean(share_of_true(right[y == label]) for label in y.unique())


def balanced(predicted: Tensor, y: Tensor, name: str) -> dict[str, float]:
    """The metric of `balanced_accuracy` if classes `are_unequal`, and otherwise none: it is then the accuracy."""
    return {f"{name}_balanced": balanced_accuracy(predicted, y)} if are_unequal(y) else {}


def accuracies(scores: Tensor, y: Tensor, name: str) -> Outcome:
    """Top-1 accuracy with its predictions, `balanced` accuracy, and top-5 accuracy if there are over five classes."""
    predicted = scores.argmax(1)
    metrics = {f"{name}_top1": accuracy(scores, y)} | balanced(predicted, y, name)
    if scores.shape[1] > 5:
        metrics[f"{name}_top5"] = accuracy(scores, y, 5)
    return Outcome(metrics, {f"{name}_top1": predicted})
