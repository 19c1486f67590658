"""What a training step takes of an accelerator's memory, predicted without taking it; and the micro-batch that fits.

The prediction is the step itself on fake tensors, which have shapes and no content, while `Tally` counts what lives at
each moment. It needs no accelerator. What only an accelerator can show (its context, the workspaces of its
convolutions, fragmentation) is a reserve with a name.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .config import Config, divisors, memory_bytes
from .data import stored_side
from .device import precision_on, release_memory, resolve_precision, shares_memory
from .errors import UserError
from .loss import contrast
from .model import RESNETS, SimCLR
from .train import Training, accumulate, embeddings, training_of, two_views

MIB = 2**20
# The card that the suite is made for, and what of it is never a run's. Not measured here: no GPU has run this code.
RTX_4060 = 8188 * MIB
DESKTOP = 600 * MIB  # seen on desktops with such a card; 15 MiB where there is no screen
CONTEXT = 400 * MIB  # an estimate: CUDA's context with the kernels that are loaded
# Of any accelerator, at hand or not.
WORKSPACES = 256 * MIB  # an estimate: scratch memory of cuDNN's convolutions and cuBLAS
SPEED = 10e12  # FLOP/s that training is assumed to reach on an RTX 4060: a guess, well under its peak in 16 bits
FRAGMENTATION = 0.05  # an estimate: the share of the rest that the allocator holds in pieces of the wrong size
SAMPLE = 16  # images that the memory of making views is measured on

PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "views", "data")


class Tally(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside it, by part, while they live; `peak` has the counts of the
    moment when their sum was largest. A tensor is of the part whose function is innermost on the stack.
    """

    def __init__(self, functions: dict[CodeType, str], default: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.functions, self.part = functions, default
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.known: dict[int, tuple[str, int]] = {}  # part and bytes of each storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        new = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.known]
        if new:
            self.count(new, self._asking())
        return out

    def _asking(self) -> str:
        frame = sys._getframe(2)
        while frame.f_back is not None:
            if frame.f_code in self.functions:
                return self.functions[frame.f_code]
            frame = frame.f_back
        return self.part

    def count(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors as of a part from now until they are gone; those that are known move there."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self.known:
                self.live[self.known[key][0]] -= size
            else:
                weakref.finalize(storage, self._gone, key)
            self.known[key] = part, size
            self.live[part] += size
        if self.live.total() > self.peak.total():
            self.peak = self.live.copy()

    def _gone(self, key: int) -> None:
        part, size = self.known.pop(key)
        self.live[part] -= size


def predict(config: Config, micro_batch: int) -> dict[str, int]:
    """Bytes of each of PARTS, but the data, at the peak of a training step. Their sum is the peak.

    As on an accelerator: with an optimizer that updates all parameters at once, and in 16 bits where the precision is
    auto. `optimizer` is its state; `activations` has the gradients of activations too; `views` the batch that they are
    made of.
    """
    batch, side = config.train.batch_size, stored_side(config.data)
    group = min(micro_batch, config.train.norm_images())
    same = config.optim.model_copy(update={"lr": 1.0, "warmup_epochs": 0.0})
    train = config.train.model_copy(
        update={"batch_size": micro_batch, "micro_batch": "auto", "norm_batch": group, "epochs": 1}
    )
    alike = {"name": "", "seed": 0, "device": "cpu", "memory": None, "optim": same, "train": train}
    network = _network(config.model_copy(update=alike), whole=micro_batch == batch)
    standing, peak, images = network.standing, network.peak, Counter({"views": batch * 3 * side**2})
    if micro_batch < batch:
        held, at_loss = _loss(network.z, batch, config.loss.normalize)
        # `held` waits while the micro-batches go by. Before them, at the loss, there are no gradients yet.
        peak, before = peak + held, standing + at_loss
        if before.total() > peak.total():
            peak = before
    return {part: (peak + images)[part] for part in PARTS}


class _Network(NamedTuple):
    standing: Counter[str]  # what always lives
    peak: Counter[str]
    z: tuple[int, torch.dtype]  # width of an embedding, and its type (of a part of a batch)


@lru_cache(maxsize=256)
def _network(config: Config, whole: bool) -> _Network:
    """Of a micro-batch, which is the config's batch: with its own loss if it is the `whole` batch, else with the
    gradients of the micro-batches before it.
    """
    side, batch = config.view_size() or stored_side(config.data), config.train.batch_size
    making = _making(config)

    def views(rows: slice) -> Tensor:
        images = rows.stop - rows.start
        torch.empty(round(making * images), dtype=torch.uint8)
        return torch.empty(2, images, 3, side, side)

    functions = {views.__code__: "views", contrast.__code__: "loss"}
    model = SimCLR(config.model, side, config.seed, (0.5,) * 3, (0.5,) * 3)
    model.to(memory_format=torch.channels_last)
    fake = FakeTensorMode()
    for module in model.modules():
        module._parameters.update(
            {k: nn.Parameter(fake.from_tensor(p.data)) for k, p in module._parameters.items() if p is not None}
        )
        module._buffers.update({k: fake.from_tensor(b) for k, b in module._buffers.items() if b is not None})
    with fake, Tally(functions, "weights") as tally:
        tally.count([*model.parameters(), *model.buffers()], "weights")
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda p: tally.count([p.grad], "gradients"))
        precision = "bf16" if config.train.precision == "auto" else config.train.precision
        dtype = resolve_precision(precision, torch.device("cpu"))
        training = training_of(config, model, dtype, "")
        training.scaler = torch.amp.GradScaler("cpu", enabled=False)  # it would look at values
        _update(training, tally)
        standing = tally.peak = tally.live.copy()
        tally.part = "activations"
        width = 0
        if whole:
            accumulate(training, views)
        else:
            _zero_gradients(model, tally)
            z = embeddings(training, views, slice(0, batch))
            width, dtype = z.shape[2], z.dtype
            z.backward(torch.empty_like(z))
            del z
        peak = tally.peak
        tally.peak = tally.live.copy()
        _update(training, tally)
    return _Network(standing, max(peak, tally.peak, key=Counter.total), (width, dtype))


def _zero_gradients(model: SimCLR, tally: Tally) -> None:
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
        tally.count([p.grad], "gradients")


def _update(training: Training, tally: Tally) -> None:
    """A step of the optimizer, whose state is there from now on."""
    tally.part = "optimizer"
    for group in training.optimizer.param_groups:
        group["foreach"] = True
    if all(p.grad is None for p in training.model.parameters()):
        _zero_gradients(training.model, tally)
    training.optimizer.step()
    training.optimizer.zero_grad()


@lru_cache(maxsize=256)
def _loss(z: tuple[int, torch.dtype], batch: int, normalize: bool) -> tuple[Counter[str], Counter[str]]:
    """What of a batch's loss is held while its micro-batches go by (embeddings and their gradient), and its peak."""
    with FakeTensorMode(), Tally({}, "loss") as tally:
        embedded = torch.empty(2, batch, z[0], dtype=z[1], requires_grad=True)
        contrast(embedded[0], embedded[1], 1.0, normalize=normalize)[0].backward()
        return tally.live.copy(), tally.peak


def _making(config: Config) -> float:
    """Bytes for each image at the peak of making both its views, measured on real pixels."""
    side = stored_side(config.data)
    images = torch.zeros(SAMPLE, 3, side, side, dtype=torch.uint8)
    with Tally({}, "views") as tally:
        two_views(images, config.pipelines(), 0, 0)(slice(0, SAMPLE))
    return float(tally.peak.total() / SAMPLE)


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


class Plan(NamedTuple):
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


def flops(config: Config, micro_batch: int) -> int:
    """Floating-point operations of training on one image: both views forward, backward at twice that (as every
    matrix product has two in backward), and forward once more where the batch goes in micro-batches."""
    side = config.view_size() or stored_side(config.data)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = SimCLR(config.model, side, config.seed, (0.5,) * 3, (0.5,) * 3)
        model(torch.empty(2, 3, side, side))  # two views; batch norm needs more than one
    return int(counter.get_total_flops()) * (4 if micro_batch < config.train.batch_size else 3)


def make_plan(config: Config, images: int, limit: Budget) -> Plan:
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
                return Plan(micro_batch, on_device, parts | {"data": stored * on_device})
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


def fit(config: Config, images: int, device: torch.device) -> tuple[Config, Plan | None]:
    """The config with the micro-batch that it is run in on a device, and the plan behind it.

    Where memory is the whole system's, as a CPU's is, all is left as it is unless the config names a `memory`.
    """
    if shares_memory(device) and config.memory is None:
        return config, None
    plan = make_plan(config, images, budget(config.memory, device))
    train = config.train.model_copy(update={"micro_batch": plan.micro_batch})
    return config.model_copy(update={"train": train}), plan


def peak(config: Config, plan: Plan | None, device: torch.device) -> int:
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


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / MIB:.0f} MiB"
