"""Observers and comparisons that the tests of training share."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from simclr.progress import Observer


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
