"""What a training step takes of an accelerator's memory, predicted without taking it; and the micro-batch that fits.

The prediction is the step itself on fake tensors, which have shapes and no content, while `Tally` counts what lives at
each moment. It needs no accelerator. What only an accelerator can show (its context, the workspaces of its
convolutions, fragmentation) is a reserve with a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from simclr.config import Config, divisors
from simclr.data.dataset import stored_side
from simclr.device import precision_on, release_memory, shares_memory
from simclr.errors import UserError
from simclr.model import RESNETS
from simclr.settings import memory_bytes
from simclr.train.memory import MIB, gib, predict

# The card that the suite is made for, and what of it is never a run's. Not measured here: no GPU has run this code.
RTX_4060 = 8188 * MIB


DESKTOP = 600 * MIB  # seen on desktops with such a card; 15 MiB where there is no screen


CONTEXT = 400 * MIB  # an estimate: CUDA's context with the kernels that are loaded


# Of any accelerator, at hand or not.
WORKSPACES = 256 * MIB  # an estimate: scratch memory of cuDNN's convolutions and cuBLAS


SPEED = 10e12  # FLOP/s that training is assumed to reach on an RTX 4060: a guess, well under its peak in 16 bits


FRAGMENTATION = 0.05  # an estimate: the share of the rest that the allocator holds in pieces of the wrong size


class Budget(NamedTuple):
    """An accelerator's memory, and what of it is never a run's."""

    total: int
    reserved: dict[str, int]

    @property
    def usable(self) -> int:
        """Bytes that a run's tensors may take."""
        return int((self.total - sum(self.reserved.values())) * (1 - FRAGMENTATION))


def budget(memory: str | None, device: torch.device) -> Budget:
    """Of the accelerator at hand, or of one with so much `memory`; of an RTX 4060 where there is neither."""
    if not shares_memory(device):
        release_memory()
        free, total = torch.accelerator.get_memory_info(device)
        taken = total - free - torch.accelerator.memory_reserved(device)  # by others, and by the context
        total = min(total, memory_bytes(memory)) if memory else total
        return Budget(total, {"taken already": taken, "workspaces": WORKSPACES})
    total = memory_bytes(memory) if memory else RTX_4060
    return Budget(total, {"desktop": DESKTOP, "context": CONTEXT, "workspaces": WORKSPACES})


class MemoryPlan(NamedTuple):
    """How a config is run within a budget."""

    micro_batch: int
    on_device: bool  # whether the stored images are
    parts: dict[str, int]  # predicted bytes at the peak

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def micro_batches(config: Config) -> list[int]:
    """The micro-batches that a config may be computed in, smallest first."""
    train = config.train
    return train.micro_batches() if train.micro_batch == "auto" else [train.micro_batch]


def _up_to(config: Config, sizes: Iterable[int], usable: int) -> dict[int, dict[str, int]]:
    """The prediction for each micro-batch, from the smallest to the first that takes more than is usable: larger ones
    take more, and as long to predict as they are large.
    """
    predicted = {}
    for micro_batch in sizes:
        predicted[micro_batch] = predict(config, micro_batch)
        if sum(predicted[micro_batch].values()) > usable:
            break
    return predicted


def plan_memory(config: Config, images: int, limit: Budget) -> MemoryPlan:
    """The largest micro-batch that fits, with the stored images (so many) on the accelerator if they fit beside it.

    Raises UserError where none fits, with the nearest change that would.
    """
    if limit.usable <= 0:
        reserved = ", ".join(f"{what} {gib(size)}" for what, size in limit.reserved.items())
        raise UserError(f"of {gib(limit.total)} nothing is left for a run ({reserved}): give more --memory")
    stored = images * 3 * stored_side(config.data) ** 2
    predicted = _up_to(config, micro_batches(config), limit.usable)
    for micro_batch, parts in reversed(predicted.items()):
        need = sum(parts.values())
        for on_device in (True, False):
            if need + stored * on_device <= limit.usable:
                return MemoryPlan(micro_batch, on_device, parts | {"data": stored * on_device})
    raise UserError(
        f"{config.name} needs {gib(need)} in micro-batches of {micro_batch}, and a run may take {gib(limit.usable)} of "
        f"{gib(limit.total)}: {_remedy(config, limit)}"
    )


def grid(config: Config, limit: Budget, chosen: int) -> tuple[list[int], dict[int, dict[int, int | None]]]:
    """What if: for the config's batch, halves and doubles of it, the predicted peak in micro-batches of those sizes, of
    batch norm's groups and of the chosen one, as far as the batch has them; None where it does not fit.
    """
    batch = config.train.batch_size
    table: dict[int, dict[int, int | None]] = {}
    batches = [b for b in (batch // 4, batch // 2, batch, 2 * batch, 4 * batch) if b >= 2]
    sizes = sorted({*batches, config.train.norm_images(), chosen})
    for b in batches:
        own = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": b})})
        if own.train.norm_images() == 1 < config.train.norm_images():
            continue  # batch norm has no group of two or more in this batch
        possible = [m for m in sizes if m in own.train.micro_batches()]
        peaks = {m: sum(parts.values()) for m, parts in _up_to(own, possible, limit.usable).items()}
        table[b] = {m: peaks[m] if peaks.get(m, limit.usable + 1) <= limit.usable else None for m in possible}
    return sorted({m for peaks in table.values() for m in peaks}), table


def fit(config: Config, images: int, device: torch.device) -> tuple[Config, MemoryPlan | None]:
    """The config with the micro-batch that it is run in on a device, and the plan behind it.

    Where memory is the whole system's, as a CPU's is, all is left as it is unless the config names a `memory`.
    """
    if shares_memory(device) and config.memory is None:
        return config, None
    plan = plan_memory(config, images, budget(config.memory, device))
    train = config.train.model_copy(update={"micro_batch": plan.micro_batch})
    return config.model_copy(update={"train": train}), plan


def peak(config: Config, plan: MemoryPlan | None, device: torch.device) -> int:
    """Predicted peak in bytes of what `fit` gave; without a plan, in the precision and micro-batch of a run there."""
    if plan is not None:
        return plan.peak
    precision = precision_on(config.train.precision, device)
    own = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    return sum(predict(own, micro_batches(own)[-1]).values())


@contextmanager
def enforced(memory: str | None, device: torch.device) -> Iterator[None]:
    """A GPU's allocator takes no more than the budget, so that a run is out of memory before the desktop is."""
    if device.type != "cuda":
        yield
        return
    limit = budget(memory, device)
    own = limit.total - sum(limit.reserved.values()) + WORKSPACES  # which come from the allocator
    there = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, own / there), device.index)  # refuses a device without one
    torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index)


def _remedy(config: Config, limit: Budget) -> str:
    """What would fit where a config does not, in words: the nearest change first."""
    train, model = config.train, config.model
    changes = {"--micro-batch auto": train.model_copy(update={"micro_batch": "auto"})}
    for size in (s for s in reversed(divisors(train.batch_size)) if 1 < s < train.norm_images()):
        smaller = {"micro_batch": "auto", "norm_batch": size}
        changes[f"--set train.norm_batch={size}"] = train.model_copy(update=smaller)
    candidates = {what: config.model_copy(update={"train": change}) for what, change in changes.items()}
    width = model.width / 2
    while model.backbone in RESNETS and width >= 0.125:
        narrow = {"model": model.model_copy(update={"width": width}), "train": changes["--micro-batch auto"]}
        candidates[f"--set model.width={width:g}"] = config.model_copy(update=narrow)
        width /= 2
    batch = train.batch_size // 2
    while batch >= 2:  # alone, or with the narrowest of these networks
        few = train.model_copy(update={"batch_size": batch, "micro_batch": "auto", "norm_batch": batch})
        candidates[f"--batch-size {batch}"] = config.model_copy(update={"train": few})
        if model.backbone in RESNETS:
            narrow = {"model": model.model_copy(update={"width": 0.125}), "train": few}
            candidates[f"--batch-size {batch} --set model.width=0.125"] = config.model_copy(update=narrow)
        batch //= 2
    freed = "" if train.micro_batch == "auto" else " --micro-batch auto"
    for what, candidate in candidates.items():
        if sum(predict(candidate, micro_batches(candidate)[0]).values()) <= limit.usable:
            return f"{what}{freed.removeprefix(f' {what}')} would fit"
    return "take a smaller --backbone, or smaller images (data.side, augment.crop.size)"
