"""Images whose values have more than 8 bits or are fractions: read their values, and map a range of them to 8 bits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from simclr.data.unreadable import raw_mode, tiff_tag

Array = NDArray[Any]
Range = tuple[float, float]

PERCENTILES = (0.1, 99.9)  # of the sampled values, which become 0 and 255
SAMPLED_SIDE = 64  # of each image, up to SAMPLED_SIDE x SAMPLED_SIDE pixels are sampled
COMMON_RANGES: tuple[Range, ...] = ((0, 1), *((0, 2**bits - 1) for bits in (8, 10, 12, 14, 16)))
ROWS = 1 << 20  # values that are scaled at a time

# PIL reads only one byte of each 16-bit colour value. The other byte comes from a second reading in this raw mode.
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
COLOUR_MODES = ("RGB", "RGBA", "RGBX")


class WideImage(ValueError):  # noqa: N818 (it describes the image)
    """An image of more than 8 bits, or of fractions, for which no range of values is known."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(f"has {kind} values, but the encoder was trained on images of 8 bits: convert it to 8 bits")


def kind_of_array(dtype: np.dtype[Any]) -> str | None:
    """What the values of an array are if they don't fit 8 bits, as `kind_of_values` says it. None for uint8."""
    if dtype == np.uint8:
        return None
    return "floating-point" if dtype.kind == "f" else "16-bit" if dtype == np.uint16 else "integer"


def kind_of_values(image: Image.Image) -> str | None:
    """What the values of an image are if they don't fit 8 bits, such as "16-bit". None for all other images.

    The image must not be loaded yet.
    """
    if image.mode == "F":
        return "floating-point"
    if image.mode.startswith("I"):
        return "16-bit" if ";16" in image.mode or image.format == "PPM" else "integer"
    if tiff_tag(image, "SampleFormat") == 2:
        return "signed 8-bit"
    mode, wide, _ = raw_mode(image).partition(";16")
    return "16-bit" if wide and mode in COLOUR_MODES else None


def to_eight_bits(image: Image.Image, limits: Range) -> Image.Image:
    """Turn a wide image upright and map the values from `limits` to 0 and 255, clipped and rounded.

    Returns an image of mode L or RGB, or LA or RGBA if it has transparency. Values that are not a number become 0.
    """
    transparent = image.info.get("transparency") if image.mode.startswith("I") else None
    values, alpha = _read(image)
    scaled = scale(values, limits)
    if tiff_tag(image, "PhotometricInterpretation") == 0:  # white is zero
        scaled = 255 - scaled
    result = Image.fromarray(scaled)
    if transparent is not None:
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    if alpha is not None:
        result.putalpha(alpha)
    return result


def _read(image: Image.Image) -> tuple[Array, Image.Image | None]:
    """The values of a wide image, upright, H x W or H x W x 3, and its transparency."""
    low = _second_bytes(image) if image.mode in ("RGB", "RGBA") else None
    ImageOps.exif_transpose(image, in_place=True)
    values = np.asarray(image)
    if low is not None:
        ImageOps.exif_transpose(low, in_place=True)
        values = values[..., :3].astype(np.uint16) * 256 + np.asarray(low)[..., :3]
        return values, image.getchannel("A") if image.mode == "RGBA" else None
    if tiff_tag(image, "SampleFormat") in (None, 1) and tiff_tag(image, "BitsPerSample") == 32 and image.mode == "I":
        values = values.view(np.uint32)  # PIL has only signed integers
    if image.mode == "L":
        values = values.view(np.int8)
    return values, None


def _second_bytes(image: Image.Image) -> Image.Image:
    """The same image with the lower byte of each 16-bit value, where PIL reads the upper one."""
    raw, file = raw_mode(image), image.fp  # type: ignore[attr-defined]
    position = file.tell()
    file.seek(0)
    other = Image.open(BytesIO(file.read()))
    file.seek(position)
    swapped = raw[:-1] + OTHER_BYTE[raw[-1]]

    def replaced(tile: Any) -> Any:
        args = (swapped, *tile[3][1:]) if isinstance(tile[3], tuple) else swapped
        return tile._replace(args=args)

    other.tile = [replaced(tile) for tile in other.tile]
    return other


def scale(values: Array, limits: Range) -> Array:
    """Map values to uint8, a part of the rows at a time, which keeps memory low."""
    low, high = limits
    factor = np.float64(255 / (high - low))
    out = np.empty(values.shape, np.uint8)
    step = max(1, ROWS // max(1, values[:1].size))
    for start in range(0, len(values), step):
        part = (values[start : start + step].astype(np.float64) - low) * factor
        out[start : start + step] = np.nan_to_num(part.round().clip(0, 255), nan=0)
    return out


def sample_values(image: Image.Image) -> Array:
    """Values of an even grid of pixels of a wide image, as float64, without those that are not finite."""
    return sample_array(_read(image)[0])


def sample_array(values: Array) -> Array:
    """Values of an even grid in an array H x W or H x W x 3, as float64, without those that are not finite."""
    grid = values[:: -(-values.shape[0] // SAMPLED_SIDE), :: -(-values.shape[1] // SAMPLED_SIDE)]
    found = grid.astype(np.float64).ravel()
    return found[np.isfinite(found)]


def find_range(samples: Sequence[Array]) -> Range:
    """The range of values that is mapped to 0 to 255: the PERCENTILES of all samples.

    It is one of COMMON_RANGES if it differs from that by at most one of the 256 levels. It is the whole range of the
    samples if the percentiles are equal, and has a length of 1 if all values are equal.
    """
    values = np.concatenate(samples)
    if not len(values):
        return 0.0, 1.0
    low, high = map(float, np.percentile(values, PERCENTILES))
    for least, most in COMMON_RANGES:
        if max(abs(low - least), abs(high - most)) <= (most - least) / 255:
            return float(least), float(most)
    if low == high:
        low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1
