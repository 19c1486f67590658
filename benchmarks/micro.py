"""A large batch in one piece and in micro-batches: `python -m benchmarks.micro [BATCH MICRO_BATCH float32|float64]`.

Three steps of each, batch norms fixed so that no image knows of another: the largest difference between the weights,
and the time, which a second forward should raise by a third (backward costs about two forwards).
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch

from benchmarks.memory import configured
from simclr import device as devices
from simclr.model import Network
from simclr.train.step import Training, train_step, training_of

STEPS = 3


def main(batch: int = 4096, micro_batch: int = 256, dtype: str = "float32") -> None:
    device = devices.resolve("auto")
    images = torch.randint(
        256, (STEPS, batch, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    trainings, times = [], []
    for size in (batch, micro_batch):
        config = configured("resnet18", "stride2", 0.25, 32, batch, size, "fp32", "sgd")
        model = Network(config.model, 32, 0, (0.5,) * 3, (0.5,) * 3).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.to(getattr(torch, dtype))
        training = training_of(config, model, torch.float32, "")
        training.model.eval()
        training.group = None
        trainings.append(training)
        times.append([0.0] * STEPS)
    for step in range(STEPS):  # in turn
        for training, row in zip(trainings, times, strict=True):
            clock = time.perf_counter()
            train_step(training, images[step].to(device)).tolist()
            row[step] = time.perf_counter() - clock
    whole, parts = trainings
    print(f"{devices.describe(device)}, ResNet-18 of width 0.25, 32 px, {dtype}, batch norms fixed")
    print(f"batch {batch} in one piece: {median(times[0]):.2f} s a step; in {micro_batch}s: {median(times[1]):.2f} s")
    ratio = median(b / a for a, b in zip(*times, strict=True))
    print(f"time: x {ratio:.3f} (theory: 4/3); weights after {STEPS} steps differ by {difference(whole, parts):.1e}")


def difference(a: Training, b: Training) -> float:
    """The largest difference of a weight, relative to the largest of its tensor."""
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return max(((p - q).abs().max() / p.abs().max()).item() for p, q in pairs)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
