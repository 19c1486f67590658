"""Presets with a time budget: choose what to train, and for how many epochs, by this machine's speed."""

from __future__ import annotations

import math
import time
from hashlib import blake2b

import numpy as np
import psutil
import torch

from experiments.configs.resolve import Choice, TimeBudget, changed
from experiments.tracking.images import images_changed
from experiments.tracking.store import Record, Store
from simclr import device as devices
from simclr.build import check_images
from simclr.config import Config
from simclr.data.dataset import Dataset, open_dataset, source_of, stored_side
from simclr.data.source import Source
from simclr.data.sources import image_side
from simclr.errors import BadSettings, UserError
from simclr.progress import SILENT, Observer
from simclr.train import budget, memory
from simclr.train.cost import timed_steps
from simclr.train.loop import count_steps
from simclr.weights.checkpoint import checkpoints

TRAINING_SHARE = 0.9  # share of the time for training steps. The rest: kNN, checkpoints, variation of the speed
MEASURING_SHARE = 0.1  # share of the time for measuring the speed. Choices that can't be measured within it are skipped
MEASURED_IMAGES = 32  # in a measured step on a CPU, where the time per image hardly depends on the batch
MEASURING = "measuring the speed"
FEW_STEPS = 100  # below which hardly anything is learned
MAX_SPEEDUP = {"cpu": 8, "cuda": 30}  # a large network may reach so many times as many FLOP/s as a small one


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
    choice, and trains it for as many epochs as fit. A batch larger than the data set is halved if that is allowed.
    Skips choices with images larger than the files, with a batch of their own that is larger than the data set, those
    that don't fit into memory, and those that there is no time to measure.

    A run of the same request that has finished or has a checkpoint keeps its config. With `resume`, only unfinished
    ones count (the newest with a checkpoint, or else the newest); with `again`, none do. Raises UserError if not even
    one epoch fits, and with `resume` if no run is unfinished.
    """
    start = time.monotonic()
    source = source_of(config.data, store.folder, observer)
    machine = devices.describe(devices.resolve(config.device)), config.memory
    stated = config.key(config.train.precision)  # as in earlier versions, whose runs are thus found
    table = asked.model_dump_json(exclude={"smallest_batch"})  # as in earlier versions
    text = repr((stated, table, source.fingerprint, machine))
    request = blake2b(text.encode(), digest_size=8).hexdigest()
    if (earlier := _earlier_choice(config, asked, store, request, resume=resume, again=again)) is not None:
        return earlier, request
    if resume:
        raise _nothing_to_resume(config, asked, store, observer)

    observer.say(f"measuring how fast this machine trains, to choose what fits into {asked.hours:g} hours")
    load, *_ = psutil.getloadavg()
    try:
        chosen = _choose(config, asked, store, _largest_side(config, asked, source), start, observer)
    finally:
        observer.progress(MEASURING, 1, 1)
    steps = count_steps(chosen, open_dataset(chosen.data, store.folder, observer)).total
    for text in _cautions(load, psutil.cpu_count() or 1, steps):
        observer.say(text)
    return chosen, request


def _cautions(load: float, cores: int, steps: int) -> list[str]:
    """What makes a choice for a time budget a poor one: the machine's load before it was measured, or few steps.

    A busy machine may be the reason for few steps, so that no longer time is needed.
    """
    if load > cores:
        return [
            f"this machine was busy when its speed was measured (load {load:.1f} on {cores} cores), so more epochs may "
            f"fit into the time than were chosen: once it is idle, run the command again (with --again after a "
            f"finished run)"
        ]
    few = f"only {steps} steps fit into the time, in which the encoder learns little: allow more --hours"
    return [few] * (steps < FEW_STEPS)


def _choose(config: Config, asked: TimeBudget, store: Store, largest: int, start: float, observer: Observer) -> Config:
    """The choice to train, with images of up to `largest` px. Its time began at `start`."""
    seconds, measured = asked.hours * 3600 * TRAINING_SHARE, 0.0

    def seconds_left() -> float:
        return seconds - (time.monotonic() - start)

    def measure(config: Config) -> float:
        nonlocal measured
        before = time.monotonic()
        try:
            return seconds_per_image(config, seconds * MEASURING_SHARE - measured)
        finally:
            measured += time.monotonic() - before

    *preferred, last = asked.choices
    data = open_dataset(_apply(config, last).data, store.folder, observer)
    images = len(data.parts["pretrain"])
    config = _with_batch(config, asked, images)
    fallback = _apply(config, last)
    count_steps(fallback, data)  # raises for a batch that is too large, before anything is measured
    observer.progress(MEASURING, 0, len(asked.choices))
    fallback_speed = measure(fallback)
    flop_per_second = memory.flops(fallback, 0) / fallback_speed
    speedup = MAX_SPEEDUP.get(devices.resolve(config.device).type, max(MAX_SPEEDUP.values()))
    for number, choice in enumerate(preferred, 1):
        observer.progress(MEASURING, number, len(asked.choices))
        candidate, left = _apply(config, choice), seconds_left()
        if measured >= seconds * MEASURING_SHARE:
            break
        if stored_side(candidate.data) > largest or candidate.train.batch_size > images:
            continue
        if memory.flops(candidate, 0) / (speedup * flop_per_second) * images * choice.epochs > left:
            continue  # too slow even at the highest speed, so it isn't measured
        try:
            speed = measure(candidate)
        except (UserError, BadSettings):  # it doesn't fit into memory
            continue
        if speed * images * choice.epochs > left:
            continue
        epoch = _epoch_seconds(candidate, speed, store, observer)
        if (epochs := int(seconds_left() / epoch)) >= choice.epochs:
            return _apply(config, choice, epochs)
    epoch = _epoch_seconds(fallback, fallback_speed, store, observer)
    if (epochs := int(seconds_left() / epoch)) >= 1:
        return _apply(config, last, epochs)
    spent = time.monotonic() - start
    least = math.ceil((spent + 2 * epoch) / TRAINING_SHARE / 36) / 100
    raise UserError(
        f"{asked.hours:g} hours are too short for {config.name}: an epoch takes {epoch:.0f} s here, and decoding and "
        f"measuring took {spent:.0f} s. Allow --hours {least:g} or more, or use fewer images (--set data.limit=...)"
    )


def _with_batch(config: Config, asked: TimeBudget, images: int) -> Config:
    """The config with a batch of this many images or fewer: half of its own, a quarter and so on, if that is
    allowed."""
    batch = config.train.batch_size
    while asked.smallest_batch is not None and batch > images and batch // 2 >= asked.smallest_batch:
        batch //= 2
    return changed(config, {"train.batch_size": batch}) if batch < config.train.batch_size else config


def _apply(config: Config, choice: Choice, epochs: int = 1) -> Config:
    return changed(config, {**choice.set, "train.epochs": epochs})


def _earlier_choice(
    config: Config, asked: TimeBudget, store: Store, request: str, *, resume: bool, again: bool
) -> Config | None:
    """The config of the newest run of the same request that the user wants to keep or to resume."""
    if again and not resume:
        return None
    records = store.records(kind="pretrain", request=request)
    if resume:
        unfinished = [record for record in records if not record.finished]
        records = sorted(unfinished, key=lambda record: not checkpoints(record.folder))
    for record in records:
        if not resume and not record.finished and not checkpoints(record.folder):
            continue
        if (chosen := _choice_of(record, config, asked)) is not None:
            return chosen
    return None


def _choice_of(record: Record, config: Config, asked: TimeBudget) -> Config | None:
    """The config of a run that the same options gave, if they did."""
    config = _with_batch(config, asked, int(record.params["train.batch_size"]))
    for choice in asked.choices:
        chosen = _apply(config, choice, int(record.params["train.epochs"]))
        if record.is_of(chosen):
            return chosen
    return None


def _nothing_to_resume(config: Config, asked: TimeBudget, store: Store, observer: Observer) -> UserError:
    """Why no run of a request can be resumed."""
    for record in store.records(kind="pretrain"):
        if record.finished or record.name != config.run_name() or not checkpoints(record.folder):
            continue
        if (chosen := _choice_of(record, config, asked)) is None:
            continue
        data = open_dataset(chosen.data, store.folder, observer)
        if record.tags["data_digest"] != data.identity:
            return images_changed(record, data)
        return UserError(
            f"{record.name} ({record.short_id}) is unfinished, but it was started on another machine, with another "
            "--hours or --memory, or before its image files were copied or modified: leave out --resume to start a new "
            "run"
        )
    return UserError(
        "there is no unfinished run with the same options and images on this machine: leave out --resume to start one"
    )


def _largest_side(config: Config, asked: TimeBudget, source: Source) -> int:
    """The largest image side to choose, in pixels: that of the files, or that of the last choice if it is larger."""
    side = stored_side(_apply(config, asked.choices[-1]).data)
    if any(stored_side(_apply(config, choice).data) > side for choice in asked.choices):
        side = max(side, image_side(source.read()))
    return side


def _epoch_seconds(config: Config, speed: float, store: Store, observer: Observer) -> float:
    steps = count_steps(config, open_dataset(config.data, store.folder, observer))
    return speed * steps.per_epoch * config.train.batch_size


def seconds_per_image(config: Config, seconds: float = math.inf) -> float:
    """How long training takes per image, measured on a few steps with blank images, or on one if that and the one to
    warm up take more than `seconds`.

    Raises UserError if the network can't process the images or is predicted not to fit into memory, and BadSettings if
    it runs out of memory.
    """
    device = devices.resolve(config.device)
    check_images(config)
    config, _ = budget.fit_to_device(config, budget.Images(0), device)
    if device.type == "cpu":
        most = min(config.train.batch_size, MEASURED_IMAGES)
        config = changed(config, {"train.batch_size": most, "train.micro_batch": "auto"})
    batch, side = config.train.batch_size, stored_side(config.data)
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
    threads = config.threads if isinstance(config.threads, int) else torch.get_num_threads()
    with devices.memory_errors("use a smaller batch or network"), devices.threads(threads):
        return timed_steps(config, blank, device, seconds=seconds) / batch
