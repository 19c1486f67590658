"""A data set: decoded images, labels, and the rows of each part."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from simclr.data.images import Array, bad_images
from simclr.data.sources import DATASETS, UNLABELLED, Contents, Source, _fingerprint
from simclr.data.store import CHUNK, FORMAT, _decode_once
from simclr.errors import RunFailed, UserError
from simclr.progress import SILENT, Observer
from simclr.randomness import permutation
from simclr.settings import Section, _one_of


class DataConfig(Section):
    """Which images, and how they are split."""

    dataset: Annotated[str, _one_of("data set", lambda: DATASETS)] = "shapes"
    dir: Path | None = None  # where the images or the downloaded archive are (default: under the home folder)
    side: int | None = Field(None, ge=8, le=1024)  # stored image side in pixels (default: the data set's own)
    val_fraction: float = Field(0.1, gt=0, lt=1)  # of the training images, held out where there is no validation split
    limit: int | None = Field(
        None, ge=2
    )  # use this many training images, chosen by the split seed (kNN and linear too)
    split_seed: int = Field(0, ge=0)  # of the validation split and the limit: the same for all seeds of a study
    normalize: Annotated[str, _one_of("normalization", lambda: NORMALIZATIONS)] = "dataset"
    on_bad_image: Literal["error", "skip"] = "error"


STATISTICS = 10_000  # images that are enough for a channel's mean and standard deviation


@dataclass(frozen=True)
class Dataset:
    """Decoded images and the rows of each part: pretrain, train, val, test (the last three hold no unlabelled ones)."""

    name: str
    images: Array  # uint8, N x 3 x side x side, memory-mapped (writes would stay private)
    labels: Array  # int64, N; UNLABELLED where unknown
    classes: tuple[str, ...]
    parts: dict[str, Array]
    digest: str  # of images and labels
    mean: tuple[float, ...]  # of each channel over (at most STATISTICS or so of) the images to pre-train on, in [0, 1]
    std: tuple[float, ...]

    @property
    def side(self) -> int:
        return int(self.images.shape[-1])

    @property
    def has_labels(self) -> bool:
        """Whether accuracies can be measured: labelled training and validation images of two classes or more."""
        return len(self.classes) > 1 and len(self.parts["train"]) > 0 and len(self.parts["val"]) > 0


def stored_side(config: DataConfig) -> int:
    """The side in pixels that images are stored at."""
    return config.side or DATASETS[config.dataset].side


def channel_statistics(images: Array) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0, 1], over N x 3 x H x W uint8."""
    counts = np.zeros((3, 256))
    for start in range(0, len(images), CHUNK):
        for channel in range(3):
            counts[channel] += np.bincount(images[start : start + CHUNK, channel].reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(share @ levels**2 - mean**2)
    return mean.round(6).tolist(), std.clip(1e-3).round(6).tolist()


def source_of(config: DataConfig, home: Path, observer: Observer = SILENT) -> Source:
    """What a config's images come from. Raises UserError (`read` too) where they are missing or can't be read."""

    def unreadable(error: Exception) -> UserError:
        return UserError(f"can't read the data set '{config.dataset}': {error}")

    def read() -> Contents:
        try:
            return source.read()
        except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise unreadable(error) from None

    try:
        source = DATASETS[config.dataset].load(config.dataset, config.dir, home, observer)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise unreadable(error) from None
    return Source(source.fingerprint, read)


def open_dataset(config: DataConfig, home: Path, observer: Observer = SILENT) -> Dataset:
    """The data set of a config, decoded into `home`/cache at the first call and memory-mapped from then on.

    Raises UserError for a missing folder, a failed download, unreadable images, or too few images.
    """
    side = stored_side(config)
    source = source_of(config, home, observer)
    folder = home / "cache" / f"{config.dataset}-{_fingerprint(source.fingerprint, side, FORMAT)}"
    contents = None if folder.exists() else source.read()
    if contents is not None:
        try:
            _decode_once(folder, contents, side, config.on_bad_image == "skip", observer)
        except OSError as error:
            message = f"can't write the decoded images to {folder.parent}: {error}; free some space there"
            raise RunFailed(message) from error
    meta = json.loads((folder / "meta.json").read_text())
    if meta["bad"] and config.on_bad_image == "error":
        raise bad_images(meta["bad"], meta["files"])
    labels = np.load(folder / "labels.npy")
    images = np.load(folder / "images.npy", mmap_mode="c")
    parts = _parts({name: np.arange(*ab) for name, ab in meta["bounds"].items()}, labels, config)
    mean, std = channel_statistics(images[parts["pretrain"][:: max(1, len(parts["pretrain"]) // STATISTICS)]])
    return Dataset(
        name=config.dataset,
        images=images,
        labels=labels,
        classes=tuple(meta["classes"]),
        parts=parts,
        digest=meta["digest"],
        mean=tuple(mean),
        std=tuple(std),
    )


def _shuffled(rows: Array, labels: Array, config: DataConfig) -> Array:
    """The rows in an order of the split seed, such that the first n hold every class in its share, for any n."""
    rows = rows[permutation(len(rows), config.split_seed, "split").numpy()]
    place = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        same = np.flatnonzero(labels[rows] == label)
        place[same] = (np.arange(len(same)) + 0.5) / len(same)
    return rows[np.argsort(place, kind="stable")]


def _parts(splits: dict[str, Array], labels: Array, config: DataConfig) -> dict[str, Array]:
    """Disjoint rows of train, val and test, stratified; pretrain is train and whatever has no label."""
    train = _shuffled(splits["train"], labels, config)
    held = {}
    classes = np.unique(labels[train][labels[train] != UNLABELLED])
    for part in ("val", "test"):
        count = max(1, round(config.val_fraction * len(splits["train"]))) if len(classes) > 1 else 0
        held[part] = splits[part] if part in splits else train[:count]
        train = train if part in splits else train[count:]
    if not len(train):
        raise UserError(
            f"data.val_fraction = {config.val_fraction:g} of {len(splits['train'])} images leaves none to train on: "
            f"lower it, or add images"
        )
    everything = np.concatenate([train, splits.get("unlabeled", train[:0])])
    pretrain = _shuffled(everything, labels, config)[: config.limit]
    train = np.intersect1d(train, pretrain)
    parts = {part: np.sort(rows[labels[rows] != UNLABELLED]) for part, rows in ({"train": train} | held).items()}
    return {"pretrain": np.sort(pretrain)} | parts


# How images in [0, 1] are shifted and scaled before the network: (mean, std) of each channel.
NORMALIZATIONS: dict[str, Callable[[Dataset], tuple[Sequence[float], Sequence[float]]]] = {
    "dataset": lambda data: (data.mean, data.std),
    "half": lambda data: ((0.5,) * 3, (0.5,) * 3),
    "imagenet": lambda data: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # what torchvision's weights expect
    "none": lambda data: ((0.0,) * 3, (1.0,) * 3),
}
