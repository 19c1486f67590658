"""How close training is to a bare step: `python -m benchmarks.loop [PRESET] [--set ...]`.

Times, in turn, a bare step (the same network, precision and batch, on views that are ready) and a step of training
(order, images, views, step, meter, tracking). Prints the ratio of both, the parts of a step, and the share that
tracking takes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.timing import bare_step, parts_of_a_step, times_in_turn
from experiments.configs.resolve import resolve
from experiments.tracking.store import Store
from experiments.tracking.writing import Tracker, start_run
from simclr import device as devices
from simclr.data.dataset import open_dataset
from simclr.progress import Observer
from simclr.train.loop import Meter, count_steps, load_batches
from simclr.train.step import Training, start_training, train_step
from simclr.views import batch_views

ROUNDS = 15


class Tracking(Observer):
    """Logs metrics to a run, and sums the seconds that this takes."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self.seconds = tracker, 0.0

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        clock = time.perf_counter()
        self.tracker.log(metrics, step)
        self.seconds += time.perf_counter() - clock


class Loop(NamedTuple):
    """The seconds of each round, and what they are of."""

    training: Training
    device: torch.device
    times: dict[str, list[float]]
    tracking: float  # share of a step that tracking takes

    def ratios(self) -> list[float]:
        """Speed of training relative to that of a bare step, in each round."""
        pairs = zip(self.times["bare step"], self.times["training step"], strict=True)
        return [bare / full for bare, full in pairs]


def measure(preset: str, settings: Sequence[str] = (), rounds: int = ROUNDS) -> Loop:
    """Time the steps of a preset on `shapes` in turn, and the parts of a step."""
    config = resolve(preset, None, ["data.dataset=shapes", "data.side=32", *settings])
    device = devices.resolve(config.device)
    with tempfile.TemporaryDirectory() as scratch:
        data = open_dataset(config.data, Path(scratch))
        tracking = Tracking(start_run(Store(Path(scratch)), "loop", "benchmark", {}))
        batches = load_batches(config, data, device, images_on_device=device.type != "cpu")
        training, bare = start_training(config, data, device), start_training(config, data, device)
        meter, log_every = Meter(training, tracking), max(1, count_steps(config, data).per_epoch // 10)
        images, labels = next(batches)
        both = batch_views(images, config.pipelines(), config.seed, 0)(slice(None))

        def full_step() -> None:
            meter.add(train_step(training, *next(batches)))
            if training.step % log_every == 0:
                meter.flush()

        functions = {"bare step": lambda: bare_step(bare, both, labels), "training step": full_step}
        times = times_in_turn(functions | parts_of_a_step(bare, images, labels), rounds)
    return Loop(training, device, times, tracking.seconds / ((rounds + 2) * median(times["training step"])))


def main(preset: str, settings: list[str]) -> None:
    found = measure(preset, settings)
    size, dtype = found.training.config.train.batch_size, str(found.training.dtype).removeprefix("torch.")
    print(f"{preset}: batch {size}, {devices.describe(found.device)}, {dtype}, {ROUNDS} rounds")
    for name, row in found.times.items():
        print(f"{name:14} {median(row) * 1e3:8.1f} ms  {size / median(row):8.0f} images/s")
    print(f"training / bare speed  {median(found.ratios()):.3f} (median of pairs)")
    print(f"tracking               {found.tracking:.2%} of a step")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cifar10-cpu", [a for a in sys.argv[2:] if a != "--set"])
