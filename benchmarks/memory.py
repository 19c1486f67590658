"""How accurate the predicted memory is: `python -m benchmarks.memory`.

For each of CONFIGS, prints the peak that `simclr.train.memory` predicts and that of a real training step: on a GPU what
its allocator reports, on a CPU the sum of the profiler's allocations (with the foreach optimizers of a GPU).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from simclr import device as devices
from simclr import processes
from simclr.config import Config, make
from simclr.data.dataset import stored_side
from simclr.model import Network
from simclr.train.memory import MIB, predict
from simclr.train.step import Training, build_method, make_training, train_step

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


def make_config(
    backbone: str, stem: str, width: float, side: int, batch: int, micro_batch: int, precision: str, optimizer: str
) -> Config:
    """The config of a row of CONFIGS."""
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


def training_without_data(config: Config, device: torch.device) -> Training:
    """The training of a config at step 0, without opening its data set."""
    side = config.view_size() or stored_side(config.data)
    network = Network(config.model, side, 0, (0.5,) * 3, (0.5,) * 3)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = devices.resolve_precision(config.train.precision, device)
    return make_training(config, build_method(config, network), dtype, "")


def measure_peak(config: Config, device: torch.device) -> int:
    """Bytes at the peak of a real training step."""
    training = training_without_data(config, device)
    for group in training.optimizer.param_groups:
        group["foreach"], group["fused"] = True, False  # as predicted; fused kernels take less
    batch, side = config.train.batch_size, stored_side(config.data)
    images = torch.randint(256, (batch // processes.count(), 3, side, side), dtype=torch.uint8, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    train_step(training, images, labels)  # creates the optimizer's state
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        train_step(training, images, labels)
        return torch.accelerator.max_memory_allocated(device)
    method = training.method
    standing = [images, *method.parameters(), *method.buffers(), *_tensors(training.optimizer.state)]
    held = sum(x.untyped_storage().nbytes() for x in standing)
    return held + profile_peak(lambda: train_step(training, images, labels))


def profile_peak(function: Callable[[], object]) -> int:
    """The most bytes that the CPU's allocator holds at once during a call, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
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
        config = make_config(*row)
        predicted, measured = sum(predict(config, micro_batch).values()), measure_peak(config, device)
        what = f"{backbone}, {stem} stem, width {width:g}, {side} px, {precision}, {optimizer}"
        figures = f"{predicted / MIB:.0f} MiB | {measured / MIB:.0f} MiB | {predicted / measured:.3f}"
        print(f"| {what} | {batch} | {micro_batch} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
