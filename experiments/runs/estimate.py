"""Estimate the cost of a run without starting it."""

from __future__ import annotations

from typing import NamedTuple

from experiments.runs.prepare import Prepared
from experiments.runs.snapshots import snapshot_bytes
from experiments.runs.threads import choose_threads
from experiments.runs.train import memory_remedy
from simclr import device as devices
from simclr import processes
from simclr.build import build_model
from simclr.errors import UserError
from simclr.model import parameter_count
from simclr.train import budget
from simclr.train.cost import timed_steps
from simclr.train.memory import format_bytes


class Estimate(NamedTuple):
    """What a run would take. If several processes share it, memory and micro-batch are those of each."""

    prepared: Prepared
    micro_batch: int
    memory: int  # predicted bytes at the peak
    parameters: int
    seconds_per_step: float  # measured
    seconds_in_fp32: float | None  # the same in float32, where it was asked for
    device: str
    snapshot_bytes: int  # of the snapshots that are kept

    @property
    def seconds(self) -> float:
        """Training time of the whole run."""
        return self.seconds_per_step * self.prepared.steps.total


def estimate(prepared: Prepared, *, in_fp32: bool = False) -> Estimate:
    """Predict memory, and time a few training steps. Raises UserError if the machine doesn't have enough memory.

    `in_fp32` also times steps in float32 on a CPU, where bfloat16 is not always faster, if twice the memory is there.
    """
    config, plan, peak = prepared.fitted, prepared.plan, prepared.peak
    here = processes.on_this_machine()
    if plan is None and here * peak > (available := devices.system_memory()):
        raise UserError(
            f"{config.name} needs {format_bytes(here * peak)} of memory and this machine has "
            f"{format_bytes(int(available))}: add --memory (such as --memory 8GiB) to compute each batch in "
            f"micro-batches that fit"
        )
    on_device = plan is not None and plan.images_on_device
    with devices.memory_errors(memory_remedy(config)), devices.threads(choose_threads(prepared)):
        device = devices.describe(prepared.device)
        seconds, other = timed_steps(config, prepared.data, prepared.device, images_on_device=on_device), None
        in_bf16 = prepared.device.type == "cpu" and config.train.precision == "bf16"
        if in_fp32 and in_bf16 and 2 * here * peak <= devices.system_memory():
            other = timed_steps(config.in_precision("fp32"), prepared.data, prepared.device)
    model = build_model(config, prepared.data, prepared.device)
    kept = snapshot_bytes(config, model)
    micro_batch, parameters = budget.micro_batches(config)[-1], parameter_count(model)
    return Estimate(prepared, micro_batch, peak, parameters, seconds, other, device, kept)
