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
from .config import Config, to_toml
from .data import Dataset
from .device import autocast, resolve_precision, send
from .errors import RunFailed, UserError
from .knn import knn_accuracy
from .loss import contrast
from .model import SimCLR, build_model
from .randomness import permutation, subseed

Log = Callable[[dict[str, float], int], None]  # metrics and the number of steps that they describe


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


def stored_images(data: Dataset, device: torch.device) -> Tensor:
    """All images as uint8: on the accelerator when they take at most a quarter of its memory, else on the host."""
    images = torch.from_numpy(data.images)
    if device.type == "cuda" and images.nbytes <= torch.cuda.get_device_properties(device).total_memory / 4:
        return images.to(device)
    return images


def batch_rows(config: Config, data: Dataset, steps_per_epoch: int, step: int) -> Tensor:
    """The rows of `data.images` that a step trains on: a slice of its epoch's own shuffle."""
    rows, batch = data.parts["pretrain"], config.train.batch_size
    epoch, within = divmod(step, steps_per_epoch)
    order = _epoch_order(len(rows), config.seed, epoch)[within * batch : (within + 1) * batch]
    return torch.from_numpy(rows[order.numpy()])


@lru_cache(maxsize=1)
def _epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    return permutation(n, seed, "order", epoch)


def two_views(images: Tensor, pipelines: tuple[Pipeline, Pipeline], seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Both views of a batch (uint8 N x 3 x S x S), as the step's own random numbers make them."""
    n = len(images)
    first, second = (apply(images, ops, draw(ops, n, seed, step, view)) for view, ops in enumerate(pipelines))
    return first, second


def embed(model: SimCLR, first: Tensor, second: Tensor, views: str) -> tuple[Tensor, Tensor]:
    """z of both views. `fused`: one forward over both, so batch norm sees 2N images; `split`: one forward each."""
    if views == "split":
        return model(first)[1], model(second)[1]
    z1, z2 = model(torch.cat([first, second]))[1].chunk(2)
    return z1, z2


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
    step: int = 0  # done
    epoch_loss: float = 0.0  # sum over the steps of the epoch under way

    def state(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler", "plateau")}
        identity = {"key": self.config.key(), "digest": self.digest, "dtype": str(self.dtype)}
        identity["config"] = to_toml(self.config)
        return parts | identity | {"step": self.step, "epoch_loss": self.epoch_loss}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state. Raises UserError when it is of another config or other data."""
        if (state.get("key"), state.get("digest")) != (self.config.key(), self.digest):
            raise UserError("the checkpoint is of another config or other data: resume with the settings it began with")
        if state["dtype"] != str(self.dtype):
            raise UserError(
                f"the run began in {state['dtype']}, and this would be {self.dtype}: set --precision to go on"
            )
        for name in ("model", "optimizer", "scaler", "plateau"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.epoch_loss = state["step"], state["epoch_loss"]


def begin(config: Config, data: Dataset, device: torch.device) -> Training:
    """A training at step 0."""
    model, dtype = build_model(config, data, device), resolve_precision(config.train.precision, device)
    return Training(
        config=config,
        digest=data.digest,
        dtype=dtype,
        model=model,
        optimizer=optim.build(model, config.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        plateau=optim.Plateau(config.optim),
    )


def train_step(training: Training, images: Tensor) -> Tensor:
    """One step on a batch (uint8 N x 3 x S x S, on the model's device).

    Returns loss, contrastive top-1 and top-5 as one tensor on the device. Nothing here waits for the device, but the
    scaler of float16, which looks for overflow.
    """
    config, model, device = training.config, training.model, images.device
    torch.manual_seed(subseed(config.seed, "network", training.step))  # dropout, stochastic depth: where there is any
    first, second = two_views(images, config.pipelines(), config.seed, training.step)
    with autocast(device, training.dtype):
        z1, z2 = embed(model, first, second, config.train.views)
    loss, top = contrast(
        z1, z2, config.loss.temperature, normalize=config.loss.normalize, include_self=config.loss.include_self
    )
    training.scaler.scale(loss).backward()
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad()
    training.step += 1
    return torch.cat([loss.detach().view(1), top])


def pretrain(
    config: Config,
    data: Dataset,
    device: torch.device,
    folder: Path,
    log: Log,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> SimCLR:
    """Train the network of a config; checkpoints go to `folder`, metrics to `log`.

    With `resume`, goes on from the newest readable checkpoint in `folder`: on the CPU, to the bits it would have had.
    When `stop()` says so, saves and raises Interrupted. Raises RunFailed when the loss is not finite, or when a
    checkpoint can't be written.
    """
    total, per_epoch = plan(config, data)
    training = begin(config, data, device)
    if resume:
        training.load(checkpoint.latest(folder))
    store, meter = stored_images(data, device), Meter(training, log)
    log_every, saved_at = max(1, per_epoch // 10), time.perf_counter()
    training.model.train()
    while training.step < total:
        rate = optim.learning_rate(config.optim, config.train.batch_size, training.step, total, per_epoch)
        optim.set_rate(training.optimizer, rate * training.plateau.scale)
        rows = batch_rows(config, data, per_epoch, training.step)
        meter.add(train_step(training, store[send(rows, store.device)].to(device)))

        done = training.step
        epoch, within = divmod(done, per_epoch)
        if within % log_every == 0:
            meter.flush()
        if within == 0:
            if config.optim.schedule == "plateau":
                training.plateau.update(training.epoch_loss / per_epoch)
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


def diverged(training: Training, what: str) -> RunFailed:
    """The error for a training whose numbers have left all range. Checkpoints are only ever made of finite weights."""
    return RunFailed(
        f"training diverged, with {what} by step {training.step}: lower --lr (now {training.config.optim.lr:g}), raise "
        f"optim.warmup_epochs, or use --precision fp32; the checkpoints before are kept"
    )


class Meter:
    """Sums what steps report on the device, and logs their mean when it is flushed: the loop's only wait for it."""

    def __init__(self, training: Training, log: Log) -> None:
        self.training, self.log = training, log
        self.sums = torch.zeros(3, device=training.model.mean.device)
        self.restart()

    def restart(self) -> None:
        self.sums.zero_()
        self.since, self.clock = self.training.step, time.perf_counter()

    def add(self, report: Tensor) -> None:
        self.sums += report

    def flush(self) -> None:
        """Log the steps since the last flush. Raises RunFailed when their loss is not finite."""
        config, step = self.training.config, self.training.step
        if not (count := step - self.since):
            return
        loss, top1, top5 = (self.sums / count).tolist()
        if not math.isfinite(loss):
            raise diverged(self.training, f"a loss of {loss}")
        self.training.epoch_loss += loss * count
        metrics = {"train/loss": loss, "train/contrastive_top1": top1, "train/contrastive_top5": top5}
        metrics["train/learning_rate"] = self.training.optimizer.param_groups[0]["lr"]
        metrics["perf/images_per_second"] = count * config.train.batch_size / (time.perf_counter() - self.clock)
        self.log(metrics, step)
        self.restart()


def timed_steps(config: Config, data: Dataset, device: torch.device, steps: int = 3) -> float:
    """Seconds that a step takes: the median of a few, after one to warm up. Changes nothing."""
    training, store = begin(config, data, device), stored_images(data, device)
    _, per_epoch = plan(config, data)
    times = []
    for _ in range(steps + 1):
        clock = time.perf_counter()
        rows = batch_rows(config, data, per_epoch, training.step)
        train_step(training, store[send(rows, store.device)].to(device)).tolist()
        times.append(time.perf_counter() - clock)
    return sorted(times[1:])[steps // 2]
