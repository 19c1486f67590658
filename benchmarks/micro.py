"""A large batch in one piece and in micro-batches: `python -m benchmarks.micro [BATCH MICRO_BATCH float32|float64]`.

Runs three steps of each with fixed batch norms, so that no image affects another. Prints the largest difference between
the weights, and the time, which the second forward pass should raise by a third (backward costs about two of them).
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch

from benchmarks.memory import make_config, training_without_data
from simclr import device as devices
from simclr.train.step import Training, train_step

STEPS = 3


def main(batch: int = 4096, micro_batch: int = 256, dtype: str = "float32") -> None:
    device = devices.resolve("auto")
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (STEPS, batch, 3, 32, 32), dtype=torch.uint8, generator=draw)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    trainings, times = [], []
    for size in (batch, micro_batch):
        config = make_config("resnet18", "stride2", 0.25, 32, batch, size, "fp32", "sgd")
        training = training_without_data(config, device)
        training.model.to(getattr(torch, dtype)).eval()
        training.group = None
        trainings.append(training)
        times.append([0.0] * STEPS)
    for step in range(STEPS):  # in turn
        for training, row in zip(trainings, times, strict=True):
            clock = time.perf_counter()
            train_step(training, images[step].to(device), labels).tolist()
            row[step] = time.perf_counter() - clock
    whole, parts = trainings
    print(f"{devices.describe(device)}, ResNet-18 of width 0.25, 32 px, {dtype}, batch norms fixed")
    print(f"batch {batch} in one piece: {median(times[0]):.2f} s per step; in {micro_batch}s: {median(times[1]):.2f} s")
    ratio = median(times[1]) / median(times[0])
    print(f"ratio: {ratio:.2f} (theory: 4/3); weights after {STEPS} steps differ by {difference(whole, parts):.1e}")


def difference(a: Training, b: Training) -> float:
    """The largest difference of a weight, relative to the largest weight of its tensor."""
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return max(((p - q).abs().max() / p.abs().max()).item() for p, q in pairs)


if __name__ == "__main__":
    main(*(int(size) for size in sys.argv[1:3]), *sys.argv[3:])  # type: ignore[arg-type]
