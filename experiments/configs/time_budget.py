"""Presets with a time budget: choose what to train, and for how many epochs, by this machine's speed."""

from __future__ import annotations

import time
from hashlib import blake2b

import numpy as np
import torch

from experiments.configs.resolve import Choice, TimeBudget, changed
from experiments.tracking.store import Store
from simclr import device as devices
from simclr.build import check_images
from simclr.config import Config
from simclr.data.dataset import Dataset, open_dataset, source_of, stored_side
from simclr.data.source import Source
from simclr.data.sources import image_side
from simclr.errors import BadSettings, UserError
from simclr.progress import SILENT, Observer
from simclr.train import budget, memory
from simclr.train.loop import count_steps, timed_steps
from simclr.weights.checkpoint import checkpoints

TRAINING_SHARE = 0.9  # share of the time for training steps. The rest: kNN, checkpoints, variation of the speed
MAX_SPEEDUP = 30  # a GPU may reach this many times as many FLOP/s on a large network as on a small one


def choose_config(
    config: Config,
    asked: TimeBudget,
    store: Store,
    *,
    resume: bool = False,
    again: bool = False,
    observer: Observer = SILENT,
) -> tuple[Config, str]:
    """The config to train on this machine, and a hash of the request, which its run gets as the tag `request`.

    Takes the first choice whose epochs fit into the time that is left after its images are decoded, or else the last
    choice, and trains it for as many epochs as fit. Skips choices with images larger than the files, with a batch
    larger than the data set, and those that don't fit into memory.

    A run of the same request that has finished or has a checkpoint keeps its config. With `resume` only one with a
    checkpoint counts, with `again` none does. Raises UserError if not even one epoch fits.
    """
    start, seconds = time.monotonic(), asked.hours * 3600 * TRAINING_SHARE

    def seconds_left() -> float:
        return seconds - (time.monotonic() - start)

    source = source_of(config.data, store.folder, observer)
    machine = devices.describe(devices.resolve(config.device)), config.memory
    stated = config.key(config.train.precision)  # as in earlier versions, whose runs are thus found
    text = repr((stated, asked.model_dump_json(), source.fingerprint, machine))
    request = blake2b(text.encode(), digest_size=8).hexdigest()
    if (earlier := _earlier_choice(config, asked, store, request, resume=resume, again=again)) is not None:
        return earlier, request

    *preferred, last = asked.choices
    fallback = _apply(config, last)
    images = len(open_dataset(fallback.data, store.folder, observer).parts["pretrain"])
    largest = _largest_side(config, asked, source)
    fallback_speed = seconds_per_image(fallback)
    flop_per_second = memory.flops(fallback, 0) / fallback_speed
    for choice in preferred:
        candidate, left = _apply(config, choice), seconds_left()
        if stored_side(candidate.data) > largest or candidate.train.batch_size > images:
            continue
        if memory.flops(candidate, 0) / (MAX_SPEEDUP * flop_per_second) * images * choice.epochs > left:
            continue  # too slow even at the highest speed, so it isn't measured
        try:
            speed = seconds_per_image(candidate)
        except (UserError, BadSettings):  # it doesn't fit into memory
            continue
        if speed * images * choice.epochs > left:
            continue
        epoch = _epoch_seconds(candidate, speed, store, observer)
        if (epochs := int(seconds_left() / epoch)) >= choice.epochs:
            return _apply(config, choice, epochs), request
    epoch = _epoch_seconds(fallback, fallback_speed, store, observer)
    if (epochs := int(seconds_left() / epoch)) >= 1:
        return _apply(config, last, epochs), request
    raise UserError(
        f"{asked.hours:g} hours are too short for {config.name}: an epoch takes {epoch:.0f} s here, and decoding and "
        f"measuring took {time.monotonic() - start:.0f} s. Allow more time (--hours) or use fewer images "
        f"(--set data.limit=...)"
    )


def _apply(config: Config, choice: Choice, epochs: int = 1) -> Config:
    return changed(config, {**choice.set, "train.epochs": epochs})


def _earlier_choice(
    config: Config, asked: TimeBudget, store: Store, request: str, *, resume: bool, again: bool
) -> Config | None:
    """The config of the newest run of the same request that the user wants to keep or to resume."""
    if again and not resume:
        return None
    for record in store.records(kind="pretrain", request=request):
        if resume if record.finished else not checkpoints(record.folder):
            continue
        for choice in asked.choices:
            chosen = _apply(config, choice, int(record.params["train.epochs"]))
            if record.is_of(chosen):
                return chosen
    return None


def _largest_side(config: Config, asked: TimeBudget, source: Source) -> int:
    """The largest image side to choose, in pixels: that of the files, or that of the last choice if it is larger."""
    side = stored_side(_apply(config, asked.choices[-1]).data)
    if any(stored_side(_apply(config, choice).data) > side for choice in asked.choices):
        side = max(side, image_side(source.read()))
    return side


def _epoch_seconds(config: Config, speed: float, store: Store, observer: Observer) -> float:
    steps = count_steps(config, open_dataset(config.data, store.folder, observer))
    return speed * steps.per_epoch * config.train.batch_size


def seconds_per_image(config: Config) -> float:
    """How long training takes per image, measured on a few steps with blank images.

    Raises UserError if the network can't process the images or is predicted not to fit into memory, and BadSettings if
    it runs out of memory.
    """
    device, batch, side = devices.resolve(config.device), config.train.batch_size, stored_side(config.data)
    blank = Dataset(
        name="blank",
        images=np.zeros((batch, 3, side, side), np.uint8),
        labels=np.zeros(batch, np.int64),
        classes=(),
        parts={"pretrain": np.arange(batch)},
        digest="",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    check_images(config)
    config, _ = budget.fit_to_device(config, 0, device)
    threads = config.threads if isinstance(config.threads, int) else torch.get_num_threads()
    with devices.memory_errors("use a smaller batch or network"), devices.threads(threads):
        return timed_steps(config, blank, device) / batch
