"""Decode the images of a source once, into a memory-mapped array on disk, and measure them once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from simclr.data.check import Measured, describe, measure
from simclr.data.fill import fill
from simclr.data.images import Array, BadFile, Decoding, bad_images
from simclr.data.source import UNLABELLED, Contents, Source, fingerprint
from simclr.data.wide import Range
from simclr.errors import RunFailed, UserError
from simclr.files import written_whole
from simclr.progress import Observer

FORMAT = 2  # part of the name of every store's folder: a new number makes the suite decode everything again
HASHES = "hashes.npy"
MANY = 5000  # images from which on decoding takes more than some seconds
CHUNK = 1 << 24  # bytes of images that are copied or counted at a time


@dataclass(frozen=True)
class ImageStore:
    """The decoded images of a data set, in a folder of their own. They never change once the folder exists."""

    folder: Path
    images: Array  # uint8, N x 3 x side x side, memory-mapped (writes stay in memory)
    labels: Array  # int64, N; UNLABELLED where unknown
    classes: tuple[str, ...]
    splits: dict[str, Array]  # the rows of each split of the source
    digest: str  # hash of images and labels
    range: Range | None  # the values of images of more than 8 bits that became 0 and 255
    measured: Measured
    skipped: tuple[BadFile, ...]  # files that can't be read as images and have no row, in the order of the rows
    notes: tuple[str, ...]  # sentences: what was understood and done when the images were decoded

    def channel_statistics(self, rows: Array, observer: Observer) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of some images, in [0, 1], rounded to six digits.

        They are computed once and then read from a file in the store's folder. Where the folder can't be written, they
        are computed at each call.
        """
        path = self.folder / f"statistics-{hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest()}.json"
        try:
            found = json.loads(path.read_text())
            mean, std = np.array([found["mean"], found["std"]], float).reshape(2, 3).tolist()
        except Exception as error:  # json and numpy raise many kinds on damaged files
            if path.exists():
                observer.say(f"{path} is damaged ({error}), so the statistics of the images are computed again")
            mean, std = compute_channel_statistics(self.images, rows)
            with suppress(RunFailed), written_whole(path) as scratch:
                scratch.write_text(json.dumps({"mean": mean, "std": std}))
        return tuple(mean), tuple(std)

    def hashes(self) -> Array:
        """A number for each image, uint64 N, equal for images with equal pixels."""
        return self.numbers(HASHES, lambda: measure(self.images)[1])

    def numbers(self, file: str, compute: Callable[[], Array]) -> Array:
        """A number for each image, uint64 N: from a file of the store, or computed where that is missing or damaged."""
        path = self.folder / file
        with suppress(Exception):  # numpy raises many kinds
            numbers: Array = np.load(path)
            if numbers.shape == self.labels.shape and numbers.dtype == np.uint64:
                return numbers
        numbers = compute()
        with suppress(RunFailed), written_whole(path) as scratch:
            np.save(scratch, numbers)
        return numbers


class _Damaged(Exception):  # noqa: N818 (it describes the store)
    """A store that can't be read because files are missing, cut off or wrong."""


def open_store(
    name: str,
    source: Source,
    decoding: Decoding,
    cache: Path,
    observer: Observer,
    *,
    skip_bad: bool = False,
) -> ImageStore:
    """Open the store of a source's images, decoded in a certain way. If it is missing or damaged, decode them first.

    Raises UserError where files can't be read as images, unless `skip_bad`, or where their values need a range, and
    RunFailed where the disk is full.
    """

    def folder_of(way: Decoding) -> Path:
        images = source.fingerprint + source.labelling
        return cache / f"{name}-{fingerprint(images, way.side, FORMAT, way.background, way.range)}"

    folder = folder_of(decoding)
    try:
        if decoding.range is not None:  # perhaps it was found in these images
            with suppress(_Damaged):
                found = _load(folder_of(decoding._replace(range=None)), decoding.side, skip_bad)
                if found.range == decoding.range:
                    return found
        return _load(folder, decoding.side, skip_bad)
    except _Damaged as damage:
        if folder.exists():
            observer.say(f"the decoded images in {folder} are damaged ({damage}), so they are decoded again")
    contents = source.read()
    try:
        return _create(folder, contents, decoding, skip_bad, observer)
    except OSError as error:
        raise RunFailed(
            f"can't write the decoded images to {cache}: {error}; free some space there, or check the folder's "
            f"permissions"
        ) from error


def _load(folder: Path, side: int, skip_bad: bool) -> ImageStore:
    """Map the files of a store. The pixels themselves are not verified, as that would read them all at each opening."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        labels = np.load(folder / "labels.npy")
        mapped = np.load(folder / "images.npy", mmap_mode="c")
        images = mapped[: len(labels)]  # skipped files leave rows at the end
        classes, digest, files = tuple(meta["classes"]), str(meta["digest"]), int(meta["files"])
        if any(isinstance(file, str) for file in meta["bad"]):
            raise ValueError("an earlier version wrote the names of files that can't be read")
        bad = tuple(BadFile(*file) for file in meta["bad"])
        limits, measured = meta["range"], Measured(**meta["measured"])
        notes = tuple(map(str, meta.get("notes", ())))  # stores of earlier versions have none
        limits = None if limits is None else (float(limits[0]), float(limits[1]))
        splits = {split: np.arange(*bounds) for split, bounds in meta["bounds"].items()}
        rows = np.concatenate(list(splits.values()))
        if (images.shape, images.dtype) != ((len(labels), 3, side, side), np.uint8):
            raise ValueError(f"images.npy holds {images.dtype} {images.shape} for {len(labels)} labels")
        if mapped.offset + mapped.nbytes != (folder / "images.npy").stat().st_size:
            raise ValueError("images.npy is longer than its images")
        if labels.dtype != np.int64 or not ((labels >= UNLABELLED) & (labels < len(classes))).all():
            raise ValueError(f"labels.npy holds labels that are not among the {len(classes)} classes")
        if not np.array_equal(rows, np.arange(len(labels))):
            raise ValueError("meta.json has splits of other rows")
    except Exception as error:  # json and numpy raise many kinds on damaged files
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise UserError(
                f"can't read the decoded images in {folder}: {error}; check the permissions of that folder"
            ) from error
        raise _Damaged(" ".join(str(error).split()) or type(error).__name__) from None
    if bad and not skip_bad:
        raise bad_images(bad, files)
    return ImageStore(folder, images, labels, classes, splits, digest, limits, measured, bad, notes)


def compute_channel_statistics(images: Array, rows: Array) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of some rows of N x 3 x H x W uint8, in [0, 1], to six digits."""
    counts = np.zeros((3, 256))  # of each value of a channel
    step = _images_per_chunk(images)
    for start in range(0, len(rows), step):
        chunk = images[rows[start : start + step]]
        for channel in range(3):
            flat = Image.fromarray(chunk[:, channel].reshape(len(chunk), -1))
            counts[channel] += flat.histogram()  # faster than NumPy's
    levels = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(share @ levels**2 - mean**2)
    return mean.round(6).tolist(), std.clip(1e-3).round(6).tolist()


def _images_per_chunk(images: Array) -> int:
    return max(1, CHUNK // int(images[0].nbytes))


def _create(folder: Path, contents: Contents, decoding: Decoding, skip_bad: bool, observer: Observer) -> ImageStore:
    """Make the folder of a store, or wait for the process that makes it. It appears only when it is complete."""
    scratch = folder.with_name(f".{folder.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        with suppress(_Damaged):
            return _load(folder, decoding.side, skip_bad)  # another process made it meanwhile
        try:
            shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
            scratch.mkdir()
            _write(scratch, contents, decoding, skip_bad, observer)
            for path in scratch.iterdir():  # so that the folder is complete after a power cut too
                _write_through(path)
            shutil.rmtree(folder, ignore_errors=True)  # the damaged one
            os.rename(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return _load(folder, decoding.side, skip_bad)


def _write(folder: Path, contents: Contents, decoding: Decoding, skip_bad: bool, observer: Observer) -> None:
    """Decode all splits, one after the other, into images.npy, labels.npy and meta.json."""
    labels = np.concatenate([split.labels for split in contents.splits.values()])
    if len(labels) >= MANY:
        observer.say(f"decoding {len(labels):,} images (only once)")
    images = allocate(folder / "images.npy", (len(labels), 3, decoding.side, decoding.side))
    decoding, bad, notes = fill(contents, images, decoding, observer)
    ends = np.cumsum([len(split.labels) for split in contents.splits.values()]).tolist()
    bounds = dict(zip(contents.splits, zip([0, *ends], ends, strict=False), strict=True))
    if bad:
        keep = np.setdiff1d(np.arange(len(labels)), list(bad))
        bounds = {name: tuple(np.searchsorted(keep, ab).tolist()) for name, ab in bounds.items()}
        if not skip_bad:
            raise bad_images(list(bad.values()), len(labels))
        if bounds["train"] == (0, 0):
            raise bad_images(list(bad.values()), len(labels), "None is left to train on: add images that can be read")
        step = _images_per_chunk(images)
        for start in range(0, len(keep), step):  # in place, since rows only move towards the start
            images[start : min(start + step, len(keep))] = images[keep[start : start + step]]
        labels = labels[keep]
    np.save(folder / "labels.npy", labels)
    kept = images[: len(labels)]
    with ThreadPoolExecutor(2) as threads:
        threads.submit(_write_through, folder / "images.npy")  # meanwhile, as the disk takes its time
        digest = threads.submit(_digest, kept, labels)
        measured, hashes = measure(kept)
    np.save(folder / HASHES, hashes)
    meta = {
        "digest": digest.result(),
        "classes": contents.classes,
        "bounds": bounds,
        "range": decoding.range,
        "measured": measured._asdict(),
        "bad": list(bad.values()),
        "files": len(labels) + len(bad),
        "notes": [*contents.notes, *notes, *filter(None, [describe(measured)])],
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def _write_through(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _digest(images: Array, labels: Array) -> str:
    digest = hashlib.blake2b(labels.tobytes(), digest_size=16)
    digest.update(images.data)
    return digest.hexdigest()


def allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Create a writable memory-mapped uint8 array and reserve its disk space.

    Without that, a full disk would kill the process with a signal at some later write.
    """
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
