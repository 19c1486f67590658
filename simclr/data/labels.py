"""Number the labels that a file gives to its images, and put images and labels together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from simclr.data.images import Array, Files
from simclr.data.layout import SPLIT_NAMES, SPLITS, Layout
from simclr.data.source import UNLABELLED, Contents, Split
from simclr.errors import UserError

# Names of columns, arrays and keys that hold images, labels or splits, the most usual ones first.
IMAGE_NAMES = ("image", "img", "images", "imgs", "pixels", "data", "x")
LABEL_NAMES = ("label", "labels", "class", "classes", "class_name", "category", "target", "targets", "cls", "y")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "phase")


def unclear(path: Path, what: str, columns: Iterable[object], *settings: str) -> UserError:
    """The error for columns or arrays that a user has to choose by settings of DataConfig."""
    listed = ", ".join(str(column) for column in islice(columns, 20)) or "nothing"
    chosen = " and ".join(f"--set data.{setting}=NAME" for setting in settings)
    return UserError(f"{path} {what}. It has {listed}: choose with {chosen}")


def split_in(name: str) -> str | None:
    """The split that a name mentions, such as train-00000-of-00002.parquet. None if it mentions none, or several."""
    found = {SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def contents_of(
    splits: Mapping[str, tuple[Files | Array, Sequence[object] | Array | None]],
    names: Sequence[str] = (),
    *,
    unlabelled: bool = False,
) -> Contents:
    """Contents from the images of each split and their labels, or None if they have none.

    `names` are those of the classes 0, 1, ...; without them a class is named after its label. A single split is the one
    to train on. `unlabelled` drops the labels. Raises UserError if there are several splits but none to train on.
    """
    filled = {split: splits[split] for split in SPLIT_NAMES if split in splits and _count(splits[split][0])}
    if len(filled) == 1:
        filled = {"train": next(iter(filled.values()))}
    if "train" not in filled:
        others = f", only {' and '.join(filled)} images" if filled else ""
        raise UserError(f"there are no images to train on{others}: add some")
    known = {split: None if unlabelled else labels for split, (_, labels) in filled.items()}
    texts = {
        split: np.full(_count(filled[split][0]), "") if labels is None else np.array([as_text(each) for each in labels])
        for split, labels in known.items()
    }
    classes, numbers = number(texts, names)
    return Contents(classes, {split: Split(filled[split][0], numbers[split]) for split in filled})


def contents_of_layout(layout: Layout, files: Files) -> Contents:
    """Contents from the labelled names of a layout. A name that is not among the files is an image that can't be read.

    Names from a table or an archive are never looked up elsewhere.
    """
    known = frozenset(files.names)

    def read(name: str) -> bytes:
        if name not in known:
            raise FileNotFoundError("there is no such file")
        return files.read(name)

    splits = {}
    for split, rows in layout.splits.items():
        names, labels = [name for name, _ in rows], np.array([label for _, label in rows], np.int64)
        columns = {column: [own[name] for name in names] for column, own in (layout.columns or {}).items()}
        splits[split] = Split(files._replace(names=names, read=read), labels, columns)
    return Contents(layout.classes, splits)


def number(texts: Mapping[str, Array], names: Sequence[str] = ()) -> tuple[tuple[str, ...], dict[str, Array]]:
    """The classes among the labels of all splits, and the int64 labels of each. Empty ones become UNLABELLED.

    `names` are those of the labels 0, 1, ...; where they are known, a label of -1 means none too. Raises UserError for
    a label without a name, for two labels that are one number, and for classes that only val or test have.
    """
    none = ("", "-1") if names else ("",)
    values = {split: np.unique(own[~np.isin(own, none)]).tolist() for split, own in texts.items()}
    classes = [str(label) for label in range(len(names))] or _sorted_classes(set().union(*values.values()))
    for split, own in values.items():
        if strange := set(own).difference(classes):
            raise UserError(
                f"label {min(strange)} of the {split} images has no name: the file has names for {len(classes)} classes"
            )
        if split in ("val", "test") and (extra := sorted(set(own).difference(values["train"]))):
            listed = ", ".join(f"'{names[int(label)] if names else label}'" for label in extra[:5])
            raise UserError(
                f"the labels {listed} are in {split}, but not in train: use the same names in all splits, or add "
                f"--unlabelled (data.unlabelled = true) to train without labels"
            )
    index = pd.Index(classes)
    labels = {split: index.get_indexer(pd.Index(own)).astype(np.int64) for split, own in texts.items()}
    return tuple(names or classes), {split: np.where(own < 0, UNLABELLED, own) for split, own in labels.items()}


def _count(images: Files | Array) -> int:
    return len(images.names) if isinstance(images, Files) else len(images)


def as_text(label: object) -> str:
    """A label as text. None and NaN, by which files mark a missing label, become an empty text."""
    if label is None or label != label:
        return ""
    return label.decode(errors="backslashreplace") if isinstance(label, bytes) else str(label)


def _sorted_classes(texts: set[str]) -> list[str]:
    """Sorted by value if all are numbers, else as text. Raises UserError for two texts of one number."""
    try:
        by_value = sorted((float(text), text) for text in texts)
    except ValueError:
        return sorted(texts)
    if not all(math.isfinite(value) for value, _ in by_value):
        return sorted(texts)
    for (value, text), (following, other) in pairwise(by_value):
        if value == following:
            raise UserError(f"the labels '{text}' and '{other}' are the same number: write each class in one way")
    return [text for _, text in by_value]
