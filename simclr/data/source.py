"""What every source of images gives: a fingerprint, and a function that reads its classes and splits."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from simclr.data.images import Array, BadFile, Files
from simclr.errors import RunFailed, UserError
from simclr.files import written_whole

UNLABELLED = -1
LOOKED_AT = 1000  # files (or up to twice as many) of a folder whose sizes and dates are looked at each time
YOUNG = 2_000_000_000  # nanoseconds; some file systems give two changes within that time one date
# Part of the fingerprints of files that say themselves what their labels and splits are: a new number makes the suite
# read them again, which is needed when they are understood in another way.
READING = 3


class Split(NamedTuple):
    """Images (files, or an array of numbers, N x 3 x H x W), the int64 label of each, and more of each from a table."""

    images: Files | Array
    labels: Array
    columns: Mapping[str, Sequence[str]] | None = None  # such as the patient of each image, for `data.group`


class Contents(NamedTuple):
    """The names of the classes, and the splits by name: train, and any of unlabeled, val and test."""

    classes: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()  # sentences: what was understood that only the files themselves say


def without(contents: Contents, skipped: Sequence[BadFile]) -> Contents:
    """The contents without the files that were skipped, which are in the order of the rows."""
    waiting, splits = deque(file.name for file in skipped), dict[str, Split]()
    for name, split in contents.splits.items():
        splits[name] = split
        if isinstance(split.images, Files):
            rows = []
            for row, file in enumerate(split.images.names):
                if waiting and waiting[0] == file:
                    waiting.popleft()
                else:
                    rows.append(row)
            files = split.images._replace(names=[split.images.names[row] for row in rows])
            columns = {column: [values[row] for row in rows] for column, values in (split.columns or {}).items()}
            splits[name] = Split(files, split.labels[rows], columns)
    return contents._replace(splits=splits)


class Source(NamedTuple):
    """A hash that identifies the images of a data set, a function that reads them, and what the user should know.

    The hash is cheap. The function is called only when the images are not decoded yet.
    """

    fingerprint: str
    read: Callable[[], Contents]
    notes: tuple[str, ...] = ()  # sentences: what was ignored, and what was understood without reading the images
    origin: str = ""  # where the classes come from if the user's files say it, such as "folder names"
    labelling: str = ""  # hash of labels and splits that follow from the names of files, which the fingerprint lacks
    folder: str = ""  # the folder on the disk that the names of the files are relative to, if there is one


# Arguments: the name in DATASETS, the folder that the user chose or None, the home folder, the observer; and by keyword
# the options that its line in DATASETS names.
Loader = Callable[..., Source]


def is_there(place: Path) -> bool:
    """Whether images are at a place: a path that exists, a name on a hub, or shards like a-{000..009}.tar."""
    return str(place).startswith("hf:") or "{" in str(place) or place.exists()


def fingerprint(*parts: object) -> str:
    """Hash values by their repr."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def fingerprint_folder(root: Path, names: Sequence[str], home: Path) -> str:
    """What `fingerprint_files` returns for the files of a folder. For many files, it is remembered in the home folder.

    That result is reused as long as the names of the files, the dates of their folders, and the sizes and dates of a
    sample of LOOKED_AT files stay the same. Any other file that is overwritten in place goes unnoticed: see `recheck`.
    """
    sample = fingerprint_files(root, names[:: max(1, len(names) // LOOKED_AT)])
    if len(names) < 2 * LOOKED_AT:
        return sample
    now = time.time_ns()
    folders = sorted({name.rpartition("/")[0] for name in names})
    dates = [os.stat(os.path.join(root, folder)).st_mtime_ns for folder in folders]
    path = _remembered(home) / fingerprint(names, dates, sample)
    with suppress(OSError):
        if len(found := path.read_text(errors="replace")) == len(sample):
            return found
    found = fingerprint_files(root, names)
    if max(dates) < now - YOUNG:
        with suppress(RunFailed), written_whole(path) as scratch:
            scratch.write_text(found)
    return found


def is_news(text: str, folder: Path) -> bool:
    """Whether a note on the images that are decoded in a folder of the cache is new, and remember it."""
    path = _remembered(folder.parent.parent) / fingerprint(folder.name, text)
    if path.exists():
        return False
    with suppress(RunFailed), written_whole(path) as scratch:
        scratch.touch()
    return True


def recheck(home: Path) -> None:
    """Forget what `fingerprint_folder` and `is_news` remember, so that files are checked and notes shown again."""
    try:
        for path in _remembered(home).glob("[0-9a-f]*"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"can't forget what is known of your files: {error}; check the permissions of that folder"
        ) from None


def _remembered(home: Path) -> Path:
    return home / "cache" / "remembered"


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
