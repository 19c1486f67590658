"""Pre-training: `pretrain` is the whole loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint, optim
from .augment import Pipeline, apply, draw
from .config import Config, divisors, to_toml
from .data import Dataset
from .device import (
    autocast,
    is_out_of_memory,
    keep_freed_memory,
    release_memory,
    resolve_precision,
    send,
    shares_memory,
)
from .errors import BadSettings, UnusableCheckpoint, UserError
from .knn import knn_accuracy
from .loss import contrast
from .model import SimCLR, batch_norms, build_model, mixes_images, statistics_kept
from .randomness import permutation, subseed

Log = Callable[[dict[str, float], int], None]  # metrics and the number of steps that they describe
Views = Callable[[slice], Tensor]  # both views of some rows of a batch, float 2 x n x 3 x S x S


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """Training was asked to stop; a checkpoint of `step` is on the disk."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def plan(config: Config, data: Dataset) -> tuple[int, int]:
    """(steps in all, steps an epoch). An epoch leaves out the images that don't fill a batch, other ones each time."""
    images, batch = len(data.parts["pretrain"]), config.train.batch_size
    if batch > images:
        raise UserError(
            f"train.batch_size = {batch} is larger than the {images} images to pre-train on: lower --batch-size"
        )
    return images // batch * config.train.epochs, images // batch


def stored_images(data: Dataset, device: torch.device, on_device: bool) -> Tensor:
    """All images as uint8, on the device or the host."""
    images = torch.from_numpy(data.images)
    return images.to(device) if on_device else images


def batch_rows(config: Config, data: Dataset, steps_per_epoch: int, step: int) -> Tensor:
    """The rows of `data.images` that a step trains on: a slice of its epoch's own shuffle."""
    rows, batch = data.parts["pretrain"], config.train.batch_size
    epoch, within = divmod(step, steps_per_epoch)
    order = _epoch_order(len(rows), config.seed, epoch)[within * batch : (within + 1) * batch]
    return torch.from_numpy(rows[order.numpy()])


@lru_cache(maxsize=1)
def _epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    return permutation(n, seed, "order", epoch)


def two_views(images: Tensor, pipelines: tuple[Pipeline, Pipeline], seed: int, step: int) -> Views:
    """Makes both views (2 x n x 3 x S x S) of any rows of a batch (uint8 N x 3 x S x S), by the step's random numbers.

    A row's views do not depend on which rows they are asked for with.
    """
    draws = [draw(ops, len(images), seed, step, view) for view, ops in enumerate(pipelines)]

    def views(rows: slice) -> Tensor:
        some, drawn = images[rows], [{name: u[rows] for name, u in one.items()} for one in draws]
        if pipelines[0] != pipelines[1]:
            return torch.stack([apply(some, *view) for view in zip(pipelines, drawn, strict=True)])
        both = {name: torch.cat([u, drawn[1][name]]) for name, u in drawn[0].items()}  # half the kernels to launch
        return apply(some.repeat(2, 1, 1, 1), pipelines[0], both).unflatten(0, (2, -1))  # type: ignore[no-any-return]

    return views


def embed(model: SimCLR, both: Tensor, views: str) -> Tensor:
    """z of both views, 2 x n x D. `fused`: one forward over both, so batch norm sees 2n images; `split`: one each."""
    if views == "split":
        return torch.stack([model(view)[1] for view in both])
    return model(both.flatten(0, 1))[1].unflatten(0, (2, -1))  # type: ignore[no-any-return]


@dataclass
class Training:
    """A network being trained, and what its steps change: the content of a checkpoint."""

    config: Config
    digest: str  # of the data
    dtype: torch.dtype  # of autocast
    model: SimCLR
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    plateau: optim.Plateau
    micro_batch: int  # images whose activations are held at a time; it never changes what is computed
    group: int | None  # images that go through the network together, where that matters to what comes out
    step: int = 0  # done
    epoch_loss: Tensor | float = 0.0  # sum over the steps of the epoch under way, on the device

    def state(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler", "plateau")}
        identity = {"key": self.config.key(), "digest": self.digest, "dtype": str(self.dtype)}
        identity["config"] = to_toml(self.config)
        return parts | identity | {"step": self.step, "epoch_loss": self.epoch_loss}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state. Raises UserError when it is of another config or other data."""
        if (state.get("key"), state.get("digest")) != (self.config.key(), self.digest):
            raise UnusableCheckpoint(
                "the checkpoint is of another config or other data: resume with the settings it began with"
            )
        if state["dtype"] != str(self.dtype):
            raise UnusableCheckpoint(
                f"the run began in {state['dtype']}, and here it would be in {self.dtype}: go on with it on the device "
                f"that it began on, or --again begins a new one"
            )
        for name in ("model", "optimizer", "scaler", "plateau"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.epoch_loss = state["step"], state["epoch_loss"]


def begin(config: Config, data: Dataset, device: torch.device) -> Training:
    """A training at step 0."""
    if device.type == "cpu":
        keep_freed_memory()
    dtype = resolve_precision(config.train.precision, device)
    return training_of(config, build_model(config, data, device), dtype, data.digest)


def training_of(config: Config, model: SimCLR, dtype: torch.dtype, digest: str) -> Training:
    """A training of a network that is at hand, at step 0."""
    train = config.train
    if batch_norms(model) and train.norm_images() == 1:
        raise UserError(
            f"batch norm needs 2 or more images, and train.norm_batch = {train.norm_batch} leaves groups of 1 in a "
            f"batch of {train.batch_size}: raise it"
        )
    micro_batch = train.batch_size if train.micro_batch == "auto" else train.micro_batch
    return Training(
        config=config,
        digest=digest,
        dtype=dtype,
        model=model.train(),
        optimizer=optim.build(model, config.optim),
        scaler=torch.amp.GradScaler(model.mean.device.type, enabled=dtype == torch.float16),
        plateau=optim.Plateau(config.optim),
        micro_batch=micro_batch,
        group=train.norm_images() if mixes_images(model) else None,
    )


def pieces(rows: slice, size: int | None) -> list[slice]:
    """Rows cut into pieces of a size; in one piece without a size."""
    step = size or rows.stop - rows.start
    return [slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step)]


def embeddings(training: Training, views: Views, rows: slice) -> Tensor:
    """z of both views of some rows of the batch, 2 x n x D, each group of images by itself."""
    config, device, parts = training.config, training.model.mean.device, []
    for group in pieces(rows, training.group):
        # Dropout and stochastic depth, where there are any, draw the same each time that this group is computed.
        torch.manual_seed(subseed(config.seed, "network", training.step, group.start))
        both = views(group)
        with autocast(device, training.dtype):
            parts.append(embed(training.model, both, config.train.views))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def accumulate(training: Training, views: Views) -> Tensor:
    """Adds the gradient of a whole batch's loss to the parameters'; (loss, contrastive top-1, top-5) of the batch.

    A batch of one micro-batch goes forward and backward once. One of several goes by gradient caching (Gao et al.
    2021, arXiv 2101.06983): forward without a graph, the loss's gradient on the embeddings, then each micro-batch
    forward again, with a graph that takes its part of that gradient back to the weights. The sum is the gradient of the
    whole batch, not of losses within micro-batches.
    """
    settings = training.config.loss
    parts = pieces(slice(0, training.config.train.batch_size), training.micro_batch)
    whole = len(parts) == 1
    with torch.set_grad_enabled(whole):
        z = torch.cat([embeddings(training, views, part) for part in parts], 1)
    z.requires_grad_()  # as it does already where it has a graph
    loss, top = contrast(
        z[0], z[1], settings.temperature, normalize=settings.normalize, include_self=settings.include_self
    )
    training.scaler.scale(loss).backward()
    if not whole:
        with statistics_kept(training.model):  # the first pass has updated batch norm's running averages
            for part in parts:
                embeddings(training, views, part).backward(z.grad[:, part])  # type: ignore[index]
    return torch.cat([loss.detach().view(1), top])


def accumulate_within_memory(training: Training, views: Views) -> Tensor:
    """`accumulate`; out of memory, it begins again with the next smaller micro-batch that gives the same gradient."""
    while (smaller := smaller_micro_batch(training)) is not None:
        buffers = [buffer.clone() for buffer in training.model.buffers()]
        try:
            return accumulate(training, views)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        training.micro_batch = smaller
        training.optimizer.zero_grad()
        for buffer, before in zip(training.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        release_memory()
    return accumulate(training, views)


def smaller_micro_batch(training: Training) -> int | None:
    """The largest micro-batch below the training's own that computes the same; None where there is none.

    It divides the batch, and is of whole groups.
    """
    batch, group = training.config.train.batch_size, training.group or 1
    return max((m for m in divisors(batch) if m < training.micro_batch and m % group == 0), default=None)


def train_step(training: Training, images: Tensor) -> Tensor:
    """One step on a batch (uint8 N x 3 x S x S, on the model's device).

    Returns loss, contrastive top-1 and top-5 as one tensor on the device. Nothing here waits for the device, but the
    scaler of float16, which looks for overflow.
    """
    views = two_views(images, training.config.pipelines(), training.config.seed, training.step)
    report = accumulate_within_memory(training, views)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad()
    training.step += 1
    return report


def pretrain(
    config: Config,
    data: Dataset,
    device: torch.device,
    folder: Path,
    log: Log,
    *,
    images_on_device: bool = False,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> SimCLR:
    """Train the network of a config; checkpoints go to `folder`, metrics to `log`.

    `images_on_device` keeps all stored images there. With `resume`, goes on from the newest readable checkpoint in
    `folder`: on the CPU, to the bits it would have had. When `stop()` says so, saves and raises Interrupted. Raises
    RunFailed when the loss is not finite, or when a checkpoint can't be written.
    """
    total, per_epoch = plan(config, data)
    training = begin(config, data, device)
    if resume:
        training.load(checkpoint.latest(folder))
    store, meter = stored_images(data, device, images_on_device), Meter(training, log)
    log_every, saved_at = max(1, per_epoch // 10), time.perf_counter()
    while training.step < total:
        rate = optim.learning_rate(config.optim, config.train.batch_size, training.step, total, per_epoch)
        optim.set_rate(training.optimizer, rate * training.plateau.scale)
        rows = batch_rows(config, data, per_epoch, training.step)
        meter.add(train_step(training, store[send(rows, store.device)].to(device)))

        done = training.step
        epoch, within = divmod(done, per_epoch)
        if within == 0 or (within % log_every == 0 and within + log_every <= per_epoch):  # no short one at the end
            meter.flush()
        if within == 0:
            if config.optim.schedule == "plateau":
                training.plateau.update(float(training.epoch_loss) / per_epoch)
            training.epoch_loss = 0.0
            if config.train.knn_every and (epoch % config.train.knn_every == 0 or done == total) and data.has_labels:
                log({"val/knn_top1": knn_accuracy(training.model, data, training.dtype)}, done)
                meter.restart()
        stopping = stop()
        if stopping or done == total or time.perf_counter() - saved_at > 60 * config.train.checkpoint_minutes:
            meter.flush()
            if not all(p.isfinite().all() for p in training.model.parameters()):
                raise diverged(training, "a weight that is not finite")
            checkpoint.save(folder, done, training.state())
            saved_at = time.perf_counter()
        if stopping and done < total:
            raise Interrupted(done)
    return training.model


def diverged(training: Training, what: str) -> BadSettings:
    """The error for a training whose numbers have left all range. Checkpoints are only ever made of finite weights."""
    return BadSettings(
        f"training diverged, with {what} by step {training.step}: lower --lr (now {training.config.optim.lr:g}), raise "
        f"optim.warmup_epochs, or use --precision fp32; the checkpoints before are kept"
    )


class Meter:
    """Sums what steps report on the device, and logs their mean when it is flushed: the loop's only wait for it."""

    def __init__(self, training: Training, log: Log) -> None:
        self.training, self.log, self.planned = training, log, training.micro_batch
        self.sums = torch.zeros(3, device=training.model.mean.device)
        self.restart()

    def restart(self) -> None:
        self.sums.zero_()
        self.since, self.clock = self.training.step, time.perf_counter()

    def add(self, report: Tensor) -> None:
        self.sums += report
        self.training.epoch_loss = self.training.epoch_loss + report[0]

    def flush(self) -> None:
        """Log the steps since the last flush. Raises RunFailed when their loss is not finite."""
        config, step = self.training.config, self.training.step
        if not (count := step - self.since):
            return
        loss, top1, top5 = (self.sums / count).tolist()
        if not math.isfinite(loss):
            raise diverged(self.training, f"a loss of {loss}")
        metrics = {"train/loss": loss, "train/contrastive_top1": top1, "train/contrastive_top5": top5}
        metrics["train/learning_rate"] = self.training.optimizer.param_groups[0]["lr"]
        metrics["perf/images_per_second"] = count * config.train.batch_size / (time.perf_counter() - self.clock)
        if not shares_memory(self.sums.device):
            metrics["perf/peak_memory_mib"] = torch.accelerator.max_memory_allocated(self.sums.device) / 2**20
        if self.training.micro_batch != self.planned:
            metrics["perf/micro_batch"] = self.training.micro_batch
        self.log(metrics, step)
        self.restart()


def timed_steps(
    config: Config, data: Dataset, device: torch.device, *, images_on_device: bool = False, steps: int = 3
) -> float:
    """Seconds that a step takes: the median of a few, after one to warm up. Changes nothing."""
    training, store = begin(config, data, device), stored_images(data, device, images_on_device)
    _, per_epoch = plan(config, data)
    times = []
    for _ in range(steps + 1):
        clock = time.perf_counter()
        rows = batch_rows(config, data, per_epoch, training.step)
        train_step(training, store[send(rows, store.device)].to(device)).tolist()
        times.append(time.perf_counter() - clock)
    return sorted(times[1:])[steps // 2]
