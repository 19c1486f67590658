"""Plan how a run fits into an accelerator's memory: the largest micro-batch that does, or what to change if none does.

The memory of a training step's tensors is predicted (`simclr.train.memory`). For what can only be measured on an
accelerator (its context, the workspaces of its convolutions, fragmentation), there are named reserves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from simclr import processes
from simclr.config import Config, divisors
from simclr.data.dataset import stored_side
from simclr.device import precision_on, release_memory, shares_memory
from simclr.errors import UserError
from simclr.model import RESNETS
from simclr.settings import memory_bytes
from simclr.train.memory import MIB, format_bytes, predict, predict_knn

# The card to plan for when no GPU is present, and what of it a run can't use. This code has not run on that card, so
# these are estimates.
RTX_4060 = 8188 * MIB
DESKTOP = 600 * MIB  # typical of desktops with such a card; 15 MiB without a screen
CONTEXT = 400 * MIB  # CUDA's context with the kernels that are loaded
SPEED = 10e12  # FLOP/s of training, well under the card's 16-bit peak

# Reserves on any accelerator. On an NVIDIA H200 (torch 2.11), the peaks of the 16 steps of benchmarks/memory.py were
# 65 to 83 MiB above the prediction, and those of five presets 67 to 88, on an H100 too. What the allocator held at
# most, its own waste included, was 75 to 324 MiB above it, within both reserves together. Other cards are expected to
# need about the same, but none has been measured.
EXCHANGE = 512 * MIB  # NCCL's buffers, if several GPUs share a run: an estimate, because NCCL has not been run
WORKSPACES = 256 * MIB  # scratch memory of cuDNN's convolutions and cuBLAS
FRAGMENTATION = 0.05  # the share of the rest that the allocator holds in pieces of the wrong size

STEP, KNN = "a training step", "the kNN accuracies during training"  # when the memory of a run is at its peak


class MemoryBudget(NamedTuple):
    """An accelerator's memory, and what of it a run can't use."""

    total: int
    reserved: dict[str, int]

    @property
    def usable(self) -> int:
        """Bytes that a run's tensors may take."""
        return int((self.total - sum(self.reserved.values())) * (1 - FRAGMENTATION))


def memory_budget(memory: str | None, device: torch.device) -> MemoryBudget:
    """The memory of a GPU, limited to `memory` (such as "6GiB") if given. Without a GPU, that of an RTX 4060."""
    exchange = {"exchange": EXCHANGE} if processes.count() > 1 else {}
    if not shares_memory(device):
        release_memory()
        free, total = torch.accelerator.get_memory_info(device)
        taken = total - free - torch.accelerator.memory_reserved(device)  # by other processes and the context
        if memory and (limit := memory_bytes(memory)) < total - taken:  # others use the rest of the card
            return MemoryBudget(limit, {"workspaces": WORKSPACES} | exchange)
        return MemoryBudget(total, {"taken already": taken, "workspaces": WORKSPACES} | exchange)
    total = memory_bytes(memory) if memory else RTX_4060
    return MemoryBudget(total, {"desktop": DESKTOP, "context": CONTEXT, "workspaces": WORKSPACES} | exchange)


class Peak(NamedTuple):
    """When a run needs most memory, and the predicted bytes of each part then."""

    when: str  # STEP or KNN
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Predicted bytes of all parts."""
        return sum(self.parts.values())


class MemoryPlan(NamedTuple):
    """How a config runs within a memory budget."""

    micro_batch: int
    images_on_device: bool  # whether the stored images are kept there
    parts: dict[str, int]  # predicted bytes at the peak
    when: str = STEP  # when the peak occurs: STEP or KNN

    @property
    def peak(self) -> int:
        """Predicted bytes at the peak of the run."""
        return sum(self.parts.values())


class Images(NamedTuple):
    """The facts about a run's images on which its memory depends."""

    number: int
    labelled: bool = True  # without labels, a run computes no kNN accuracies


def micro_batches(config: Config) -> list[int]:
    """The micro-batches that a config allows, smallest first. None is larger than a process's share of the batch."""
    train = config.train
    sizes = train.micro_batches() if train.micro_batch == "auto" else [train.micro_batch]
    return sorted({min(size, train.batch_size // processes.count()) for size in sizes})


def smallest_peak(config: Config) -> int:
    """Predicted memory of a config in the smallest micro-batches, in bytes."""
    return sum(predict(config, micro_batches(config)[0]).values())


def can_share(config: Config) -> bool:
    """Whether all processes can get the same number of groups of images that share batch norm."""
    return config.train.batch_size // config.train.norm_images() % processes.count() == 0


def check_share(config: Config) -> None:
    """Raise UserError if not all processes can get the same number of groups of images that share batch norm."""
    if can_share(config):
        return
    count, batch, group = processes.count(), config.train.batch_size, config.train.norm_images()
    fewer = max(n for n in divisors(batch // group) if n < count)
    smaller = max((d for d in divisors(group) if d > 1 and batch // d % count == 0), default=None)
    raise UserError(
        f"{count} processes can't share a batch of {batch}, which batch norm divides into {batch // group} of {group} "
        f"images: start {fewer}" + (f", or set train.norm_batch={smaller}, which changes the result" if smaller else "")
    )


def check_devices(config: Config, device: torch.device) -> None:
    """Raise UserError if the processes on this machine can't have a device each."""
    if (count := processes.count()) == 1:
        return
    if device.index is not None:
        raise UserError(
            f"--device {config.device} is one device, but {count} processes need one each: use --device {device.type}"
        )
    if device.type == "mps":
        raise UserError(f"{count} processes can't share Apple's GPU: start one, or add --device cpu")
    here = processes.on_this_machine()
    if not shares_memory(device) and here > (gpus := torch.accelerator.device_count()):
        raise UserError(f"{here} processes need as many GPUs, but this machine has {gpus}: start {gpus}")


def plan_memory(config: Config, images: Images, budget: MemoryBudget) -> MemoryPlan:
    """The largest micro-batch that fits. The stored images stay on the device if there is room for them as well.

    kNN during training must fit too. Raises UserError if none fits, with the nearest change that would.
    """
    if budget.usable <= 0:
        reserved = ", ".join(f"{what} {format_bytes(size)}" for what, size in budget.reserved.items())
        total = sum(budget.reserved.values())
        raise UserError(
            f"{format_bytes(budget.total)} of memory is too little: {format_bytes(total)} are reserved ({reserved}). "
            f"Set --memory above {total / 2**30:.2f}GiB, or free memory on the device"
        )
    stored = images.number * 3 * stored_side(config.data) ** 2
    predicted = _predict_until_full(config, micro_batches(config), images, budget.usable)
    for micro_batch, peak in reversed(predicted.items()):
        for on_device in (True, False):
            if peak.total + stored * on_device <= budget.usable:
                return MemoryPlan(micro_batch, on_device, peak.parts | {"data": stored * on_device}, peak.when)
    step = sum(predict(config, micro_batch).values())
    if step <= budget.usable:
        raise UserError(
            f"{config.name} needs {format_bytes(peak.total)} for kNN accuracies during training, but a run may use "
            f"{format_bytes(budget.usable)} of {format_bytes(budget.total)}: --set train.knn_every=0 leaves them out"
        )
    raise UserError(
        f"{config.name} needs {format_bytes(step)} in micro-batches of {micro_batch}, but a run may use "
        f"{format_bytes(budget.usable)} of {format_bytes(budget.total)}: {_remedy(config, images, budget)}"
    )


def predict_run(config: Config, micro_batch: int, images: Images) -> Peak:
    """The peak of a run on an accelerator, without its stored images: of a training step, or of kNN if that is more."""
    peaks = [Peak(STEP, predict(config, micro_batch))]
    if config.train.knn_every and images.labelled:
        peaks.append(Peak(KNN, predict_knn(config, images.number)))
    return max(peaks, key=lambda peak: peak.total)


def fit_to_device(config: Config, images: Images, device: torch.device) -> tuple[Config, MemoryPlan | None]:
    """The config with the micro-batch that it runs in on a device, and the plan behind it.

    If the device uses the system's memory, as a CPU does, the config is unchanged and there is no plan, unless the
    config names a `memory`.
    """
    if shares_memory(device) and config.memory is None:
        return config, None
    plan = plan_memory(config, images, memory_budget(config.memory, device))
    train = config.train.model_copy(update={"micro_batch": plan.micro_batch})
    return config.model_copy(update={"train": train}), plan


def predicted_peak(config: Config, plan: MemoryPlan | None, device: torch.device) -> int:
    """Predicted peak in bytes of what `fit_to_device` returned. Without a plan it is that of a training step."""
    if plan is not None:
        return plan.peak
    own = config.in_precision(precision_on(config.train.precision, device))
    return sum(predict(own, micro_batches(own)[-1]).values())


@contextmanager
def limit_memory(memory: str | None, device: torch.device) -> Iterator[None]:
    """A context in which a GPU's allocator takes no more than the budget, so that a run fails before the desktop."""
    if device.type != "cuda":
        yield
        return
    budget = memory_budget(memory, device)
    own = budget.total - sum(budget.reserved.values()) + WORKSPACES  # workspaces come from the allocator
    on_card = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, own / on_card), device.index)  # torch wants an index or None
    torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index)


def peak_table(
    config: Config, images: Images, budget: MemoryBudget, chosen: int
) -> tuple[list[int], dict[int, dict[int, int | None]]]:
    """Predicted peaks of other batches and micro-batches: the sizes of all micro-batches, and {batch: {size: peak}}.

    The batches are the config's, halves and doubles of it. The micro-batches are these sizes, the groups of batch norm
    and the `chosen` one, where they divide the batch. A peak that does not fit is None.
    """
    batch = config.train.batch_size
    table: dict[int, dict[int, int | None]] = {}
    batches = [b for b in (batch // 4, batch // 2, batch, 2 * batch, 4 * batch) if b >= 2]
    sizes = sorted({*batches, config.train.norm_images(), chosen})
    for b in batches:
        own = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": b})})
        if own.train.norm_images() == 1 < config.train.norm_images() or not can_share(own):
            continue  # batch norm has no group of two or more in this batch, or not one for each process
        possible = [m for m in sizes if m in own.train.micro_batches() and m <= b // processes.count()]
        predicted = _predict_until_full(own, possible, images, budget.usable)
        peaks = {m: peak.total for m, peak in predicted.items()}
        table[b] = {m: peaks[m] if peaks.get(m, budget.usable + 1) <= budget.usable else None for m in possible}
    return sorted({m for peaks in table.values() for m in peaks}), table


def _predict_until_full(config: Config, sizes: Iterable[int], images: Images, usable: int) -> dict[int, Peak]:
    """The prediction for each micro-batch, from the smallest up to the first that does not fit.

    Larger ones need more memory, and their prediction takes longer.
    """
    predicted = {}
    for micro_batch in sizes:
        predicted[micro_batch] = predict_run(config, micro_batch, images)
        if predicted[micro_batch].total > usable:
            break
    return predicted


class _Change(NamedTuple):
    """A change to a config, as the user would type it, and the config that it gives."""

    text: str
    config: Config


def _remedy(config: Config, images: Images, budget: MemoryBudget) -> str:
    """What makes a config fit, in words: the nearest change first."""

    def fits(change: _Change) -> bool:
        return predict_run(change.config, micro_batches(change.config)[0], images).total <= budget.usable

    for changes in _changes(config):
        possible = [[change for change in step if can_share(change.config)] for step in changes]
        steps = list(filter(None, possible))
        first = bisect_left(steps, True, key=lambda step: any(map(fits, step)))  # each needs less than the one before
        if first < len(steps):
            return f"{next(filter(fits, steps[first])).text} would fit"
    return "choose a smaller --backbone or smaller images (data.side, augment.crop.size)"


def _changes(config: Config) -> list[list[list[_Change]]]:
    """Changes that save memory, nearest first: rows of ever larger steps, each step a list of alternatives."""
    train, model, is_resnet = config.train, config.model, config.model.backbone in RESNETS
    auto = train.model_copy(update={"micro_batch": "auto"})
    and_auto = "" if train.micro_batch == "auto" else " --micro-batch auto"

    def changed(text: str, **sections: object) -> _Change:
        return _Change(text + and_auto, config.model_copy(update={"train": auto} | sections))

    groups = [size for size in reversed(divisors(train.batch_size)) if 1 < size < train.norm_images()]
    by_group = [
        [changed(f"--set train.norm_batch={size}", train=auto.model_copy(update={"norm_batch": size}))]
        for size in groups
    ]
    by_width, width = [], model.width / 2
    while is_resnet and width >= 0.125:
        by_width.append([changed(f"--set model.width={width:g}", model=model.model_copy(update={"width": width}))])
        width /= 2
    by_batch, batch = [], train.batch_size // 2
    narrow = model.model_copy(update={"width": 0.125})
    while batch >= 2:
        fewer = auto.model_copy(update={"batch_size": batch, "norm_batch": batch})
        step = [changed(f"--batch-size {batch}", train=fewer)]
        if is_resnet:
            step.append(changed(f"--batch-size {batch} --set model.width=0.125", train=fewer, model=narrow))
        by_batch.append(step)
        batch //= 2
    by_auto = [[_Change("--micro-batch auto", config.model_copy(update={"train": auto}))]]
    return [by_auto, by_group, by_width, by_batch]
