"""Decode image files to square uint8 arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from simclr.errors import UserError
from simclr.progress import Observer

Array = NDArray[Any]


class Files(NamedTuple):
    """Encoded images: their names, and a function that returns the bytes of a name."""

    names: Sequence[str]
    read: Callable[[str], bytes]


def decode(data: bytes, side: int) -> Array:
    """Decode an image file and return its `pixels`."""
    with Image.open(BytesIO(data)) as image:
        return pixels(image, side)


def pixels(image: Image.Image, side: int) -> Array:
    """Convert an image of any mode and size to uint8, 3 x side x side.

    The image is turned upright by its EXIF orientation, converted to RGB, and cropped by `crop_square`.
    """
    image.draft("RGB", (2 * side, 2 * side))  # lets JPEG decode at a reduced size, never below twice the target
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits per pixel, which convert() would clip
        upright = Image.fromarray((np.asarray(upright) / 257).round().clip(0, 255).astype(np.uint8))
    return crop_square(upright.convert("RGB"), side)


def crop_square(image: Image.Image, side: int) -> Array:
    """Resize the shorter side of an RGB image to `side` (bicubic) and return the central square, 3 x side x side."""
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def decode_files(files: Files, out: Array, observer: Observer, what: str) -> list[tuple[int, str]]:
    """Decode files into the rows of `out`, in threads. Returns the rows that failed, each with the reason.

    `what` names the work in the observer's progress.
    """
    failed: list[tuple[int, str]] = []

    def decode_row(row: int) -> None:
        try:
            out[row] = decode(files.read(files.names[row]), out.shape[-1])
        except UnidentifiedImageError:
            failed.append((row, "not an image"))
        except MemoryError:  # doesn't mean that the file is damaged
            raise
        except Exception as error:  # PIL raises many kinds on damaged files, struct.error among them
            failed.append((row, str(error)))

    total, chunk = len(files.names), 256
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL releases the interpreter lock
        for start in range(0, total, chunk):
            list(pool.map(decode_row, range(start, min(start + chunk, total))))
            observer.progress(what, min(start + chunk, total), total)
    return sorted(failed)


def bad_images(
    bad: Sequence[str],
    total: int,
    remedy: str = "Remove them, or pass --on-bad-image skip (or --set data.on_bad_image=skip)",
) -> UserError:
    """Return the error that names the first files of `bad`."""
    shown = "; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
    return UserError(f"{len(bad)} of {total} files can't be read as images: {shown}. {remedy}")
