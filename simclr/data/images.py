"""Find and decode image files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from simclr.errors import UserError
from simclr.progress import Observer

Array = NDArray[Any]


class Files(NamedTuple):
    """Encoded images: their names, and how to get the bytes of one."""

    names: Sequence[str]
    read: Callable[[str], bytes]


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def _hidden(name: str) -> bool:
    """Whether a file or folder is not the user's: a hidden one, or what Windows puts beside pictures."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not _hidden(e.name)), key=lambda e: e.name)


def walk(folder: str) -> list[str]:
    """The paths of all files below a folder, hidden ones left out, sorted."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        found += [os.path.join(root, name) for name in files if not _hidden(name)]
    return sorted(found)


def decode(data: bytes, side: int) -> Array:
    """Encoded image bytes -> their `pixels`."""
    with Image.open(BytesIO(data)) as image:
        return pixels(image, side)


def pixels(image: Image.Image, side: int) -> Array:
    """Any image -> 3 x side x side uint8: upright, RGB, shorter side to `side` (bicubic), central square."""
    image.draft("RGB", (2 * side, 2 * side))  # lets JPEG decode at a reduced size, never below twice the target
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip
        upright = Image.fromarray((np.asarray(upright) / 257).round().clip(0, 255).astype(np.uint8))
    return _square(upright.convert("RGB"), side)


def _square(image: Image.Image, side: int) -> Array:
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def decode_files(files: Files, out: Array, observer: Observer, what: str) -> list[tuple[int, str]]:
    """Decode files into the rows of `out`, in threads (PIL lets go of the interpreter); the rows that failed."""
    bad: list[tuple[int, str]] = []

    def one(row: int) -> None:
        try:
            out[row] = decode(files.read(files.names[row]), out.shape[-1])
        except OSError as error:  # PIL's UnidentifiedImageError is one
            bad.append((row, "not an image" if "identify" in str(error) else str(error)))
        except MemoryError:  # says nothing of the file
            raise
        except Exception as error:  # PIL raises many kinds on damaged files, struct.error among them
            bad.append((row, str(error)))

    total, chunk = len(files.names), 256
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, total, chunk):
            list(pool.map(one, range(start, min(start + chunk, total))))
            observer.progress(what, min(start + chunk, total), total)
    return sorted(bad)


def bad_images(
    bad: Sequence[str],
    total: int,
    remedy: str = "Remove them, or pass --on-bad-image skip (or --set data.on_bad_image=skip)",
) -> UserError:
    shown = "; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
    return UserError(f"{len(bad)} of {total} files can't be read as images: {shown}. {remedy}")
