"""What a training step costs: time and operations, measured in real steps that save and log nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.train.loop import load_batches
from simclr.train.step import start_training, train_step


def count_flops(config: Config, data: Dataset, device: torch.device) -> int:
    """Floating-point operations of a training step: of all its matrix products and convolutions.

    They are counted in a real step, with the loss and the optimizer, so that configs of any method can be trained at
    equal cost. `memory.flops` only predicts those of the network, without data and at once.
    """
    eager = config.train.model_copy(update={"compile": False})  # whose operations can be counted
    training = start_training(config.model_copy(update={"train": eager}), data, device)
    with FlopCounterMode(display=False) as counter:
        train_step(training, *next(load_batches(config, data, device, images_on_device=False)))
    return int(counter.get_total_flops())


def timed_steps(
    config: Config,
    data: Dataset,
    device: torch.device,
    *,
    images_on_device: bool = False,
    steps: int = 3,
    seconds: float = math.inf,
) -> float:
    """The median number of seconds that a training step takes, over `steps` steps after one that is not counted.

    Once more than `seconds` have passed, no further step begins, but at least one is counted.
    """
    timed = step_timer(config, data, device, images_on_device=images_on_device)
    times = [timed(), timed()]
    while len(times) <= steps and sum(times) <= seconds:
        times.append(timed())
    return median(times[1:])


def step_timer(
    config: Config, data: Dataset, device: torch.device, *, images_on_device: bool = False
) -> Callable[[], float]:
    """A function that does the next step of a training of its own, and returns the seconds that this took."""
    training = start_training(config, data, device)
    batches = load_batches(config, data, device, images_on_device)

    def timed() -> float:
        clock = time.perf_counter()
        train_step(training, *next(batches)).tolist()
        return time.perf_counter() - clock

    return timed
