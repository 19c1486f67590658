"""Observers and comparisons that the tests of training share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import measure_peak, training_without_data
from simclr.config import Config, to_toml
from simclr.data.dataset import Dataset
from simclr.evaluate.finetune import Classifier, new_classifier
from simclr.progress import Observer
from simclr.train.memory import predict
from simclr.train.teacher import facts_of
from simclr.weights.checkpoint import save_weights
from tests.helpers import subject_of


class Watch(Observer):
    """Collects the metrics of a run, and asks it to stop after a number of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.history: list[tuple[int, dict[str, float]]] = []
        self.steps_left = stop_after

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.history.append((step, dict(metrics)))

    def stop(self) -> bool:
        if self.steps_left is not None:
            self.steps_left -= 1
        return self.steps_left == 0

    @property
    def losses(self) -> list[float]:
        return [metrics["train/loss"] for _, metrics in self.history if "train/loss" in metrics]


class Operations(TorchDispatchMode):
    """Counts operations, without those that only look at a tensor differently."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether all parameters and buffers are equal to the last bit."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def keep_teacher(
    path: Path, data: Dataset, classes: int = 10, kind: str = "linear", layer: str = "head.1"
) -> Classifier:
    """Save an untrained classifier of that many classes, which are numbers, as a fine-tuned network is kept."""
    subject = subject_of(data, layer=layer)
    classifier = new_classifier(subject, classes, kind, 0).eval()
    facts = facts_of(classifier, to_toml(subject.config), replace(data, classes=tuple(map(str, range(classes)))))
    save_weights(path, classifier, facts)
    return classifier


def assert_predicted(config: Config, micro_batch: int) -> None:
    """The predicted peak is that of a real step on this CPU within 3 %.

    Without AVX-512, a real step takes up to three times the largest weights more. Judging by the bytes, these are
    copies that oneDNN holds while it computes their gradient.
    """
    device, copies = torch.device("cpu"), 0
    if not torch.cpu._is_avx512_supported():
        copies = 3 * max(p.nbytes for p in training_without_data(config, device).model.parameters())
    predicted, measured = sum(predict(config, micro_batch).values()), measure_peak(config, device)
    assert 0.97 * measured - copies <= predicted <= 1.03 * measured
