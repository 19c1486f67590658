"""Predict the memory that a training step needs, without using it.

The prediction runs the step itself on fake tensors, which have shapes but no content, and counts what is allocated at
each moment. It needs no accelerator.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from simclr import processes
from simclr.config import Config
from simclr.data.dataset import stored_side
from simclr.device import resolve_precision
from simclr.evaluate.knn import KEPT
from simclr.evaluate.subject import batch_of
from simclr.methods import METHODS
from simclr.methods.base import Method
from simclr.model import Network
from simclr.train.step import Training, accumulate, build_method, embed, make_training, make_views

MIB = 2**20
FEW_PIXELS = 2**14  # of the images of a forward pass that evaluations during training have room for at least
SAMPLE = 16  # images used to measure the memory of making views
PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "views", "data")


class Tally(TorchDispatchMode):
    """Counts the bytes of the tensors allocated inside it, by part, while they live.

    `peak` holds the counts of the moment when their sum was largest. `part` is what allocations currently count as.
    """

    def __init__(self, part: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = part
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.known: dict[int, tuple[str, int]] = {}  # part and bytes of each storage

    @contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """Count what is allocated in this context as `part`."""
        outer, self.part = self.part, part
        try:
            yield
        finally:
            self.part = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        new = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.known]
        if new:
            self.count(new, self.part)
        return out

    def count(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors as `part` from now until they are freed. Those that count already move there."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self.known:
                self.live[self.known[key][0]] -= size
            else:
                weakref.finalize(storage, self._freed, key)
            self.known[key] = part, size
            self.live[part] += size
        if self.live.total() > self.peak.total():
            self.peak = self.live.copy()

    def _freed(self, key: int) -> None:
        part, size = self.known.pop(key)
        self.live[part] -= size


def predict(config: Config, micro_batch: int) -> dict[str, int]:
    """Bytes of each of PARTS except the data at the peak of a training step. Their sum is the peak.

    If several processes share the batch, these are the bytes of each of them.

    The prediction assumes an accelerator: an optimizer that updates all parameters at once, and 16 bits if the
    precision is auto. `optimizer` is the optimizer's state, `activations` includes the gradients of activations, and
    `views` includes the batch that they are made of.
    """
    batch, train, count = config.train.batch_size, config.train, processes.count()
    share = batch // count
    whole = micro_batch == share
    network = _trained_network(config)
    part = network.train.model_copy(
        update={
            "batch_size": batch if whole else micro_batch,
            "norm_batch": min(micro_batch, train.norm_images()),
            "views": train.views,
            "precision": train.precision,
        }
    )
    resting, updating = _optimizer_step(_with_optimizer(config))
    passing, embeddings = _forward_backward(network.model_copy(update={"train": part}), count if whole else 0)
    if count > 1:  # the gradients are added up in a copy
        adding = resting + Counter(gradients=2 * updating["gradients"])
        updating = max(adding, updating, key=Counter.total)
    peak = max(passing + Counter(optimizer=resting["optimizer"]), updating, key=Counter.total)
    if embeddings is not None:
        held, at_loss = _loss(network, embeddings, batch, count)
        # `held` stays while the micro-batches go by. At the loss, before them, there are no gradients yet.
        peak = max(peak + held, resting + at_loss, key=Counter.total)
    peak = peak + Counter(views=share * 3 * stored_side(config.data) ** 2)
    return {name: peak[name] for name in PARTS}


def predict_knn(config: Config, images: int) -> dict[str, int]:
    """Bytes of each of PARTS at the peak of a kNN evaluation of this many images during training.

    The features, as far as they stay on the device, are part of `activations`. So is a forward pass of few images,
    because a batch that doesn't fit is halved. One process keeps 2 * KEPT bytes of features at most: of the bank and of
    the queries. Each of several holds its own share of the bank, those of all processes, and the whole bank.
    """
    resting, _ = _optimizer_step(_with_optimizer(config))
    passing, width = _evaluation_pass(_trained_network(config))
    bank, count = 4 * images * width, processes.count()
    kept = min(bank, 2 * KEPT) if count == 1 else 2 * bank + bank // count
    peak = resting + passing + Counter(activations=kept)
    return {name: peak[name] for name in PARTS}


def _trained_network(config: Config) -> Config:
    """The settings of a config that decide its network, its method, and the copies of both that a run keeps."""
    network = _only(config, "data", "augment", "augment2", "model", "method", METHODS[config.method].section_name)
    return network.model_copy(update={"train": network.train.model_copy(update={"ema": config.train.ema})})


def _with_optimizer(config: Config) -> Config:
    """The settings of a config that decide the memory of its optimizer."""
    optim = config.optim.model_copy(update={"lr": 1.0, "warmup_epochs": 0.0})
    return _trained_network(config).model_copy(update={"optim": optim})


@lru_cache(maxsize=256)
def _evaluation_pass(config: Config) -> tuple[Counter[str], int]:
    """The peak of evaluating few images, without the weights, and the width of their features."""
    fake, method = _fake_method(config)
    side, network = stored_side(config.data), method.network.eval()
    with fake, Tally("activations") as tally, torch.no_grad():
        network.encode(torch.empty(batch_of(network, FEW_PIXELS), 3, side, side))
    return tally.peak, network.features


def _only(config: Config, *sections: str) -> Config:
    """The default config with these sections of another one.

    Steps of a prediction are cached by config, so what they don't depend on must not differ.
    """
    return Config().model_copy(update={name: getattr(config, name) for name in sections})


@lru_cache(maxsize=256)
def _optimizer_step(config: Config) -> tuple[Counter[str], Counter[str]]:
    """What lives between steps, and at the peak of a step of the optimizer."""
    fake, training = _fake_training(config)
    for group in training.optimizer.param_groups:
        group["foreach"] = True
    with fake, Tally("optimizer") as tally:
        tally.count(_state_of(training.method), "weights")
        for _ in range(2):  # the first step creates the optimizer's state
            resting = tally.peak = tally.live.copy()
            _zero_gradients(training.method, tally)
            training.optimizer.step()
            training.optimizer.zero_grad()
        return resting, tally.peak


class _Embeddings(NamedTuple):
    """What a method's embeddings look like."""

    per_image: int
    width: int
    dtype: torch.dtype


@lru_cache(maxsize=256)
def _forward_backward(config: Config, sharing: int) -> tuple[Counter[str], _Embeddings | None]:
    """The peak of forward and backward, without the optimizer's state.

    If `sharing` processes share the config's batch, each share is one micro-batch, and there is the loss of the whole
    batch. If `sharing` is 0, the config's batch is one of several micro-batches. It gives the embeddings that the loss
    needs, and the gradients of the micro-batches before it are there.
    """
    batch = config.train.batch_size
    bytes_per_image = _bytes_of_views(_only(config, "data", "augment", "augment2"))
    fake, training = _fake_training(config)
    method = training.method
    with fake:
        labels = torch.empty(batch, dtype=torch.int64)
    with fake, Tally("activations") as tally:

        def views(rows: slice) -> list[Tensor]:
            images = rows.stop - rows.start
            with tally.counting("views"):
                torch.empty(round(bytes_per_image * images), dtype=torch.uint8)
                return [torch.empty(count, images, 3, side, side) for count, side in config.view_sides()]

        tally.count(_state_of(method), "weights")
        for p in _trained(method):
            p.register_post_accumulate_grad_hook(lambda p: tally.count([p.grad], "gradients"))
        method.loss = tally.counting("loss")(method.loss)  # type: ignore[method-assign]
        if sharing:
            with processes.pretended(sharing):
                accumulate(training, views, labels)
            return tally.peak, None
        _zero_gradients(method, tally)
        with processes.pretended(1):
            z = embed(training, views, slice(0, batch))
        z.backward(torch.empty_like(z))
        return tally.peak, _Embeddings(len(z), z.shape[2], z.dtype)


LARGE_BATCH = 4096  # images; simulating the loss takes time that grows with their square


@lru_cache(maxsize=256)
def _loss(config: Config, z: _Embeddings, batch: int, sharing: int) -> tuple[Counter[str], Counter[str]]:
    """What a batch's loss keeps in memory while its micro-batches are processed (embeddings and their gradient), and
    its peak. `sharing` processes share the batch. Both grow with it, and for some methods with its square, so those of
    large batches follow from smaller ones.
    """
    if batch > LARGE_BATCH:
        sizes = LARGE_BATCH // 4, LARGE_BATCH // 2, LARGE_BATCH
        measured = [_loss(config, z, size, sharing) for size in sizes]
        held, peak = (
            Counter({part: round(_parabola(sizes, [count[part] for count in counts], batch)) for part in counts[-1]})
            for counts in zip(*measured, strict=True)
        )
        return held, peak
    fake, method = _fake_method(config)
    with fake:
        labels = torch.empty(batch, dtype=torch.int64)
    with fake, Tally("loss") as tally, processes.pretended(sharing):
        embeddings = torch.empty(z.per_image, batch, z.width, dtype=z.dtype, requires_grad=True)
        method.loss(embeddings, labels)[0].backward()
        return tally.live.copy(), tally.peak


def _parabola(xs: Sequence[int], ys: Sequence[int], x: int) -> float:
    """The value at `x` of the parabola through three points."""
    (a, b, c), (p, q, r) = xs, ys
    slope = (q - p) / (b - a)
    return p + slope * (x - a) + ((r - q) / (c - b) - slope) / (c - a) * (x - a) * (x - b)


@lru_cache(maxsize=256)
def _bytes_of_views(config: Config) -> float:
    """Bytes for each image at the peak of making its views, measured on real pixels."""
    side = stored_side(config.data)
    images = torch.zeros(SAMPLE, 3, side, side, dtype=torch.uint8)
    with Tally("views") as tally:
        make_views(config, images, 0)(slice(0, SAMPLE))
    return float(tally.peak.total() / SAMPLE)


def _fake_method(config: Config) -> tuple[FakeTensorMode, Method]:
    """The method of a config around its network, with fake parameters and buffers, and the mode to use them in."""
    side, fake = config.view_size() or stored_side(config.data), FakeTensorMode()
    network = Network(config.model, side, config.seed, (0.5,) * 3, (0.5,) * 3)
    method = build_method(config, network.to(memory_format=torch.channels_last))
    for module in method.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(fake.from_tensor(p.detach()), p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake.from_tensor(buffer)
    return fake, method


def _fake_training(config: Config) -> tuple[FakeTensorMode, Training]:
    """The training of a config on fake tensors, and the mode to use them in."""
    fake, method = _fake_method(config)
    precision = "bf16" if config.train.precision == "auto" else config.train.precision
    training = make_training(config, method, resolve_precision(precision, torch.device("cpu")), "")
    training.scaler = torch.amp.GradScaler("cpu", enabled=False)  # a real one would look at values
    return fake, training


def _state_of(method: Method) -> list[Tensor]:
    return [*method.parameters(), *method.buffers()]


def _trained(method: Method) -> list[nn.Parameter]:
    return [p for p in method.parameters() if p.requires_grad]


def _zero_gradients(method: Method, tally: Tally) -> None:
    with tally.counting("gradients"):
        for p in _trained(method):
            p.grad = torch.zeros_like(p)


def flops(config: Config, micro_batch: int) -> int:
    """The number of floating-point operations that training on one image takes, without the loss and the optimizer.

    All views of the image go forward and backward once. If a process divides its share of the batch into micro-batches,
    they go forward twice. `count_flops` counts the operations of a real step instead.
    """
    fake, method = _fake_method(config)
    with fake, FlopCounterMode(display=False) as counter:
        sides = config.view_sides()
        z = [method.embed(torch.empty(views, 2, 3, side, side)) for views, side in sides]  # batch norm needs two images
        forward = counter.get_total_flops()
        torch.cat(z).sum().backward()
    again = forward if micro_batch < config.train.batch_size // processes.count() else 0
    return int(counter.get_total_flops() + again) // 2


def format_bytes(size: float) -> str:
    """Bytes in words, such as 1.50 GiB or 300 MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / MIB:.0f} MiB"
