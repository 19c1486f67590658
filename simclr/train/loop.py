"""Pre-training: `pretrain` is the whole loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from simclr import optim, processes
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.device import send, shares_memory
from simclr.errors import UserError
from simclr.evaluate.knn import knn_accuracy
from simclr.model import Network
from simclr.progress import SILENT, Observer
from simclr.randomness import permutation
from simclr.train.step import Training, diverged, start_training, train_step
from simclr.weights import checkpoint


class Interrupted(Exception):  # noqa: N818 (it describes what happened)
    """Training was asked to stop. A checkpoint of `step` is on the disk. `where` says of which run, among several."""

    def __init__(self, step: int, where: str = "") -> None:
        super().__init__(f"stopped after step {step}{where}")
        self.step = step


T = TypeVar("T")

MOST_STEPS = 10**9 - 1  # in the names of checkpoints, steps have nine digits


class Steps(NamedTuple):
    """How many steps a run has."""

    total: int
    per_epoch: int


def count_steps(config: Config, data: Dataset) -> Steps:
    """The steps of a run. An epoch leaves out the images that don't fill a batch, different ones each time.

    Raises UserError if a batch is larger than the data, for fewer than two images, and for more than MOST_STEPS.
    """
    images, batch = len(data.parts["pretrain"]), config.train.batch_size
    if images < 2:
        raise UserError(f"{images} image{'s' * (images != 1)} to pre-train on: expected at least 2. Add images")
    if batch > images:
        raise UserError(
            f"train.batch_size = {batch} is larger than the {images} images to pre-train on: lower it, or add images"
        )
    if (total := images // batch * config.train.epochs) > MOST_STEPS:
        raise UserError(
            f"train.epochs = {config.train.epochs} takes {total} steps: lower it to take up to {MOST_STEPS}"
        )
    return Steps(total, images // batch)


def batch_rows(config: Config, data: Dataset, start: int = 0) -> Iterator[Tensor]:
    """The rows of `data.images` that each step trains on, from step `start` on, without end.

    Every epoch has its own order, and a resumed run gets the same rows as one that was never stopped.
    """
    rows, batch, per_epoch = data.parts["pretrain"], config.train.batch_size, count_steps(config, data).per_epoch
    first_epoch, first_step = divmod(start, per_epoch)
    for epoch in count(first_epoch):
        order = rows[permutation(len(rows), config.seed, "order", epoch).numpy()]
        for step in range(first_step if epoch == first_epoch else 0, per_epoch):
            yield torch.from_numpy(order[step * batch : (step + 1) * batch])


def load_batches(
    config: Config, data: Dataset, device: torch.device, images_on_device: bool, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the images (uint8, n x 3 x S x S) and all labels (int64, N) of each step from `start` on.

    Both are on the device. `images_on_device` keeps all stored images there. Otherwise, on CUDA, a thread collects the
    next batch in pinned memory during a step, so that neither the step nor the copy waits for the other.
    """
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    if device.type == "cuda" and not images_on_device:
        for batch, classes in one_ahead(host_batches(images, labels, batch_rows(config, data, start))):
            yield batch.to(device, non_blocking=True), classes.to(device, non_blocking=True)
        return
    images = images.to(device) if images_on_device else images
    for rows in batch_rows(config, data, start):
        own = rows[processes.share(len(rows))]
        yield images[send(own, images.device)].to(device), send(labels[rows], device)


def host_batches(images: Tensor, labels: Tensor, batches: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the images of each batch of rows, and all its labels, on the host. CUDA pins them."""
    pin = torch.cuda.is_available()
    for rows in batches:
        own = rows[processes.share(len(rows))]
        batch = torch.empty(len(own), *images.shape[1:], dtype=images.dtype, pin_memory=pin)
        classes = torch.empty(len(rows), dtype=labels.dtype, pin_memory=pin)
        yield torch.index_select(images, 0, own, out=batch), torch.index_select(labels, 0, rows, out=classes)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items of an endless iterator. A thread makes the next one while one is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items)
        while True:
            item = coming.result()
            coming = thread.submit(next, items)
            yield item


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
    """Train the network of a config. Checkpoints go to `folder`, metrics to the observer.

    Several processes train it together if all of them call this. Only the first reads and writes checkpoints.

    With `resume`, training continues from the newest readable checkpoint in `folder`. On the CPU it ends in the same
    bits as a run that was never stopped, and so do its snapshots, which are in `folder` too. Raises Interrupted, after
    saving a checkpoint, when the observer asks to stop, and RunFailed when the loss is not finite or a file can't be
    written.
    """
    steps = count_steps(config, data)
    training = start_training(config, data, device, resume=resume)
    if resume:
        training.load(processes.first_says(lambda: checkpoint.latest(folder)))
        observer.say(f"resuming {config.run_name()} from step {training.step} of {steps.total}")
    meter, saved_at = Meter(training, observer), time.perf_counter()
    log_every = max(1, steps.per_epoch // 10)
    batches = load_batches(config, data, device, images_on_device, training.step)
    for images, labels in islice(batches, steps.total - training.step):
        rate = optim.learning_rate(config.optim, config.train.batch_size, training.step, *steps)
        optim.set_rate(training.optimizer, rate * training.plateau.scale)
        meter.add(train_step(training, images, labels))

        done = training.step
        epoch, in_epoch = divmod(done, steps.per_epoch)
        if in_epoch == 0 or (in_epoch % log_every == 0 and in_epoch + log_every <= steps.per_epoch):
            meter.flush()  # the last stretch of an epoch is never a short one
        if in_epoch == 0:
            if config.optim.schedule == "plateau":
                training.plateau.update(float(training.epoch_loss) / steps.per_epoch)
            training.epoch_loss = 0.0
            knn_every = config.train.knn_every
            if knn_every and (epoch % knn_every == 0 or done == steps.total) and data.has_labels:
                observer.metrics(knn_accuracy(training.evaluated, data, training.dtype), done)
                meter.restart()
            if config.train.keep_every and epoch % config.train.keep_every == 0 and done < steps.total:
                if processes.is_first():
                    checkpoint.save_snapshot(folder, epoch, training.evaluated, config, data.identity)
                meter.restart()
        stopping = processes.any_says(observer.stop())
        if stopping or done == steps.total or time.perf_counter() - saved_at > 60 * config.train.checkpoint_minutes:
            meter.flush()
            if not all(p.isfinite().all() for p in training.method.parameters()):
                raise diverged(training, "a weight that is not finite")
            if processes.is_first():
                observer.saving(done)
                checkpoint.save(folder, done, training.state())
            saved_at = time.perf_counter()
        if stopping and done < steps.total:
            raise Interrupted(done)
    return training.evaluated


class Meter:
    """Sums what steps report on the device, and logs the means when flushed. Only then does the loop wait for it."""

    def __init__(self, training: Training, observer: Observer) -> None:
        self.training, self.observer, self.planned = training, observer, training.micro_batch
        self.names = [f"train/{name}" for name in ("loss", *training.method.figures)]
        self.sums = torch.zeros(len(self.names), device=training.model.mean.device)
        self.restart()

    def restart(self) -> None:
        """Forget the steps since the last flush, and start the clock again."""
        self.sums.zero_()
        self.since, self.clock = self.training.step, time.perf_counter()

    def add(self, report: Tensor) -> None:
        """Add what a step reports: its loss, then the method's figures."""
        self.sums += report
        self.training.epoch_loss = self.training.epoch_loss + report[0]

    def flush(self) -> None:
        """Log the steps since the last flush. Raises BadSettings if their loss is not finite."""
        config, step = self.training.config, self.training.step
        if not (steps := step - self.since):
            return
        metrics = dict(zip(self.names, (self.sums / steps).tolist(), strict=True))
        if not math.isfinite(metrics["train/loss"]):
            raise diverged(self.training, f"a loss of {metrics['train/loss']}")
        metrics["train/learning_rate"] = self.training.optimizer.param_groups[0]["lr"]
        metrics["perf/images_per_second"] = steps * config.train.batch_size / (time.perf_counter() - self.clock)
        if not shares_memory(self.sums.device):
            metrics["perf/peak_memory_mib"] = torch.accelerator.max_memory_allocated(self.sums.device) / 2**20
        if self.training.micro_batch != self.planned:
            metrics["perf/micro_batch"] = self.training.micro_batch
        self.observer.metrics(metrics, step)
        self.restart()
