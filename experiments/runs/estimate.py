"""Estimate the cost of a run without starting it."""

from __future__ import annotations

from typing import NamedTuple

from experiments.runs.prepare import Prepared
from experiments.runs.snapshots import snapshot_bytes
from experiments.runs.train import memory_remedy
from simclr import device as devices
from simclr import processes
from simclr.build import build_model
from simclr.errors import UserError
from simclr.model import parameter_count
from simclr.train import budget
from simclr.train.loop import timed_steps
from simclr.train.memory import format_bytes


class Estimate(NamedTuple):
    """What a run would take. If several processes share it, memory and micro-batch are those of each."""

    prepared: Prepared
    micro_batch: int
    memory: int  # predicted bytes at the peak
    parameters: int
    seconds_per_step: float  # measured
    snapshot_bytes: int  # of the snapshots that are kept

    @property
    def seconds(self) -> float:
        """Training time of the whole run."""
        return self.seconds_per_step * self.prepared.steps.total


def estimate(prepared: Prepared) -> Estimate:
    """Predict memory, and time a few training steps. Raises UserError if the machine doesn't have enough memory."""
    config, plan, peak = prepared.fitted, prepared.plan, prepared.peak
    here = processes.on_this_machine()
    if plan is None and here * peak > (available := devices.system_memory()):
        raise UserError(
            f"{config.name} needs {format_bytes(here * peak)} of memory and this machine has "
            f"{format_bytes(int(available))}: add --memory (such as --memory 8GiB) to compute each batch in "
            f"micro-batches that fit"
        )
    with devices.memory_errors(memory_remedy(config)):
        seconds = timed_steps(
            config, prepared.data, prepared.device, images_on_device=plan is not None and plan.images_on_device
        )
    model = build_model(config, prepared.data, prepared.device)
    kept = snapshot_bytes(config, model)
    return Estimate(prepared, budget.micro_batches(config)[-1], peak, parameter_count(model), seconds, kept)
