"""How near training is to the bare step: `python -m benchmarks.loop [PRESET] [--set ...]`.

Times, in turn, a bare step (same network, precision and batch, on views that are ready) and a step of training as it
is (order, gather, views, step, meter, tracking). Prints the ratio of the medians, what views alone take, and what
tracking takes of a step.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from experiments.configs.resolve import resolve
from experiments.tracking import Store
from simclr import device as devices
from simclr.data.dataset import open_dataset
from simclr.methods.ntxent import contrast
from simclr.train.loop import Meter, batch_rows, count_steps, stored_images
from simclr.train.step import begin, embed, train_step
from simclr.views import two_views

ROUNDS = 15


def main(preset: str, settings: list[str]) -> None:
    config = resolve(preset, None, ["data.dataset=shapes", "data.side=32", *settings])
    device = devices.resolve(config.device)
    dtype = devices.resolve_precision(config.train.precision, device)
    with tempfile.TemporaryDirectory() as scratch:
        data = open_dataset(config.data, Path(scratch))
        store = Store(Path(scratch))
        tracker = store.start("loop", {"kind": "benchmark"}, {})
        tracking = [0.0]

        def log(metrics: dict[str, float], step: int) -> None:
            clock = time.perf_counter()
            tracker.log(metrics, step)
            tracking[0] += time.perf_counter() - clock

        _, per_epoch = count_steps(config, data)
        images = stored_images(data, device, on_device=device.type != "cpu")
        training, bare = begin(config, data, device), begin(config, data, device)
        meter, log_every = Meter(training, log), max(1, per_epoch // 10)
        batch = images[batch_rows(config, data, per_epoch, 0).to(images.device)].to(device)
        both = two_views(batch, config.pipelines(), config.seed, 0)(slice(None))

        def bare_step() -> None:
            with devices.autocast(device, dtype):
                z = embed(bare.model, both, config.train.views)
            loss = contrast(z[0], z[1], config.loss.temperature)[0]
            bare.scaler.scale(loss).backward()
            bare.scaler.step(bare.optimizer)
            bare.scaler.update()
            bare.optimizer.zero_grad()

        def full_step() -> None:
            rows = batch_rows(config, data, per_epoch, training.step)
            meter.add(train_step(training, images[rows.to(images.device)].to(device)))
            if training.step % log_every == 0:
                meter.flush()

        def views_alone() -> None:
            two_views(batch, config.pipelines(), config.seed, training.step)(slice(None))

        times = _in_turn([bare_step, full_step, views_alone], device)
    bare_time, full_time, views_time = (median(row) for row in times)
    size = config.train.batch_size
    print(f"{preset}: batch {size}, {devices.describe(device)}, {str(dtype).removeprefix('torch.')}, {ROUNDS} rounds")
    print(f"bare step      {bare_time * 1e3:8.1f} ms  {size / bare_time:8.0f} images/s")
    print(f"training step  {full_time * 1e3:8.1f} ms  {size / full_time:8.0f} images/s")
    print(f"two views      {views_time * 1e3:8.1f} ms  {size / views_time:8.0f} images/s")
    print(
        f"training / bare speed  {median(b / f for b, f in zip(times[0], times[1], strict=True)):.3f} (median of pairs)"
    )
    print(f"tracking               {tracking[0] / ((ROUNDS + 2) * full_time):.2%} of a step")


def _in_turn(functions: list[Callable[[], None]], device: torch.device) -> list[list[float]]:
    """Seconds of each function in each round, called one after the other; two rounds warm up."""
    times: list[list[float]] = [[] for _ in functions]
    for round_ in range(ROUNDS + 2):
        for row, function in zip(times, functions, strict=True):
            clock = time.perf_counter()
            function()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            if round_ >= 2:
                row.append(time.perf_counter() - clock)
    return times


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cifar10-cpu", [a for a in sys.argv[2:] if a != "--set"])
