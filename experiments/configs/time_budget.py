"""Presets that go by the clock: which of their choices is trained, and for how many epochs, by measured speed."""

from __future__ import annotations

import time
from hashlib import blake2b

import numpy as np

from experiments.configs.resolve import Choice, Time, changed
from experiments.tracking import Store
from simclr import device as devices
from simclr.build import check_images
from simclr.config import Config
from simclr.data.dataset import Dataset, open_dataset, source_of, stored_side
from simclr.data.sources import image_side
from simclr.errors import BadSettings, UserError
from simclr.progress import SILENT, Observer
from simclr.train import budget, memory
from simclr.train.loop import count_steps, timed_steps
from simclr.weights.checkpoint import checkpoints

STEPS = 0.9  # the steps' share of the time; the rest is for kNN on validation, checkpoints, and an uneven machine


SPREAD = 30  # how many times as fast, in operations, a large network may run as a small one, on a GPU


def within(
    config: Config,
    asked: Time,
    store: Store,
    *,
    resume: bool = False,
    again: bool = False,
    observer: Observer = SILENT,
) -> tuple[Config, str]:
    """The config that a preset becomes on this machine; and a hash of what was asked for, the tag `request` of its run.

    The first choice that gets through its epochs in the time that is left once its images are decoded, or else the
    last; for as many epochs as fit. Choices are passed over whose images would be larger than the files or whose batch
    has more images than there are, and those that the memory can't hold. What a run of the same request chose stands,
    if it has finished or has a checkpoint: with `resume` only the latter, with `again` neither. Raises UserError where
    not even one epoch fits.
    """
    began, budget = time.monotonic(), asked.hours * 3600 * STEPS
    source = source_of(config.data, store.folder, observer)
    machine = devices.describe(devices.resolve(config.device)), config.memory
    text = repr((config.key(), asked.model_dump_json(), source.fingerprint, machine))
    request = blake2b(text.encode(), digest_size=8).hexdigest()
    if (before := _chosen_before(config, asked, store, request, resume, again)) is not None:
        return before, request

    last = asked.choices[-1]
    smallest = _made(config, last)
    images = len(open_dataset(smallest.data, store.folder, observer).parts["pretrain"])
    side = stored_side(smallest.data)  # the largest that is wanted of these images
    if any(stored_side(_made(config, choice).data) > side for choice in asked.choices):
        side = max(side, image_side(source.read()))
    of_smallest = seconds_an_image(smallest)
    slowest = memory.flops(smallest, 0) / of_smallest  # in operations a second
    for choice in asked.choices:
        chosen = _made(config, choice)
        left = budget - (time.monotonic() - began)
        if choice is not last:
            hopeless = memory.flops(chosen, 0) / (SPREAD * slowest) * images * choice.epochs > left
            if stored_side(chosen.data) > side or chosen.train.batch_size > images or hopeless:
                continue
        try:
            each = of_smallest if choice is last else seconds_an_image(chosen)
        except (UserError, BadSettings):
            continue
        if each * images * choice.epochs > left and choice is not last:
            continue
        data = open_dataset(chosen.data, store.folder, observer)
        epoch = each * count_steps(chosen, data)[1] * chosen.train.batch_size
        epochs = int((budget - (time.monotonic() - began)) / epoch)
        if epochs >= (1 if choice is last else choice.epochs):
            return _made(config, choice, epochs), request
    spent = time.monotonic() - began
    raise UserError(
        f"{asked.hours:g} hours hold no epoch of {config.name}: one takes {epoch:.0f} s here, after {spent:.0f} s of "
        f"decoding and measuring. Give it more (--hours), or fewer images (--set data.limit=...)"
    )


def _made(config: Config, choice: Choice, epochs: int = 1) -> Config:
    return changed(config, {**choice.set, "train.epochs": epochs})


def _chosen_before(config: Config, asked: Time, store: Store, request: str, resume: bool, again: bool) -> Config | None:
    """What the newest run of the same request was made of that has finished, or can go on."""
    if again and not resume:
        return None
    for run in store.search(f"tags.kind = 'pretrain' and tags.request = '{request}'"):
        finished = run.info.status == "FINISHED"
        if resume if finished else not checkpoints(store.run_folder(run.info.run_id)):
            continue
        for choice in asked.choices:
            chosen = _made(config, choice, int(run.data.params["train.epochs"]))
            if chosen.key() == run.data.tags["config_key"]:
                return chosen
    return None


def seconds_an_image(config: Config) -> float:
    """Measured on a few training steps with made images.

    Raises UserError where the network can't take the images, or the memory can't hold the config; BadSettings where it
    turns out that it can't.
    """
    device, batch, side = devices.resolve(config.device), config.train.batch_size, stored_side(config.data)
    made = Dataset(
        name="made",
        images=np.zeros((batch, 3, side, side), np.uint8),
        labels=np.zeros(batch, np.int64),
        classes=(),
        parts={"pretrain": np.arange(batch)},
        digest="",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    check_images(config)
    config, _ = budget.fit(config, 0, device)
    with devices.memory_errors("take a smaller batch or network"):
        return timed_steps(config, made, device) / batch
