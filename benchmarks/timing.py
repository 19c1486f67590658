"""Time a training step, whole and in parts."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from simclr.device import autocast
from simclr.train.step import Training, embed
from simclr.views import batch_views


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def synchronize() -> None:
    """Wait for the accelerator."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Seconds per call, over many calls that the device may overlap, after one to warm up."""
    function()
    synchronize()
    clock = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize()
    return (time.perf_counter() - clock) / repeats


def bare_step(training: Training, both: Tensor, labels: Tensor) -> None:
    """Forward, loss, backward and update on views (2 x N x 3 x S x S) that are ready."""
    with autocast(both.device, training.dtype):
        z = training.method.embed(both)
    training.scaler.scale(training.method.loss(z, labels)[0]).backward()
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad()


def times_in_turn(functions: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round, called one after the other, after two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 2):
        for name, function in functions.items():
            synchronize()
            clock = time.perf_counter()
            function()
            synchronize()
            if round_ >= 2:
                times[name].append(time.perf_counter() - clock)
    return times


def parts_of_a_step(training: Training, images: Tensor, labels: Tensor) -> dict[str, Callable[[], None]]:
    """The parts of a step whose batch is one micro-batch, to be called in this order."""
    config, rows = training.config, slice(0, training.config.train.batch_size)
    state: dict[str, Any] = {}

    def views() -> None:
        state["both"] = batch_views(images, config.pipelines(), config.seed, training.step)(rows)

    def forward() -> None:
        state["z"] = embed(training, lambda some: [state["both"][:, some]], rows)

    def loss() -> None:
        state["loss"] = training.method.loss(state["z"], labels)[0]

    def backward() -> None:
        training.scaler.scale(state["loss"]).backward()

    def optimizer() -> None:
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.optimizer.zero_grad()

    return {"views": views, "forward": forward, "loss": loss, "backward": backward, "optimizer": optimizer}


def count_kernels(functions: dict[str, Callable[[], None]]) -> dict[str, int]:
    """How many kernels and copies each function launches. Empty without CUDA."""
    counts: dict[str, int] = {}
    for name, function in functions.items() if torch.cuda.is_available() else ():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            function()
            synchronize()
        counts[name] = sum(1 for event in profiler.events() or () if event.device_type == DeviceType.CUDA)
    return counts
