"""Decode a source once into a memory-mapped array on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from simclr.data.images import Files, _square, bad_images, decode_files
from simclr.data.sources import Contents
from simclr.progress import Observer

FORMAT = 1  # of the store; a change makes every cache new


CHUNK = 4096  # images that are copied or hashed at a time


def _decode_once(folder: Path, contents: Contents, side: int, skip_bad: bool, observer: Observer) -> None:
    """Make `folder` with the decoded images, or wait for the process that is making it."""
    scratch = folder.with_name(f".{folder.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            return
        try:
            shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
            scratch.mkdir()
            _write_store(scratch, contents, side, skip_bad, observer)
            for path in scratch.iterdir():  # a cache that is there is whole, after a power cut too
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            os.rename(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write_store(folder: Path, contents: Contents, side: int, skip_bad: bool, observer: Observer) -> None:
    """Decode all splits, one after the other, into `folder`: images.npy, labels.npy, meta.json."""
    labels = np.concatenate([split.labels for split in contents.splits.values()])
    images = _allocate(folder / "images.npy", (len(labels), 3, side, side))
    bad: dict[int, str] = {}
    end, bounds = 0, {}
    for name, split in contents.splits.items():
        start, end = end, end + len(split.labels)
        bounds[name] = (start, end)
        if isinstance(split.images, Files):
            for row, reason in decode_files(split.images, images[start:end], observer, f"decoding {name}"):
                bad[start + row] = f"{split.images.names[row]} ({reason})"
        elif split.images.shape[-1] == side:
            images[start:end] = split.images
        else:
            for row, image in enumerate(split.images, start):
                images[row] = _square(Image.fromarray(image.transpose(1, 2, 0)), side)
    if bad:
        keep = np.setdiff1d(np.arange(len(labels)), list(bad))
        bounds = {name: tuple(np.searchsorted(keep, ab).tolist()) for name, ab in bounds.items()}
        if not skip_bad or bounds["train"] == (0, 0):
            raise bad_images(list(bad.values()), len(labels))
        whole, labels = images, labels[keep]
        images = _allocate(folder / "kept.npy", (len(keep), 3, side, side))
        for start in range(0, len(keep), CHUNK):
            images[start : start + CHUNK] = whole[keep[start : start + CHUNK]]
        images.flush()
        del images, whole  # Windows replaces no file that is mapped
        os.replace(folder / "kept.npy", folder / "images.npy")
        images = np.load(folder / "images.npy", mmap_mode="r+")
    np.save(folder / "labels.npy", labels)
    digest = hashlib.blake2b(labels.tobytes(), digest_size=16)
    for start in range(0, len(images), CHUNK):
        digest.update(images[start : start + CHUNK].tobytes())
    meta = {"digest": digest.hexdigest(), "classes": contents.classes, "bounds": bounds}
    images.flush()
    (folder / "meta.json").write_text(json.dumps(meta | {"bad": list(bad.values()), "files": len(labels) + len(bad)}))


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A writable memory-mapped uint8 array whose blocks exist: a full disk is an error now, not a signal later."""
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
