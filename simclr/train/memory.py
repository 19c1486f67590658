"""Predict the memory that a training step needs, without using it."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from simclr.config import Config
from simclr.data.dataset import stored_side
from simclr.device import resolve_precision
from simclr.methods.ntxent import contrast
from simclr.model import Network
from simclr.train.step import Training, accumulate, embeddings, training_of
from simclr.views import two_views

MIB = 2**20


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
    model = Network(config.model, side, config.seed, (0.5,) * 3, (0.5,) * 3)
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


def _zero_gradients(model: Network, tally: Tally) -> None:
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


def flops(config: Config, micro_batch: int) -> int:
    """Floating-point operations of training on one image: both views forward, backward at twice that (as every
    matrix product has two in backward), and forward once more where the batch goes in micro-batches."""
    side = config.view_size() or stored_side(config.data)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = Network(config.model, side, config.seed, (0.5,) * 3, (0.5,) * 3)
        model(torch.empty(2, 3, side, side))  # two views; batch norm needs more than one
    return int(counter.get_total_flops()) * (4 if micro_batch < config.train.batch_size else 3)


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / MIB:.0f} MiB"
