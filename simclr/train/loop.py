"""Pre-training: `pretrain` is the whole loop."""

from __future__ import annotations

import math
import time
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from simclr import optim
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.device import (
    send,
    shares_memory,
)
from simclr.errors import UserError
from simclr.evaluate.knn import knn_accuracy
from simclr.model import Network
from simclr.progress import SILENT, Observer
from simclr.randomness import permutation
from simclr.train.step import Training, begin, diverged, train_step
from simclr.weights import checkpoint


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """Training was asked to stop; a checkpoint of `step` is on the disk."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def count_steps(config: Config, data: Dataset) -> tuple[int, int]:
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


def pretrain(
    config: Config,
    data: Dataset,
    device: torch.device,
    folder: Path,
    observer: Observer = SILENT,
    *,
    images_on_device: bool = False,
    resume: bool = False,
) -> Network:
    """Train the network of a config; checkpoints go to `folder`, metrics to the observer.

    `images_on_device` keeps all stored images there. With `resume`, goes on from the newest readable checkpoint in
    `folder`: on the CPU, to the bits it would have had. When the observer asks to stop, saves and raises Interrupted. Raises
    RunFailed when the loss is not finite, or when a checkpoint can't be written.
    """
    total, per_epoch = count_steps(config, data)
    training = begin(config, data, device)
    if resume:
        training.load(checkpoint.latest(folder))
    store, meter = stored_images(data, device, images_on_device), Meter(training, observer)
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
                observer.metrics({"val/knn_top1": knn_accuracy(training.model, data, training.dtype)}, done)
                meter.restart()
        stopping = observer.stop()
        if stopping or done == total or time.perf_counter() - saved_at > 60 * config.train.checkpoint_minutes:
            meter.flush()
            if not all(p.isfinite().all() for p in training.model.parameters()):
                raise diverged(training, "a weight that is not finite")
            checkpoint.save(folder, done, training.state())
            saved_at = time.perf_counter()
        if stopping and done < total:
            raise Interrupted(done)
    return training.model


class Meter:
    """Sums what steps report on the device, and logs their mean when it is flushed: the loop's only wait for it."""

    def __init__(self, training: Training, observer: Observer) -> None:
        self.training, self.observer, self.planned = training, observer, training.micro_batch
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
        self.observer.metrics(metrics, step)
        self.restart()


def timed_steps(
    config: Config, data: Dataset, device: torch.device, *, images_on_device: bool = False, steps: int = 3
) -> float:
    """Seconds that a step takes: the median of a few, after one to warm up. Changes nothing."""
    training, store = begin(config, data, device), stored_images(data, device, images_on_device)
    _, per_epoch = count_steps(config, data)
    times = []
    for _ in range(steps + 1):
        clock = time.perf_counter()
        rows = batch_rows(config, data, per_epoch, training.step)
        train_step(training, store[send(rows, store.device)].to(device)).tolist()
        times.append(time.perf_counter() - clock)
    return sorted(times[1:])[steps // 2]
