"""What every source of images gives: a fingerprint, and a function that reads its classes and splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from simclr.data.images import Array, Files

UNLABELLED = -1
# Part of the fingerprints of files that say themselves what their labels and splits are: a new number makes the suite
# read them again, which is needed when they are understood in another way.
READING = 2


class Split(NamedTuple):
    """Images (files, or an array of numbers, N x 3 x H x W), the int64 label of each, and more of each from a table."""

    images: Files | Array
    labels: Array
    columns: Mapping[str, Sequence[str]] | None = None  # such as the patient of each image, for `data.group`


class Contents(NamedTuple):
    """The names of the classes, and the splits by name: train, and any of unlabeled, val and test."""

    classes: tuple[str, ...]
    splits: dict[str, Split]


class Source(NamedTuple):
    """A hash that identifies the images of a data set, a function that reads them, and what the user should know.

    The hash is cheap. The function is called only when the images are not decoded yet.
    """

    fingerprint: str
    read: Callable[[], Contents]
    notes: tuple[str, ...] = ()  # sentences: what was ignored, and what was understood
    origin: str = ""  # where the classes come from if the user's files say it, such as "folder names"
    labelling: str = ""  # hash of labels and splits that follow from the names of files, which the fingerprint lacks
    folder: str = ""  # the folder on the disk that the names of the files are relative to, if there is one


# Arguments: the name in DATASETS, the folder that the user chose or None, the home folder, the observer; and by keyword
# the options that its line in DATASETS names.
Loader = Callable[..., Source]


def fingerprint(*parts: object) -> str:
    """Hash values by their repr."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def fingerprint_files(root: Path, names: Sequence[str]) -> str:
    """Hash files by folder, name, size and modification time."""
    digest = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8)
    folder = str(root)
    for name in names:
        path = os.path.join(folder, name)
        try:
            stat = os.stat(path)
        except OSError:  # a broken link: reported with the other files that can't be read
            stat = os.lstat(path)
        line = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))  # names from old archives may not be UTF-8
    return digest.hexdigest()
