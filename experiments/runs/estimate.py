"""Estimate the cost of a run without starting it."""

from __future__ import annotations

from typing import Any

from experiments.runs.train import _enough_memory
from experiments.tracking import Store
from simclr import device as devices
from simclr.build import build_model, check_images
from simclr.config import Config
from simclr.data.dataset import open_dataset
from simclr.errors import UserError
from simclr.model import parameter_count
from simclr.progress import SILENT, Observer
from simclr.train import budget, memory
from simclr.train.loop import count_steps, timed_steps


def estimate(config: Config, store: Store, observer: Observer = SILENT) -> dict[str, Any]:
    """What a run would be, without starting one: steps, parameters, memory, and the time by a few timed steps.

    Raises UserError where it would take more than all of the system's memory.
    """
    device = devices.resolve(config.device)
    data = open_dataset(config.data, store.folder, observer)
    steps, per_epoch = count_steps(config, data)
    check_images(config)
    config, fitted = budget.fit(config, len(data.images), device)
    peak = budget.peak(config, fitted, device)
    if fitted is None and peak > (there := devices.system_memory()):
        raise UserError(
            f"{config.name} needs {memory.gib(peak)} and this machine has {memory.gib(int(there))}: with "
            f"--memory (e.g. 8GiB) it goes in micro-batches that fit"
        )
    with _enough_memory(config):
        seconds = timed_steps(config, data, device, images_on_device=fitted is not None and fitted.on_device)
    return {
        "config": config,
        "micro_batch": budget.micro_batches(config)[-1],
        "memory": peak,
        "images": len(data.parts["pretrain"]),
        "steps": steps,
        "steps_per_epoch": per_epoch,
        "parameters": parameter_count(build_model(config, data, device)),
        "device": devices.describe(device),
        "seconds_per_step": seconds,
        "seconds": seconds * steps,
    }
