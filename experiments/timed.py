"""Presets that go by the clock: which of their choices is trained, and for how many epochs, by measured speed."""

from __future__ import annotations

import time
import tomllib
from hashlib import blake2b

import numpy as np

from simclr import device as devices
from simclr import memory
from simclr.checkpoint import checkpoints
from simclr.config import Config, make
from simclr.data import Dataset, Progress, image_side, open_dataset, silent, source_of, stored_side
from simclr.errors import UserError
from simclr.train import plan, timed_steps

from .configure import Time, changed
from .tracking import Store

STEPS = 0.9  # the steps' share of the time; the rest is for kNN on validation, checkpoints, and an uneven machine


def within(
    config: Config, asked: Time, store: Store, *, again: bool = False, progress: Progress = silent
) -> tuple[Config, str]:
    """The config that a preset becomes on this machine; and a hash of what was asked for, the tag `request` of its run.

    The first choice that gets through its epochs in time, or else the last; for as many epochs as the time holds that
    is left once its images are decoded. Choices are passed over whose images would be larger than the files, or that
    the memory can't hold. What was chosen before for the same request stands, if it has been trained or has a
    checkpoint, unless `again`. Raises UserError where not even one epoch fits.
    """
    clock, seconds = time.monotonic(), asked.hours * 3600 * STEPS
    source = source_of(config.data, store.folder, progress)
    text = "/".join((config.key(), asked.model_dump_json(), source.fingerprint))
    request = blake2b(text.encode(), digest_size=8).hexdigest()
    for run in () if again else store.search(f"tags.kind = 'pretrain' and tags.request = '{request}'"):
        if run.info.status == "FINISHED" or checkpoints(store.run_folder(run.info.run_id)):
            recorded = make(tomllib.loads(store.artifact(run.info.run_id, "config.toml").read_text(encoding="utf-8")))
            own = {
                "device": config.device,
                "memory": config.memory,
                "data": recorded.data.model_copy(update={"dir": config.data.dir}),
            }
            return recorded.model_copy(update=own), request
    contents = source.read()
    images = sum(len(contents.splits[part].labels) for part in ("train", "unlabeled") if part in contents.splits)
    side = max(image_side(contents), stored_side(config.data))
    for choice in asked.choices:
        chosen, last = changed(config, choice.set), choice is asked.choices[-1]
        if stored_side(chosen.data) > side and not last:
            continue
        try:
            each = seconds_an_image(chosen, images)
        except UserError:
            if last:
                raise
            continue
        if each * min(images, config.data.limit or images) * choice.epochs <= seconds:
            break
    data = open_dataset(chosen.data, store.folder, progress)
    epoch = each * plan(chosen, data)[1] * chosen.train.batch_size
    epochs = int((seconds - (time.monotonic() - clock)) / epoch)
    if epochs < 1:
        raise UserError(
            f"{asked.hours:g} hours hold no epoch of {config.name}: one takes {epoch / 3600:.2g} h here. Give it more "
            f"(--hours), or fewer images (--set data.limit=...)"
        )
    return changed(chosen, {"train.epochs": epochs}), request


def seconds_an_image(config: Config, images: int) -> float:
    """Measured on a few training steps with made images. Raises UserError where the memory can't hold the config."""
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
    config, _ = memory.fit(config, images, device)
    return timed_steps(config, made, device) / batch
