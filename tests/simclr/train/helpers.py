"""Observers and comparisons that the tests of training share."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from benchmarks.memory import measure_peak, training_without_data
from simclr.config import Config
from simclr.progress import Observer
from simclr.train.memory import predict


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


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether all parameters and buffers are equal to the last bit."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


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
