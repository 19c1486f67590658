"""One training step: views, forward, loss, backward, optimizer. A batch too large for memory goes in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simclr import optim, processes
from simclr.build import build_model, whiten_stem
from simclr.config import Config, divisors, to_toml
from simclr.data.dataset import Dataset
from simclr.device import (
    autocast,
    full_float32,
    is_out_of_memory,
    keep_freed_memory,
    release_memory,
    resolve_precision,
)
from simclr.errors import BadSettings, UnusableCheckpoint, UserError
from simclr.methods import METHODS
from simclr.methods.average import follow, frozen_copy
from simclr.methods.base import Method
from simclr.model import Network, batch_norms, mixes_images, statistics_in_order, statistics_kept
from simclr.randomness import initial_weights, subseed
from simclr.train.teacher import load_teacher
from simclr.views import batch_views
from simclr.weights.start import load_start

COMPILER = "inductor"  # what torch.compile compiles with
# Most variants of a network to compile. A run needs up to 4, and --threads auto 4 for each number of threads it tries.
MOST_VARIANTS = 64


@dataclass
class Training:
    """A method and its network being trained, and what its steps change: the content of a checkpoint."""

    config: Config
    digest: str  # of the data
    dtype: torch.dtype  # of autocast
    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    plateau: optim.Plateau
    micro_batch: int  # images whose activations are held at a time; it never changes what is computed
    group: int | None  # images that must go through the network together because its output for one depends on the rest
    step: int = 0  # steps done
    epoch_loss: Tensor | float = 0.0  # sum over the steps of the current epoch, on the device

    @property
    def model(self) -> Network:
        """The network being trained."""
        return self.method.network

    @property
    def evaluated(self) -> Network:
        """The network that is evaluated: the average of the one that is trained, if there is one."""
        return self.method.ema or self.method.network

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint holds."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler", "plateau")}
        if own := self.method.own_state():
            parts["method"] = own
        identity = {"key": self.config.key(), "digest": self.digest, "dtype": str(self.dtype)}
        identity["config"] = to_toml(self.config)
        return parts | identity | {"step": self.step, "epoch_loss": self.epoch_loss}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint. Raises UnusableCheckpoint if it belongs to a different config, data or precision."""
        own, given = (self.config.key(), self.digest), (state.get("key"), state.get("digest"))
        if given not in (own, (self.config.key("auto"), self.digest)):  # the latter from an earlier version
            raise UnusableCheckpoint(
                f"the checkpoint belongs to a different config or different data (config {given[0]}, data {given[1]}; "
                f"expected config {own[0]}, data {own[1]}): resume with the settings and images the run started with"
            )
        if state["dtype"] != str(self.dtype):
            raise UnusableCheckpoint(
                f"the run started in {state['dtype']} but would continue in {self.dtype} here: resume it on the device "
                f"it started on, or start over with --again"
            )
        for name in ("model", "optimizer", "scaler", "plateau"):
            getattr(self, name).load_state_dict(state[name])
        self.method.load_own_state(state.get("method", {}))
        self.step, self.epoch_loss = state["step"], state["epoch_loss"]


def start_training(config: Config, data: Dataset, device: torch.device, *, resume: bool = False) -> Training:
    """The training of a config at step 0. Raises UserError if the method needs labels that the data lack.

    With `resume`, a checkpoint will follow, so the weights to start from are neither read nor made from images.
    """
    if device.type == "cpu":
        keep_freed_memory()
    dtype = resolve_precision(config.train.precision, device)
    model = build_model(config, data, device)
    if not resume:
        if config.model.stem == "whitening":
            whiten_stem(model, data)
        load_start(model.encoder, config)
    method = build_method(config, model)
    method.check_labels(torch.from_numpy(data.labels[data.parts["pretrain"]]), data.classes)
    return make_training(config, method, dtype, data.identity)


def make_training(config: Config, method: Method, dtype: torch.dtype, digest: str) -> Training:
    """The training of a method and its network at step 0.

    Raises UserError if batch norm would see single images, or a method that mixes images.
    """
    if config.train.compile:
        compile_network(method.network)
    train, normed = config.train, any(norm.training for norm in batch_norms(method.train()))  # a teacher's is not
    if (normed or method.mixes) and train.norm_images() == 1:
        raise UserError(
            f"{'batch norm' if normed else 'mixing'} needs 2 or more images, and train.norm_batch = {train.norm_batch} "
            f"splits a batch of {train.batch_size} into groups of 1: raise train.norm_batch"
        )
    return Training(
        config=config,
        digest=digest,
        dtype=dtype,
        method=method,
        optimizer=optim.build(method, config.optim),
        scaler=torch.amp.GradScaler(method.network.mean.device.type, enabled=dtype == torch.float16),
        plateau=optim.Plateau(config.optim),
        micro_batch=train.batch_size if train.micro_batch == "auto" else train.micro_batch,
        group=train.norm_images() if method.mixes or mixes_images(method) else None,
    )


def build_method(config: Config, network: Network) -> Method:
    """The method of a config around a network, on its device."""
    kind = METHODS[config.method]
    with initial_weights(config.seed, "method"):  # for layers of the method's own
        method = kind(config.method_settings(), network, fused=config.train.views == "fused")
    if method.takes_teacher:
        teacher, classes, _ = load_teacher(method.settings.teacher)
        method.set_teacher(teacher, classes)
    if config.train.ema is not None:
        method.ema = frozen_copy(network)
    return method.to(network.mean.device)


@full_float32()
def train_step(training: Training, images: Tensor, labels: Tensor) -> Tensor:
    """One step on a batch: the images of this process's share (uint8 n x 3 x S x S), and the labels of all (int64 N).

    Both are on the model's device. Returns the loss and the method's figures as one tensor there. Nothing here waits
    for the device, except that float16's gradient scaler looks for overflow, and what processes exchange.
    """
    views = make_views(training.config, images, training.step)
    with statistics_in_order(training.method), compiler_errors() if training.config.train.compile else nullcontext():
        report = accumulate_within_memory(training, views, labels)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad()
    training.method.after_step()
    if training.method.ema is not None:
        follow(training.method.ema, training.model, training.config.train.ema or 0.0, statistics=True)
    training.step += 1
    return report


def compile_network(network: Network) -> None:
    """Compile a network as a whole, with the random numbers that dropout draws where it is not compiled.

    All networks share their code, of which torch compiles only a limited number of variants: for other shapes, with and
    without gradients, for each number of CPU threads. So those of earlier runs are forgotten, and one more is an error.
    """
    import torch._dynamo  # takes a second to import

    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    network.compile(fullgraph=True, dynamic=False, backend=COMPILER, options={"fallback_random": True})


@contextmanager
def compiler_errors() -> Iterator[None]:
    """A context in which a failure of torch.compile raises UserError with a remedy."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # takes a second to import

    try:
        yield
    except (FailOnRecompileLimitHit, TorchDynamoException) as error:
        reason = " ".join(str(error).strip().split("\n\n")[0].split())
        raise UserError(
            f"train.compile: torch can't compile this network here ({reason}): add --set "
            f"train.compile=false, which trains the same up to rounding, or install what is missing"
        ) from None


Views = Callable[[slice], list[Tensor]]  # makes all views of some rows of a batch, float32 V x n x 3 x S x S each


def make_views(config: Config, images: Tensor, step: int) -> Views:
    """A function that makes the views, and in a second tensor the local crops, of any rows of a share of a batch."""
    whole, local = config.pipelines(), config.local_pipelines()
    batch = len(images) * processes.count()
    share = {"start": processes.share(batch).start, "batch": batch}
    parts = [batch_views(images, whole, config.seed, step, **share)]
    if local:
        parts.append(batch_views(images, local, config.seed, step, first=len(whole), **share))
    return lambda rows: [part(rows) for part in parts]


def accumulate(training: Training, views: Views, labels: Tensor) -> Tensor:
    """Add the gradient of a whole batch's loss to the parameters'. Returns the loss and the method's figures.

    The loss compares the embeddings of all processes, and gives their gradient. Each process takes its share of that
    back to the weights, and the sum over the processes is the gradient of the whole batch's loss. A share of one
    micro-batch goes forward and backward once. A share of several uses gradient caching (Gao et al. 2021, arXiv
    2101.06983): all micro-batches go forward without a graph, and once the gradient of the embeddings is known, each
    goes forward again, with a graph.
    """
    own = processes.share(training.config.train.batch_size)
    parts = split(slice(0, own.stop - own.start), training.micro_batch)
    whole = len(parts) == 1
    with torch.set_grad_enabled(whole):
        z = torch.cat([embed(training, views, part) for part in parts], 1)
    everyones = processes.gather(z.detach(), 1).requires_grad_()
    loss, figures = training.method.loss(everyones, labels)
    training.scaler.scale(loss).backward()
    gradient: Tensor = everyones.grad[:, own]  # type: ignore[index]
    if whole:
        z.backward(gradient)
    else:
        with statistics_kept(training.method):  # the first pass has updated batch norm's running averages
            for part in parts:
                embed(training, views, part).backward(gradient[:, part])
    processes.add_up([p.grad for p in training.method.parameters() if p.grad is not None])
    return torch.cat([loss.detach().view(1), figures])


def embed(training: Training, views: Views, rows: slice) -> Tensor:
    """The method's embeddings (k x n x D) of some rows of the share, each group of images by itself."""
    config, device, parts = training.config, training.model.mean.device, []
    first = processes.share(config.train.batch_size).start
    for group in split(rows, training.group):
        # Dropout and stochastic depth must draw the same numbers each time that this group is computed.
        torch.manual_seed(subseed(config.seed, "network", training.step, first + group.start))
        made = views(group)
        with autocast(device, training.dtype):
            parts.append(_join([training.method.embed(each) for each in made], 0))
    return _join(parts, 1)


def _join(parts: list[Tensor], dimension: int) -> Tensor:
    return torch.cat(parts, dimension) if len(parts) > 1 else parts[0]


def split(rows: slice, size: int | None) -> list[slice]:
    """Rows cut into slices of at most `size`, or one slice if there is no size."""
    step = size or rows.stop - rows.start
    return [slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step)]


def accumulate_within_memory(training: Training, views: Views, labels: Tensor) -> Tensor:
    """`accumulate`. If it runs out of memory, it starts over with the next smaller micro-batch: same gradient."""
    while (smaller := smaller_micro_batch(training)) is not None:
        # What a forward pass changes. Others, such as the queue of MoCo, may be large.
        buffers = [buffer for norm in batch_norms(training.method) for buffer in norm.buffers()]
        copied = copies(buffers)
        try:
            return accumulate(training, views, labels)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        training.micro_batch = smaller
        training.optimizer.zero_grad()
        for buffer, before in zip(buffers, copied, strict=True):
            buffer.copy_(before)
        release_memory()
    return accumulate(training, views, labels)


def copies(tensors: list[Tensor]) -> list[Tensor]:
    """A copy of each tensor. All of one dtype are copied in a single operation, because each step starts with this."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor.flatten())
    rows = {dtype: iter(torch.cat(same).split([len(one) for one in same])) for dtype, same in by_dtype.items()}
    return [next(rows[tensor.dtype]).view(tensor.shape) for tensor in tensors]


def smaller_micro_batch(training: Training) -> int | None:
    """The largest micro-batch below the current one that computes the same, or None if there is none.

    It divides the batch and consists of whole groups. With several processes there is none, because the others would
    wait for an exchange that never happens.
    """
    if processes.count() > 1:
        return None
    batch, group = training.config.train.batch_size, training.group or 1
    return max((m for m in divisors(batch) if m < training.micro_batch and m % group == 0), default=None)


def diverged(training: Training, what: str) -> BadSettings:
    """The error for a training whose numbers are no longer finite. Checkpoints hold only finite weights."""
    return BadSettings(
        f"training diverged, with {what} by step {training.step}: lower optim.lr (now {training.config.optim.lr:g}), "
        f"raise optim.warmup_epochs, or set train.precision=fp32"
    )
