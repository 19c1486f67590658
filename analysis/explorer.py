"""The explorer of images: one HTML page with a map, the neighbours of each image, and lists to look through."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from analysis.style import COLORS
from analysis.templates import jpeg, render

ACROSS = 16  # pictures side by side on a sheet of ACROSS x ACROSS
PIXELS = 10_000 * 64**2  # of all pictures together, which make a page of some 25 MB
STRETCH = 1.6  # how many times as much the shorter side of the map may be stretched as the other
ALIKE, LEVELS = 0.99, 3  # copies have features of this similarity, and pixels that differ less, of 255
PALETTE = (*COLORS[:-1], "#8F5BD6", "#8B5A2B", "#7D8500", "#5B6C7D")  # without black, which dark mode hides

Size = tuple[int, int, int]  # of an image file: width and height in pixels, and bytes


class Column(NamedTuple):
    """What images can be coloured by: the category of each (N numbers, -1 for none), and what it means."""

    name: str
    categories: Sequence[str]
    codes: NDArray[np.integer]
    about: str = ""


def thumbnail_side(images: int, original: int) -> int:
    """Side in pixels of the pictures of this many images, whose shorter side is about `original`.

    It is a multiple of 16, the size of JPEG's blocks, so that pictures on one sheet don't run into each other, but for
    their outermost pixels.
    """
    side = min((PIXELS / images) ** 0.5, max(original, 32))
    return int(np.clip(side // 16 * 16, 32, 160))


def explorer_page(
    title: str,
    notes: Sequence[str],
    names: Sequence[str],
    columns: Sequence[Column],
    points: NDArray[Any],
    neighbours: NDArray[np.integer],
    similarities: NDArray[np.floating],
    thumbnails: NDArray[np.uint8],
    sizes: Sequence[Size | None],
) -> str:
    """A self-contained page for N images, of which it can number 65,536, that shows every text literally.

    `columns` are what the images can be coloured by. `points` are N x 2. `neighbours` are the
    rows of the K images nearest to each (N x K, nearest first), and `similarities` theirs, in [-1, 1]. `thumbnails` are
    N x S x S x 3, where S is a multiple of 16. `sizes` are those of the files, where they are known. Images that lie
    together on the map load faster if their rows are near.
    """
    # Both directions fill the page, as far as proportions allow: distances on the map mean little anyway.
    low, extents = points.min(0), np.ptp(points, axis=0)
    extent = np.maximum(extents, max(float(extents.max()), 1e-9) / STRETCH)
    x, y = ((points - low) / extent * 65535).T
    data = {
        "names": list(names),
        "sizes": list(sizes),
        "columns": [_column(column) for column in columns],
        "x": _numbers(x),
        "y": _numbers(y),
        "neighbours": _numbers(neighbours),
        "distances": _numbers((1 - similarities).clip(0, 2) * 32767),
        "perImage": neighbours.shape[1],
        "side": thumbnails.shape[1],
        "across": ACROSS,
        "palette": PALETTE,
        "alike": ALIKE,
        "levels": LEVELS,
    }
    return render("explorer.html.jinja", title=title, notes=notes, data=data, sheets=_sheets(thumbnails))


def _column(column: Column) -> dict[str, Any]:
    """The names of the categories, and the number of each image's, from 1. Missing values have 0."""
    return {"name": column.name, "categories": list(column.categories), "codes": _numbers(column.codes + 1)}


def _numbers(values: Any) -> str:
    """Numbers from 0 to 65535 as little-endian 16-bit integers in base64."""
    return base64.b64encode(np.rint(np.asarray(values)).astype("<u2").tobytes()).decode()


def _sheets(thumbnails: NDArray[np.uint8]) -> list[str]:
    """The pictures (N x S x S x 3) on sheets, as addresses of JPEG files, row by row from the top left."""
    side, sheets = thumbnails.shape[1], []
    for start in range(0, len(thumbnails), ACROSS**2):
        sheet = np.zeros((ACROSS**2, side, side, 3), np.uint8)
        some = thumbnails[start : start + ACROSS**2]
        sheet[: len(some)] = some
        whole = sheet.reshape(ACROSS, ACROSS, side, side, 3).transpose(0, 2, 1, 3, 4)
        sheets.append(jpeg(whole.reshape(ACROSS * side, ACROSS * side, 3)))
    return sheets


def small_pictures(thumbnails: NDArray[np.uint8]) -> NDArray[np.int16]:
    """What copies are told by: the pictures (N x S x S x 3), shrunk to N x 8 x 8 x 3.

    The page does the same in Chromium, which shrinks pictures by bilinear sampling of single points.
    """
    side, tiny = thumbnails.shape[1], []
    step = (side - 2) / 8  # without the outermost pixels
    for address in _sheets(thumbnails):
        with Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))) as sheet:
            for place in range(ACROSS**2):
                left, top = place % ACROSS * side + 1, place // ACROSS * side + 1
                to_sheet = (step, 0, left, 0, step, top)
                small = sheet.transform((8, 8), Image.Transform.AFFINE, to_sheet, Image.Resampling.BILINEAR)
                tiny.append(np.asarray(small, np.int16))
    return np.stack(tiny[: len(thumbnails)])


def pixel_differences(small: NDArray[np.int16], rows: Any, others: Any) -> NDArray[np.float64]:
    """The mean differences (0 to 255) between `small_pictures` in some rows and those in as many others."""
    differences: NDArray[np.float64] = np.abs(small[rows] - small[others]).mean((1, 2, 3))
    return differences.round(4)
