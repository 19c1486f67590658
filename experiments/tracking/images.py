"""Which images a run is about, how many, and how many there are now."""

from __future__ import annotations

import json

from experiments.tracking.datasets import datasets_of
from experiments.tracking.store import Record
from simclr.data.dataset import Dataset, short_identity
from simclr.errors import UserError

IMAGES = "images"  # the tag with the number of a run's images; runs of earlier versions have none


def tag_of(data: Dataset) -> dict[str, str]:
    """The tag that counts the images of a new run."""
    return {IMAGES: str(data.used)}


def images_of(record: Record) -> tuple[str, dict[str, int]]:
    """The name of a record's images, and how many are in each of their parts. Some records only say the name."""
    run, known = record.store.sender.call(record.store.client.get_run, record.id), record.params.get("data.dataset")
    for given in datasets_of(run)[:1]:
        name = given["name"] if known in (None, "folder") else known  # of known data sets it may be a folder's
        return name, json.loads(given["profile"] or "{}")
    return known or "unknown images", {}


def then_and_now(record: Record, data: Dataset) -> list[str]:
    """How many images a run was trained on, and how many there are now, if that is known."""
    then = record.tags.get(IMAGES)
    return [f"{int(then):,} then, {data.used:,} now"] if then else []


def images_changed(record: Record, data: Dataset) -> UserError:
    """Why an unfinished run, whose images were others, can't be resumed."""
    digests = f"digest {short_identity(data.identity)}, was {short_identity(record.tags['data_digest'])}"
    return UserError(
        f"{record.name} ({record.short_id}) is unfinished, but its images have changed "
        f"({'; '.join([*then_and_now(record, data), digests])}): restore them, or leave out --resume to start over"
    )
