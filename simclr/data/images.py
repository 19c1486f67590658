"""Decode image files to square uint8 arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from simclr.data.jpeg import JPEG_START, decode_ordinary
from simclr.data.unreadable import describe, misread, reason
from simclr.data.wide import Array as Array
from simclr.data.wide import Range, WideImage, find_range, kind_of_values, sample_values, to_eight_bits
from simclr.data.workers import in_chunks
from simclr.errors import UserError
from simclr.progress import Observer

LARGEST_FILE = (1 << 31) - (1 << 12)  # bytes of a file: what Linux reads at once, and more than PIL decodes
MANY = 100  # files from which on several processes decode faster than threads, although they take time to start
DRAWINGS = ("EPS", "WMF")  # formats that PIL reads only where other programs are installed
SAMPLED = 10_000  # files (or up to twice as many) whose values are looked at to find their range


class Files(NamedTuple):
    """Encoded images: their names, and a function that returns the bytes of a name."""

    names: Sequence[str]
    read: Callable[[str], bytes]
    forkable: bool = False  # whether forked processes may call it: it opens its files anew


class BadFile(NamedTuple):
    """A file that can't be read as an image, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def files_at(paths: Sequence[Path]) -> Files:
    """Image files on the disk, named by their paths."""
    return Files([str(path) for path in paths], read_file, forkable=True)


def join_files(parts: Iterable[Files]) -> Files:
    """The files of several parts, whose names differ."""
    joined = [(name, files.read) for files in parts for name in files.names]
    readers = dict(joined)
    return Files([name for name, _ in joined], lambda name: readers[name](name))


def read_file(path: str) -> bytes:
    """The bytes of a file. Raises ValueError if it is larger than LARGEST_FILE."""
    with open(path, "rb") as file:  # noqa: PTH123 (faster than Path, for many small files)
        if (size := os.fstat(file.fileno()).st_size) > LARGEST_FILE:
            raise ValueError(f"has {size:,} bytes, more than an image may have ({LARGEST_FILE:,}): leave it out")
        return file.read()


class Decoding(NamedTuple):
    """How image files are turned into pixels."""

    side: int  # of the square images, in pixels
    background: str = "white"  # colour behind transparent images
    range: Range | None = None  # the values of images of more than 8 bits that become 0 and 255; None: unknown


class Decoded(NamedTuple):
    """The pixels of an image file, uint8 3 x side x side, and what to report about the file."""

    pixels: Array
    more_pages: bool  # whether the file has more pages or frames than that
    kind: str | None  # what its values are if they don't fit 8 bits


class Outcome(NamedTuple):
    """What happened to files that were decoded, by row."""

    failed: dict[int, str]  # why a file can't be read
    wide: dict[int, str]  # the kind of values of files whose values don't fit 8 bits; such files fail without a range
    more_pages: list[int]


def open_image(data: bytes) -> Image.Image:
    """Open an image file without decoding it. Raises ValueError, or another error of PIL, if that is impossible."""
    try:
        if data[4:8] == b"ftyp":
            _register_heic()
        if data.startswith(JPEG_START):  # Image.open would refuse the large ones, which are decoded at a reduced size
            image = JpegImageFile(BytesIO(data))
            image.decodermaxblock = len(data)  # libjpeg is faster if it has all at once
            return image
        return Image.open(BytesIO(data))
    except (UnidentifiedImageError, SyntaxError, ZeroDivisionError):
        raise ValueError(describe(data)) from None
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        raise ValueError("has too much text in its metadata: remove that (exiftool -all= FILE)") from None


@cache
def _register_heic() -> None:
    """Let PIL read HEIC photos if the extra `heic` is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def decode(data: bytes, decoding: Decoding) -> Decoded:
    """Decode an image file. Raises ValueError, or another error of PIL, if that is impossible."""
    if (ordinary := decode_ordinary(data, 2 * decoding.side)) is not None:
        return Decoded(crop_square(_as_rgb(ordinary), decoding.side), more_pages=False, kind=None)
    with open_image(data) as image:
        kind = kind_of_values(image)
        try:
            return Decoded(pixels(image, decoding), _has_more_pages(image), kind)
        except Exception:  # other programs that PIL calls for drawings raise many kinds
            if image.format in DRAWINGS:
                raise ValueError(describe(data)) from None
            raise


def _has_more_pages(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the second page is damaged
        return True


def pixels(image: Image.Image, decoding: Decoding) -> Array:
    """Convert an image of any mode and size to uint8, 3 x side x side: `to_rgb`, cropped by `crop_square`."""
    return crop_square(to_rgb(image, decoding), decoding.side)


def thumbnail(data: bytes, decoding: Decoding) -> Image.Image:
    """The whole image of a file as RGB, shrunk to fit into a square of `decoding.side`. Raises what `decode` raises."""
    with open_image(data) as image:
        rgb = to_rgb(image, decoding)
        rgb.thumbnail((decoding.side, decoding.side), Image.Resampling.BICUBIC)
        rgb.load()  # a small one is not read yet
        return rgb


def to_rgb(image: Image.Image, decoding: Decoding) -> Image.Image:
    """Convert an image of any mode and size to RGB. A JPEG that is much larger than `decoding.side` is shrunk.

    The image is turned upright by its EXIF orientation, and laid over the background if it has transparency. Values of
    more than 8 bits are mapped to 8 bits by `to_eight_bits`. Raises WideImage if their range is not known, and
    ValueError for an image that is too large or that PIL would misread.
    """
    whole = image.size
    image.draft("RGB", (2 * decoding.side, 2 * decoding.side))  # JPEG: decodes fewer pixels, never below twice the side
    _check_size(whole if image.info.get("progressive") else image.size)
    if reason := misread(image):
        raise ValueError(reason)
    if kind := kind_of_values(image):
        if decoding.range is None:
            raise WideImage(kind)
        image = to_eight_bits(image, decoding.range)
    elif image.format != "JPEG" or not {"exif", "xmp"}.isdisjoint(image.info):  # others have no orientation
        ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        return _composite(image, decoding.background)
    return _as_rgb(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def _check_size(size: tuple[int, int]) -> None:
    """Raise ValueError for a number of pixels that would take too much memory, by PIL's limit."""
    megapixels, limit = size[0] * size[1] / 1e6, 2 * (Image.MAX_IMAGE_PIXELS or float("inf")) / 1e6
    if megapixels > limit:
        raise ValueError(f"has {megapixels:.0f} megapixels, more than {limit:.0f}: make it smaller")


def _composite(image: Image.Image, background: str) -> Image.Image:
    """An image with transparency laid over a colour, as RGB."""
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(ground, image).convert("RGB")


def crop_square(image: Image.Image, side: int) -> Array:
    """Resize the shorter side of an RGB image to `side` (bicubic) and return the central square, 3 x side x side."""
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    rows = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8)  # the colours of a row one after the other
    return rows.reshape(side, 3, side).transpose(1, 0, 2)


def decode_files(files: Files, out: Array, decoding: Decoding, observer: Observer, what: str) -> Outcome:
    """Decode files into the rows of `out`, in parallel. `what` names the work in the observer's progress.

    A memory-mapped `out` of many rows is filled by several processes if the files allow it, which is faster for small
    images.
    """
    total, outcome = len(files.names), Outcome({}, {}, [])

    def decode_rows(rows: range) -> Outcome:
        part = Outcome({}, {}, [])
        for row in rows:
            try:
                out[row], more_pages, kind = decode(files.read(files.names[row]), decoding)
            except MemoryError:  # doesn't mean that the file is damaged
                raise
            except Exception as error:  # PIL raises many kinds on damaged files, struct.error among them
                part.failed[row] = reason(error)
                if isinstance(error, WideImage):
                    part.wide[row] = error.kind
            else:
                part.more_pages.extend([row] * more_pages)
                part.wide.update({row: kind} if kind else {})
        return part

    processes = files.forkable and isinstance(out, np.memmap) and total >= MANY
    for done, part in in_chunks(decode_rows, total, processes=processes):
        outcome.failed.update(part.failed)
        outcome.wide.update(part.wide)
        outcome.more_pages.extend(part.more_pages)
        observer.progress(what, done, total)
    return outcome


def measure_range(files: Files, observer: Observer) -> Range:
    """Find the range of values of wide images that `to_eight_bits` maps to 8 bits, over a sample of SAMPLED files."""
    names = files.names[:: max(1, len(files.names) // SAMPLED)]

    def sample(rows: range) -> list[Array]:
        found = []
        for row in rows:
            try:
                with open_image(files.read(names[row])) as image:
                    found.append(sample_values(image))
            except MemoryError:
                raise
            except Exception:  # it is reported when it is decoded
                continue
        return found

    samples: list[Array] = []
    for done, part in in_chunks(sample, len(names), processes=False):
        samples += part
        observer.progress("measuring values", done, len(names))
    return find_range(samples)


def bad_images(bad: Sequence[object], total: int, remedy: str = "Remove them, or add --on-bad-image skip") -> UserError:
    """Return the error that names the first files of `bad`."""
    return UserError(f"{listed_files(bad, total)}. {remedy}")


def too_many_skipped(skipped: Sequence[object], total: int, share: float) -> UserError:
    """Return the error for more skipped files than this share of all files."""
    needed = math.ceil(100 * len(skipped) / total) / 100
    remedy = f"Look at the files, or allow more with --on-bad-image {needed:g}"
    return bad_images(skipped, total, f"That is more than {share:.0%} of them. {remedy}")


def listed_files(bad: Sequence[object], total: int) -> str:
    """How many files can't be read as images, and the first of them with the reasons."""
    shown = "; ".join(map(str, bad[:5])) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
    return f"{len(bad)} of {total} files can't be read as images: {shown}"
