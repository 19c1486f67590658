"""A data set as the rest of the suite uses it: decoded images, labels, and the rows of each part."""

from __future__ import annotations

import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import ImageColor
from pydantic import AfterValidator, BeforeValidator, Field

from simclr.data.check import find_fault
from simclr.data.doubts import doubtful_labels
from simclr.data.formats import as_files
from simclr.data.images import Array, BadFile, Decoding, Files, files_at, join_files, listed_files, too_many_skipped
from simclr.data.layout import FOLDER_NAMES
from simclr.data.parts import (
    describe_copies,
    describe_groups,
    describe_unlearned,
    divide,
    group_numbers,
    hash_parts,
    joined,
    told_by_labels,
)
from simclr.data.source import UNLABELLED, Source, fingerprint, without
from simclr.data.sources import DATASETS
from simclr.data.store import ImageStore, open_store
from simclr.data.wide import Range
from simclr.errors import UserError, printable
from simclr.progress import SILENT, Observer
from simclr.settings import MOST_IMAGES, Folder, Pair, Section, Seed, later, one_of

MOST_SKIPPED: dict[str | float, float] = {"error": 0.0, "skip": 0.25}  # share of the files that may be skipped
STATISTICS = 10_000  # images (or up to twice as many) that the mean and standard deviation of the channels come from


def _check_colour(name: str) -> str:
    ImageColor.getrgb(name)  # raises ValueError
    return name


def _check_range(limits: Any) -> Any:
    numbers = isinstance(limits, list | tuple) and len(limits) == 2 and all(isinstance(x, int | float) for x in limits)
    if limits != "auto" and not (numbers and limits[0] < limits[1]):
        raise ValueError("expected auto, or [low, high] with low < high")
    return limits


def _check_bad_image(choice: Any) -> Any:
    named = isinstance(choice, str) and choice in MOST_SKIPPED
    share = isinstance(choice, int | float) and not isinstance(choice, bool) and 0 < choice <= 1
    if not (named or share):
        raise ValueError("expected error, skip or a share such as 0.5")
    return choice


def _check_pattern(pattern: str | None) -> str | None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from None
    return pattern


def most_skipped(on_bad_image: str | float) -> float:
    """The share of the files that may be skipped, by `data.on_bad_image`."""
    return MOST_SKIPPED[on_bad_image] if on_bad_image in MOST_SKIPPED else float(on_bad_image)


class DataConfig(Section):
    """Which images to use, and how to split them."""

    # Data set to train on; folder stands for your own images, in any form.
    dataset: Annotated[str, one_of("data set", lambda: DATASETS)] = "shapes"
    dir: Folder | None = None  # folder of the images or of the downloaded archive (default: in the home folder)
    side: int | None = Field(None, ge=8, le=1024)  # side of the stored images in pixels (default: the data set's own)
    # Share of the training images to hold out for validation, and again for testing, where there is no such split.
    val_fraction: float = Field(0.1, ge=0, lt=1)
    # Number of training images to use (default: all). It doesn't limit validation images, which kNN and the linear
    # classifier use too.
    limit: int | None = Field(None, ge=2, le=MOST_IMAGES)
    split_seed: Seed = 0  # seed of the validation split and the limit (ablate --resplit adds each run's seed)
    # Mean and deviation that normalise the channels: those of the training images, 0.5 and 0.5, ImageNet's, or none.
    normalize: Annotated[str, one_of("normalization", lambda: NORMALIZATIONS)] = "dataset"
    labels: Folder | None = later(None)  # table of the file names in `dir` and their labels
    image_column: str | None = later(None)  # column or array with images or their file names (default: recognised)
    label_column: str | None = later(None)  # column or array with the classes (default: recognised)
    split_column: str | None = later(None)  # column with train, val or test (default: recognised)
    unlabelled: bool = later(False)  # don't take the subfolders of your own images for classes
    # Keep the images of one patient, burst or video in one part. They have the same value in this column of `labels`,
    # or the same match of this regular expression in their names.
    group: Annotated[str | None, AfterValidator(_check_pattern)] = later(None)
    test_from: Literal["val"] | None = later(None)  # split to test on if there is no split `test`
    # What to do with files that can't be read as images: error, skip (up to a quarter), or the largest share to skip.
    on_bad_image: Annotated[Literal["error", "skip"] | float, BeforeValidator(_check_bad_image)] = "error"
    # Colour to lay transparent images over.
    background: Annotated[str, AfterValidator(_check_colour)] = later("white")
    # Values that become 0 and 255 in images of more than 8 bits. auto: percentiles 0.1 and 99.9 of the training images.
    range: Annotated[Literal["auto"] | Pair[float], BeforeValidator(_check_range)] = later("auto")
    check: Literal["error", "report"] = later("error")  # what to do if the images look wrongly decoded


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
    origin: str = ""  # where the classes come from, if the user's files say it
    division: str = ""  # hash of the parts. Empty where they follow from the config, the images and their labels
    source: Source | None = None  # None for synthetic images
    skipped: tuple[BadFile, ...] = ()  # files of the source that have no row
    units: Array | None = None  # a number for each row, if some stay in one part: copies, and images of a group
    place: str = ""  # the name of the folder or file of the user's own images

    @property
    def title(self) -> str:
        """What messages and pictures call it: its name, or that of the folder of the user's own images."""
        return self.place or self.name

    @property
    def used(self) -> int:
        """Number of images in all parts."""
        return sum(len(self.parts[part]) for part in ("pretrain", "val", "test"))

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[-1])

    @property
    def identity(self) -> str:
        """What identifies the images, and which ones are held out: the digest, and the division after a hyphen."""
        return f"{self.digest}-{self.division}" if self.division else self.digest

    def files(self) -> Files:
        """The image files in the order of the rows. Those of a folder on the disk are named by their paths.

        Images of arrays are given as PNG files of the decoded pixels, named after their split and row.
        """
        assert self.source is not None, "synthetic images have no files"
        parts: list[Files] = []
        start = 0
        for split, own in without(self.source.read(), self.skipped).splits.items():
            end = start + len(own.labels)
            parts.append(own.images if isinstance(own.images, Files) else as_files(split, self.images[start:end]))
            start = end
        joined, folder = join_files(parts), self.source.folder
        return files_at([Path(folder, name) for name in joined.names]) if folder else joined

    @property
    def has_labels(self) -> bool:
        """Whether accuracy can be measured on validation: two classes or more, with training and validation images."""
        return len(self.classes) > 1 and len(self.parts["train"]) > 0 and len(self.parts["val"]) > 0


def digest_of(identity: str) -> str:
    """The digest of the images in an identity."""
    return identity.partition("-")[0]


def short_identity(identity: str) -> str:
    """An identity with eight digits of each of its hashes, for messages."""
    return "-".join(part[:8] for part in identity.split("-"))


def decoding_of(config: DataConfig) -> Decoding:
    """How the image files of a config are decoded."""
    return Decoding(stored_side(config), config.background, None if config.range == "auto" else config.range)


def own_name(config: DataConfig) -> str:
    """The name of the folder or file of the user's own images. Empty for a known data set."""
    return printable(config.dir.name) if config.dataset == "folder" and config.dir is not None else ""


def with_range(config: DataConfig, data: Dataset) -> DataConfig:
    """The config with the range of values that was found in its images, for those who embed other images later."""
    return config if data.range is None else config.model_copy(update={"range": data.range})


def stored_side(config: DataConfig) -> int:
    """The side in pixels at which images are stored."""
    return config.side or DATASETS[config.dataset].side


@contextmanager
def _reading(config: DataConfig) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError) as error:
        reason = " ".join(str(error).split())  # tarfile's has several lines
        what = own_name(config) or f"the data set '{config.dataset}'"
        raise UserError(f"can't read {what}: {reason}") from None


def source_of(config: DataConfig, home: Path, observer: Observer = SILENT) -> Source:
    """Find the images of a config. Raises UserError, as does the source's `read`, where they can't be found or read."""
    row = DATASETS[config.dataset]
    options = {name: getattr(config, name) for row in DATASETS.values() for name in row.options}
    given = {name for name in options if options[name] != DataConfig.model_fields[name].default}
    for name in (name for name in options if name in given and name not in row.options):
        own = "" if config.dir is None else f", or add --dataset folder to use the images in {config.dir}"
        raise UserError(f"data.{name} is not a setting of the data set '{config.dataset}': leave it out{own}")
    with _reading(config):
        source = row.load(config.dataset, config.dir, home, observer, **{name: options[name] for name in row.options})
    return source._replace(read=_reading(config)(source.read))


def open_dataset(config: DataConfig, home: Path, observer: Observer = SILENT) -> Dataset:
    """Open the data set of a config. The first call decodes it into `home`/cache, later calls only map that file.

    Raises UserError for a missing folder, a failed download, unreadable images, images that look as if they were
    decoded wrongly, or too few images, and RunFailed where the disk is full.
    """
    source = source_of(config, home, observer)
    skip_bad = most_skipped(config.on_bad_image) > 0
    store = open_store(config.dataset, source, decoding_of(config), home / "cache", observer, skip_bad=skip_bad)
    for sentence in (*source.notes, *store.notes):
        observer.note(sentence, store.folder)
    _check_skipped(store.skipped, len(store.labels), config, observer)
    if config.range != "auto" and store.range is None:
        observer.note("warning: data.range changes nothing, because no image has more than 8 bits")
    counts = np.bincount(store.labels[store.labels != UNLABELLED], minlength=len(store.classes)).tolist()
    for sentence in doubtful_labels(dict(zip(map(printable, store.classes), counts, strict=True))):
        observer.note(sentence)
    if fault := find_fault(store.measured, config.check == "error"):
        raise UserError(fault)
    parts, division, units = _divide(config, source, store, observer)
    if config.dataset == "folder":
        observer.note(_describe(source, store, parts))
    pretrain = parts["pretrain"]
    mean, std = store.channel_statistics(pretrain[:: max(1, len(pretrain) // STATISTICS)], observer)
    classes = tuple(map(printable, store.classes))
    return Dataset(
        config.dataset,
        store.images,
        store.labels,
        classes,
        parts,
        store.digest,
        mean,
        std,
        store.range,
        source.origin,
        division,
        source,
        store.skipped,
        units,
        own_name(config),
    )


def _check_skipped(skipped: Sequence[BadFile], images: int, config: DataConfig, observer: Observer) -> None:
    """Report the files that were skipped. Raises UserError if they are more than the share that may be."""
    if not skipped:
        return
    share, files = most_skipped(config.on_bad_image), images + len(skipped)
    if len(skipped) > share * files:
        raise too_many_skipped(skipped, files, share)
    observer.note(f"{listed_files(skipped, files)}. They are skipped")


def _choose_splits(store: ImageStore, config: DataConfig, observer: Observer) -> dict[str, Array]:
    """The splits as `data.test_from` asks for them. Says which images are tested on if the source has only val."""
    splits = store.splits
    only_val = "val" in splits and "test" not in splits
    if config.test_from is None:
        if only_val and len(store.classes) > 1 and config.val_fraction:
            observer.note(
                "there are no test images, so some of the training images are held out for testing. To test on val, "
                "and hold validation images out of train instead, use --set data.test_from=val"
            )
        return splits
    if not only_val:
        raise UserError(
            f"data.test_from = 'val' is for images with the splits train and val, but these have "
            f"{', '.join(splits)}: leave it out"
        )
    return {"test" if split == "val" else split: rows for split, rows in splits.items()}


def _divide(
    config: DataConfig, source: Source, store: ImageStore, observer: Observer
) -> tuple[dict[str, Array], str, Array | None]:
    """The rows of each part, a hash of them, or "" where they follow from the config and the images, and the units.

    Copies of an image stay in one part, and so do images of one `data.group`. Where they changed the parts, these are
    hashed: earlier versions let copies of test images into train, so their encoders have seen them.
    """
    splits, labels = _choose_splits(store, config, observer), store.labels
    cut = partial(divide, splits, labels, fraction=config.val_fraction, seed=config.split_seed)
    copies = store.hashes() if config.dataset == "folder" else np.arange(len(labels))
    repeated = len(np.unique(copies)) < len(copies)
    groups = None if config.group is None else _groups(config.group, source, store)
    units = joined(groups, copies) if groups is not None else copies if repeated else None
    parts = cut(units=units, limit=config.limit)
    changed, sentences = False, describe_copies(copies, labels, parts) if repeated else []
    if units is not None:
        whole, apart = cut(units=units), cut()
        changed = any(not np.array_equal(rows, whole[part]) for part, rows in apart.items())
        if groups is not None:
            _check_classes(whole, labels, config)
            sentences += describe_groups(groups, parts)
        if lost := len(np.setdiff1d(apart["pretrain"], np.concatenate(list(whole.values())))):
            what = "image without a label is" if lost == 1 else "images without labels are"
            others = "copies of it" if lost == 1 else "copies of them"
            if groups is not None:
                others = f"others of {'its group' if lost == 1 else 'their groups'}"
            sentences.append(f"{lost:,} {what} left out, because {others} are held out")
        for part in ("val", "test"):
            for label in np.setdiff1d(labels[apart[part]], labels[whole[part]]):
                sentences.append(
                    f"no {part} image is of class '{printable(store.classes[label])}', because its images are in one "
                    f"group or copies of each other, and so stay in one part"
                )
    for sentence in (*sentences, *describe_unlearned(labels, store.classes, parts)):
        observer.note(f"warning: {sentence}")
    by_folder = config.dataset != "folder" or source.origin == FOLDER_NAMES or len(store.classes) < 2
    follow = (by_folder or told_by_labels(splits, labels)) and groups is None and not changed
    return parts, "" if follow else hash_parts(parts), units


def _groups(pattern: str, source: Source, store: ImageStore) -> Array:
    """The number of each image's group. It is kept with the images, since finding it may mean unpacking an archive."""
    return store.numbers(
        f"groups-{fingerprint(pattern)}.npy", lambda: group_numbers(without(source.read(), store.skipped), pattern)
    )


def _check_classes(parts: dict[str, Array], labels: Array, config: DataConfig) -> None:
    """Raise UserError if groups take all images of a class out of train."""
    if not np.isin(labels[np.concatenate([parts["val"], parts["test"]])], labels[parts["train"]]).all():
        raise UserError(
            f"data.group = '{config.group}' leaves no training images of some classes, because their images are in one "
            f"group that was held out: try another data.split_seed, or make more groups"
        )


def _describe(source: Source, store: ImageStore, parts: dict[str, Array]) -> str:
    """What was understood about the user's own images, in one line."""
    names = [printable(name) for name in store.classes]
    some = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    origin = f" from {source.origin}" if source.origin else ""
    classes = f"{len(names):,} class{'es' * (len(names) != 1)}{origin}: {some}" if names else "without labels"
    sizes = {"train": "train", "val": "validation", "test": "test"}
    used = ", ".join(f"{len(parts[part]):,} {name}" for part, name in sizes.items() if len(parts[part]))
    more = len(parts["pretrain"]) - len(parts["train"])
    unlabelled = f"{more:,} to pre-train on" if not names else f"{more:,} without labels" if more else ""
    count = f"{len(store.labels):,} image{'s' * (len(store.labels) != 1)}, {classes}"
    if not names and more == len(store.labels):
        return count
    return f"{count}; {', '.join(filter(None, [used, unlabelled]))}"


# The (mean, std) of each channel that images in [0, 1] are shifted and scaled by.
NORMALIZATIONS: dict[str, Callable[[Dataset], tuple[Sequence[float], Sequence[float]]]] = {
    "dataset": lambda data: (data.mean, data.std),
    "half": lambda data: ((0.5,) * 3, (0.5,) * 3),
    "imagenet": lambda data: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's weights expect these
    "none": lambda data: ((0.0,) * 3, (1.0,) * 3),
}
