"""Images and labels in NumPy's .npz and .npy files, in the forms of MedMNIST, of Keras and plain ones."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from simclr.data.images import Array
from simclr.data.labels import IMAGE_NAMES, LABEL_NAMES, contents_of, split_in, unclear
from simclr.data.layout import is_hidden
from simclr.data.source import READING, Contents, Source, fingerprint, fingerprint_files
from simclr.data.unpack import unpack
from simclr.errors import UserError
from simclr.progress import Observer

CHANNELS = (1, 3)


class Stored(NamedTuple):
    """An array in a file: its shape and type, and a function that reads it."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    read: Callable[[], Array]

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.shape))} {self.dtype}"


def load_arrays(
    path: Path,
    home: Path,
    observer: Observer,
    *,
    unlabelled: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """The images in a .npz or .npy file, or in the .npy files of a folder. The two columns are names of arrays."""
    files = sorted(each for each in path.glob("*.npy") if not is_hidden(each.name)) if path.is_dir() else [path]
    names = [file.name for file in files]

    def read() -> Contents:
        stored: dict[str, Stored] = {}
        for file in files:
            try:
                stored |= _npz(file, home / "cache") if zipfile.is_zipfile(file) else {file.stem: _npy(file)}
            except ValueError as error:
                raise UserError(f"{file} can't be read as NumPy arrays: {error}") from None
        pairs = _pairs(path, stored, image_column, label_column, unlabelled)
        if len(types := {str(stored[image].dtype) for image, _ in pairs.values()}) > 1:
            raise UserError(f"the images of {path} have different types in its splits, {' and '.join(types)}: save one")
        contents = contents_of(
            {
                split: (_images(path, image, stored[image]), _labels(path, label, stored, stored[image].shape[0]))
                for split, (image, label) in pairs.items()
            }
        )
        note = f"{path.name}: {'; '.join(_describe_pair(stored, *pair) for pair in pairs.values())}"
        return contents._replace(notes=(note,))

    root = path if path.is_dir() else path.parent
    options = image_column, label_column, unlabelled
    return Source(fingerprint(READING, fingerprint_files(root, names), *options), read, origin=f"{path.name}")


def _describe_pair(stored: dict[str, Stored], image: str, label: str | None) -> str:
    return f"images from '{image}' ({stored[image]}), " + (f"labels from '{label}'" if label else "without labels")


# --- reading ----------------------------------------------------------------------------------------------------------


def _header(file: IO[bytes], name: str, size: int) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, order and type of an array, from its header. Raises UserError if they don't fit the size of the file."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise UserError(
            f"array '{name}' holds Python objects, which could run code when they are read: save it as numbers, e.g. "
            f"numpy.stack(list(images))"
        )
    expected = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if expected != size:
        raise UserError(f"array '{name}' has {size:,} bytes, but its header describes {expected:,}: it is damaged")
    return shape, fortran, dtype


def _npy(path: Path) -> Stored:
    with path.open("rb") as file:
        shape, _, dtype = _header(file, path.stem, path.stat().st_size)
    return Stored(shape, dtype, lambda: np.load(path, mmap_mode="r", allow_pickle=False))


def _npz(path: Path, scratch: Path) -> dict[str, Stored]:
    """The arrays of an archive by name. A large one is unpacked into a temporary file and mapped from there."""
    archive = zipfile.ZipFile(path)
    found = {}
    for member in archive.infolist():
        if not member.filename.endswith(".npy"):
            continue
        name = member.filename.removesuffix(".npy")
        with archive.open(member) as file:
            shape, fortran, dtype = _header(file, name, member.file_size)
            start = file.tell()

        def read(
            member: zipfile.ZipInfo = member,
            shape: tuple[int, ...] = shape,
            order: str = "F" if fortran else "C",
            dtype: np.dtype[np.generic] = dtype,
            start: int = start,
        ) -> Array:
            with archive.open(member) as packed, unpack(packed, f"{path}, {member.filename},", scratch) as file:
                if not np.prod(shape):
                    return np.empty(shape, dtype)
                return np.memmap(file, dtype, "r", start, shape, order)  # type: ignore[call-overload, no-any-return]

        found[name] = Stored(shape, dtype, read)
    return found


# --- which array holds what -------------------------------------------------------------------------------------------


def _pairs(
    path: Path, stored: dict[str, Stored], image_column: str | None, label_column: str | None, unlabelled: bool
) -> dict[str, tuple[str, str | None]]:
    """The names of the arrays with the images and with the labels of each split."""
    for name in (image_column, label_column):
        if name is not None and name not in stored:
            raise _unclear(path, stored, f"has no array '{name}'")
    roles: dict[tuple[str, str], list[str]] = {}
    for name, array in stored.items():
        kind = "image" if len(array.shape) > 2 else "label"
        words = set(re.split(r"[^a-z]+", name.lower()))
        known = words & set(IMAGE_NAMES if kind == "image" else LABEL_NAMES)
        roles.setdefault((split_in(name) or "train", kind if known else f"unnamed {kind}"), []).append(name)

    def only(split: str, kind: str) -> str | None:
        """The one array of a kind in a split: the one with a usual name, or the only one of such a shape."""
        found = roles.get((split, kind)) or roles.get((split, f"unnamed {kind}"), [])
        if len(found) > 1:
            raise _unclear(path, stored, f"has several arrays that may be the {kind}s: {', '.join(found)}")
        return found[0] if found else None

    if image_column is not None:
        images = {split_in(image_column) or "train": image_column}
    else:
        images = {split: image for split, _ in roles if (image := only(split, "image")) is not None}
    if not images:
        listed = ", ".join(f"{name} ({array})" for name, array in list(stored.items())[:10])
        raise UserError(
            f"{path} has no array of images, but {listed or 'nothing'}: expected N x H x W, N x H x W x C or N x C x H "
            f"x W"
        )
    if label_column is not None and len(images) > 1:
        raise _unclear(path, stored, "has images of several splits, so the labels of one array don't fit")
    return {
        split: (image, None if unlabelled else label_column or only(split, "label")) for split, image in images.items()
    }


def _unclear(path: Path, stored: dict[str, Stored], what: str) -> UserError:
    arrays = (f"{name} ({array})" for name, array in stored.items())
    return unclear(path, what, arrays, "image_column", "label_column")


def _images(path: Path, name: str, stored: Stored) -> Array:
    """The images of an array, N x 3 x H x W. Gray ones are repeated without a copy."""
    shape, dtype = stored.shape, stored.dtype
    what = f"array '{name}' of {path} ({stored})"
    if dtype.kind == "b":
        raise UserError(f"{what} has the values true and false: save it as numbers, e.g. numpy.uint8(255 * array)")
    if dtype.kind not in "uif":
        raise UserError(f"{what} doesn't contain real numbers: save it with .astype(numpy.uint8)")
    if len(shape) == 3 and shape[-1] in (1, 3, 4):
        raise UserError(f"{what} is a single picture: expected N x H x W x C, or N x H x W")
    if len(shape) == 3:
        images = stored.read()[:, None]
    elif len(shape) == 4 and (shape[1] in CHANNELS) != (shape[-1] in CHANNELS):
        images = stored.read() if shape[1] in CHANNELS else stored.read().transpose(0, 3, 1, 2)
    else:
        raise UserError(
            f"{what} doesn't have the shape of images: expected N x H x W, or 1 or 3 channels either first or last"
        )
    return np.broadcast_to(images, (len(images), 3, *images.shape[2:]))


def _labels(path: Path, name: str | None, stored: dict[str, Stored], count: int) -> Array | None:
    """The labels of an array: N, N x 1, or N x K with a single one in each row. NaN, where one is missing, is None."""
    if name is None:
        return None
    what = f"array '{name}' of {path} ({stored[name]})"
    if stored[name].shape[:1] != (count,):
        raise UserError(f"{what} doesn't have a label for each of the {count} images")
    labels = stored[name].read()
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise UserError(
                f"{what} gives an image several labels or none: expected one each. Name another array with "
                f"--set data.label_column=NAME, or add --unlabelled"
            )
        return np.asarray(labels.argmax(1))
    labels = labels.reshape(count)
    if labels.dtype.kind == "f":
        known = labels[~np.isnan(labels)]
        if not (np.isfinite(known) & (known == np.round(known))).all():
            raise UserError(
                f"{what} has fractions or infinite values, which can't be classes: save whole numbers, or add "
                f"--unlabelled"
            )
        labels = np.where(np.isnan(labels), None, np.nan_to_num(labels).astype(np.int64))  # type: ignore[call-overload]
    return np.asarray(labels)
