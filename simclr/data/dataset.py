"""A data set as the rest of the suite uses it: decoded images, labels, and the rows of each part."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import ImageColor
from pydantic import AfterValidator, BeforeValidator, Field

from simclr.data.check import find_fault
from simclr.data.images import Array, Decoding
from simclr.data.source import UNLABELLED, Source
from simclr.data.sources import DATASETS
from simclr.data.store import open_store
from simclr.data.wide import Range
from simclr.errors import UserError
from simclr.progress import SILENT, Observer
from simclr.randomness import permutation
from simclr.settings import MOST_IMAGES, Folder, Pair, Section, Seed, one_of

STATISTICS = 10_000  # images (or up to twice as many) that the mean and standard deviation of the channels come from


# Settings that came later are left out of records where they have their default, so that keys and names of runs stay.
def _is_unset(value: Any) -> bool:
    return value in (None, False, "white", "auto", "error")


def _check_colour(name: str) -> str:
    ImageColor.getrgb(name)  # raises ValueError
    return name


def _check_range(limits: Any) -> Any:
    numbers = isinstance(limits, list | tuple) and len(limits) == 2 and all(isinstance(x, int | float) for x in limits)
    if limits != "auto" and not (numbers and limits[0] < limits[1]):
        raise ValueError("expected auto, or [low, high] with low < high")
    return limits


class DataConfig(Section):
    """Which images to use, and how to split them."""

    dataset: Annotated[str, one_of("data set", lambda: DATASETS)] = "shapes"
    dir: Folder | None = None  # folder of the images or of the downloaded archive (default: in the home folder)
    side: int | None = Field(None, ge=8, le=1024)  # side of the stored images in pixels (default: the data set's own)
    val_fraction: float = Field(0.1, gt=0, lt=1)  # held out of the training images where there is no validation split
    # Number of training images to use (for kNN and linear too). None: all
    limit: int | None = Field(None, ge=2, le=MOST_IMAGES)
    split_seed: Seed = 0  # seed of the validation split and the limit, the same for all seeds of a study
    normalize: Annotated[str, one_of("normalization", lambda: NORMALIZATIONS)] = "dataset"
    labels: Folder | None = Field(None, exclude_if=_is_unset)  # table of the file names in `dir` and their labels
    image_column: str | None = Field(None, exclude_if=_is_unset)  # column or array with images or their file names
    label_column: str | None = Field(None, exclude_if=_is_unset)  # these three are recognised by default
    split_column: str | None = Field(None, exclude_if=_is_unset)
    unlabelled: bool = Field(False, exclude_if=_is_unset)  # whether subfolders of your own images are no classes
    on_bad_image: Literal["error", "skip"] = "error"  # what to do with files that can't be read as images
    # The colour behind transparent images.
    background: Annotated[str, AfterValidator(_check_colour)] = Field("white", exclude_if=_is_unset)
    # Values that become 0 and 255 in images of more than 8 bits. auto: PERCENTILES (in wide.py) of the training images.
    range: Annotated[Literal["auto"] | Pair[float], BeforeValidator(_check_range)] = Field("auto", exclude_if=_is_unset)
    check: Literal["error", "report"] = Field("error", exclude_if=_is_unset)  # if images look wrongly decoded


@dataclass(frozen=True)
class Dataset:
    """Decoded images, and the rows of each part: pretrain, train, val, test. Only pretrain has unlabelled images."""

    name: str
    images: Array  # uint8, N x 3 x side x side, memory-mapped (writes stay in memory)
    labels: Array  # int64, N; UNLABELLED where unknown
    classes: tuple[str, ...]
    parts: dict[str, Array]
    digest: str  # hash of images and labels
    mean: tuple[float, ...]  # of each channel, in [0, 1], over a sample of the images to pre-train on
    std: tuple[float, ...]
    range: Range | None = None  # the values of images of more than 8 bits that became 0 and 255

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[-1])

    @property
    def has_labels(self) -> bool:
        """Whether accuracy can be measured: two classes or more, with training and validation images."""
        return len(self.classes) > 1 and len(self.parts["train"]) > 0 and len(self.parts["val"]) > 0


def decoding_of(config: DataConfig) -> Decoding:
    """How the image files of a config are decoded."""
    return Decoding(stored_side(config), config.background, None if config.range == "auto" else config.range)


def with_range(config: DataConfig, data: Dataset) -> DataConfig:
    """The config with the range of values that was found in its images, for those who embed other images later."""
    return config if data.range is None else config.model_copy(update={"range": data.range})


def stored_side(config: DataConfig) -> int:
    """The side in pixels at which images are stored."""
    return config.side or DATASETS[config.dataset].side


@contextmanager
def _reading(dataset: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError) as error:
        reason = " ".join(str(error).split())  # tarfile's has several lines
        raise UserError(f"can't read the data set '{dataset}': {reason}") from None


def source_of(config: DataConfig, home: Path, observer: Observer = SILENT) -> Source:
    """Find the images of a config. Raises UserError, as does the source's `read`, where they can't be found or read."""
    row = DATASETS[config.dataset]
    options = {name: getattr(config, name) for row in DATASETS.values() for name in row.options}
    for name in (name for name in options if name not in row.options and not _is_unset(options[name])):
        raise UserError(f"data.{name} is not a setting of the data set '{config.dataset}': leave it out")
    with _reading(config.dataset):
        source = row.load(config.dataset, config.dir, home, observer, **{name: options[name] for name in row.options})
    return source._replace(read=_reading(config.dataset)(source.read))


def open_dataset(config: DataConfig, home: Path, observer: Observer = SILENT) -> Dataset:
    """Open the data set of a config. The first call decodes it into `home`/cache, later calls only map that file.

    Raises UserError for a missing folder, a failed download, unreadable images, images that look as if they were
    decoded wrongly, or too few images, and RunFailed where the disk is full.
    """
    source, skip_bad = source_of(config, home, observer), config.on_bad_image == "skip"
    store = open_store(config.dataset, source, decoding_of(config), home / "cache", observer, skip_bad=skip_bad)
    for note in source.notes:
        observer.say(note)
    if fault := find_fault(store.measured, config.check == "error"):
        raise UserError(fault)
    parts = _split(store.splits, store.labels, config)
    pretrain = parts["pretrain"]
    mean, std = store.channel_statistics(pretrain[:: max(1, len(pretrain) // STATISTICS)], observer)
    return Dataset(
        config.dataset, store.images, store.labels, store.classes, parts, store.digest, mean, std, store.range
    )


def _shuffle(rows: Array, labels: Array, config: DataConfig) -> Array:
    """Shuffle rows by the split seed, stratified: the first n rows have each class in its proportion, for any n."""
    rows = rows[permutation(len(rows), config.split_seed, "split").numpy()]
    position = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        same = np.flatnonzero(labels[rows] == label)
        position[same] = (np.arange(len(same)) + 0.5) / len(same)
    return rows[np.argsort(position, kind="stable")]


def _split(splits: dict[str, Array], labels: Array, config: DataConfig) -> dict[str, Array]:
    """Cut the rows of a source's splits into disjoint, stratified train, val and test.

    A split that the source lacks is held out of train. `pretrain` is train and all unlabelled images.
    """
    train = _shuffle(splits["train"], labels, config)
    held_out = {}
    classes = np.unique(labels[train][labels[train] != UNLABELLED])
    for part in ("val", "test"):
        count = max(1, round(config.val_fraction * len(splits["train"]))) if len(classes) > 1 else 0
        held_out[part] = splits[part] if part in splits else train[:count]
        train = train if part in splits else train[count:]
    if not len(train):
        raise UserError(
            f"data.val_fraction = {config.val_fraction:g} of {len(splits['train'])} images leaves none to train on: "
            f"lower it, or add images"
        )
    everything = np.concatenate([train, splits.get("unlabeled", train[:0])])
    pretrain = _shuffle(everything, labels, config)[: config.limit]
    train = np.intersect1d(train, pretrain)
    labelled = {part: rows[labels[rows] != UNLABELLED] for part, rows in ({"train": train} | held_out).items()}
    return {part: np.sort(rows) for part, rows in ({"pretrain": pretrain} | labelled).items()}


# The (mean, std) of each channel that images in [0, 1] are shifted and scaled by.
NORMALIZATIONS: dict[str, Callable[[Dataset], tuple[Sequence[float], Sequence[float]]]] = {
    "dataset": lambda data: (data.mean, data.std),
    "half": lambda data: ((0.5,) * 3, (0.5,) * 3),
    "imagenet": lambda data: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's weights expect these
    "none": lambda data: ((0.0,) * 3, (1.0,) * 3),
}
