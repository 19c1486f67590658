"""How right the predicted memory is: `python -m benchmarks.memory`.

For each of CONFIGS the peak that `simclr.memory` predicts and the one of a real training step: on a GPU what its
allocator says, on a CPU the sum of the profiler's allocations (with the foreach optimizers of a GPU).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from simclr import device as devices
from simclr.config import Config, make
from simclr.data.dataset import stored_side
from simclr.model import Network
from simclr.train.memory import MIB, predict
from simclr.train.step import train_step, training_of

# Backbone, stem, width, image side, batch, micro-batch, precision, optimizer.
CONFIGS: list[tuple[str, str, float, int, int, int, str, str]] = [
    ("resnet18", "cifar", 1.0, 32, 64, 64, "bf16", "sgd"),
    ("resnet18", "cifar", 1.0, 32, 64, 16, "bf16", "sgd"),
    ("resnet18", "cifar", 0.5, 32, 128, 128, "fp32", "adamw"),
    ("resnet18", "stride2", 0.5, 32, 256, 256, "bf16", "adamw"),
    ("resnet18", "stride2", 0.5, 32, 256, 64, "bf16", "adamw"),
    ("resnet18", "imagenet", 1.0, 96, 64, 64, "bf16", "lars"),
    ("resnet18", "imagenet", 1.0, 224, 16, 8, "bf16", "lars"),
    ("resnet50", "cifar", 0.5, 32, 64, 32, "bf16", "lars"),
    ("resnet50", "cifar", 0.25, 32, 64, 64, "fp32", "adamw"),
    ("resnet50", "stride2", 1.0, 64, 32, 32, "bf16", "lars"),
    ("resnet50", "imagenet", 1.0, 64, 32, 16, "fp32", "sgd"),
    ("resnet50", "imagenet", 0.5, 224, 16, 8, "bf16", "adamw"),
    ("vit_b_32", "imagenet", 1.0, 64, 16, 8, "fp32", "adamw"),
    ("mobilenet_v2", "imagenet", 1.0, 96, 32, 32, "bf16", "sgd"),
    ("resnet18", "stride2", 0.25, 32, 4096, 256, "bf16", "adamw"),
    ("resnet10", "stride2", 0.5, 32, 256, 256, "bf16", "muon"),
]


def configured(
    backbone: str, stem: str, width: float, side: int, batch: int, micro_batch: int, precision: str, optimizer: str
) -> Config:
    return make(
        {
            "data": {"dataset": "folder", "side": side},
            "model": {"backbone": backbone, "stem": stem, "width": width},
            "optim": {"name": optimizer, "lr": 1e-3},
            "train": {
                "batch_size": batch,
                "micro_batch": micro_batch,
                "norm_batch": min(micro_batch, 256),
                "precision": precision,
            },
        }
    )


def measured(config: Config, device: torch.device) -> int:
    """Bytes at the peak of a real training step."""
    side = config.view_size() or stored_side(config.data)
    model = Network(config.model, side, 0, (0.5,) * 3, (0.5,) * 3).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = training_of(config, model, devices.resolve_precision(config.train.precision, device), "")
    for group in training.optimizer.param_groups:
        group["foreach"] = True
    size = config.train.batch_size, 3, stored_side(config.data), stored_side(config.data)
    images = torch.randint(256, size, dtype=torch.uint8, device=device)
    train_step(training, images)
    standing = [images, *model.parameters(), *model.buffers(), *_tensors(training.optimizer.state)]
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        train_step(training, images)
        return torch.accelerator.max_memory_allocated(device)
    return sum(x.untyped_storage().nbytes() for x in standing) + profiled_peak(lambda: train_step(training, images))


def profiled_peak(function: Callable[[], object]) -> int:
    """Bytes that the CPU's allocator hands out at most at one moment of a call, above what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _tensors(state: Any) -> list[torch.Tensor]:
    return [x for values in state.values() for x in values.values() if isinstance(x, torch.Tensor)]


def main() -> None:
    device = devices.resolve("auto")
    print(f"| {devices.describe(device)} | batch | micro-batch | predicted | measured | ratio |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: |")
    for row in CONFIGS:
        backbone, stem, width, side, batch, micro_batch, precision, optimizer = row
        config = configured(*row)
        guess, truth = sum(predict(config, micro_batch).values()), measured(config, device)
        what = f"{backbone}, {stem} stem, width {width:g}, {side} px, {precision}, {optimizer}"
        figures = f"{guess / MIB:.0f} MiB | {truth / MIB:.0f} MiB | {guess / truth:.3f}"
        print(f"| {what} | {batch} | {micro_batch} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
