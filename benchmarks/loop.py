"""How close training is to a bare step: `python -m benchmarks.loop [PRESET] [--set ...]`.

Times, in turn, a bare step (the same network, precision and batch, on views that are ready) and a step of training
(order, images, views, step, meter, tracking). Prints the ratio of the medians, the time of views alone, and the share
of a step that tracking takes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks.timing import bare_step, times_in_turn
from experiments.configs.resolve import resolve
from experiments.tracking.store import Store
from experiments.tracking.writing import Tracker, start_run
from simclr import device as devices
from simclr.data.dataset import open_dataset
from simclr.progress import Observer
from simclr.train.loop import Meter, count_steps, load_batches
from simclr.train.step import start_training, train_step
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


def main(preset: str, settings: list[str]) -> None:
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

        def views_alone() -> None:
            batch_views(images, config.pipelines(), config.seed, training.step)(slice(None))

        functions = {
            "bare step": lambda: bare_step(bare, both, labels),
            "training step": full_step,
            "two views": views_alone,
        }
        times = times_in_turn(functions, ROUNDS)
    size, dtype = config.train.batch_size, str(training.dtype).removeprefix("torch.")
    print(f"{preset}: batch {size}, {devices.describe(device)}, {dtype}, {ROUNDS} rounds")
    for name, row in times.items():
        print(f"{name:14} {median(row) * 1e3:8.1f} ms  {size / median(row):8.0f} images/s")
    pairs = zip(times["bare step"], times["training step"], strict=True)
    print(f"training / bare speed  {median(bare / full for bare, full in pairs):.3f} (median of pairs)")
    print(f"tracking               {tracking.seconds / ((ROUNDS + 2) * median(times['training step'])):.2%} of a step")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cifar10-cpu", [a for a in sys.argv[2:] if a != "--set"])
