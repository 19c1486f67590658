"""Decode ordinary JPEG files as PIL does, but without its parsing of headers, which is half the time of small files."""

from __future__ import annotations

import struct

from PIL import Image

JPEG_START = b"\xff\xd8\xff"  # of every JPEG file
SEGMENT = struct.Struct(">HH")  # how a segment begins: its marker and its length
FRAME = struct.Struct(">BHHB")  # how the segment FRAME_MARKER goes on: bits, height, width, number of colours
FRAME_MARKER, SCAN_MARKER = 0xFFC0, 0xFFDA  # of pictures that are not progressive; and where their data begins
# Tables, restarts, comments and data of applications, but not 0xFFE1, which may say how the picture is turned.
OTHER_MARKERS = {0xFFDB, 0xFFC4, 0xFFDD, 0xFFFE, *range(0xFFE0, 0xFFF0)} - {0xFFE1}
MODES = {1: "L", 3: "RGB"}
SCALES = (8, 4, 2, 1)  # divisors at which JPEG files are decoded
MOST_PIXELS = 1 << 26  # PIL checks larger pictures


def decode_ordinary(data: bytes, least: int) -> Image.Image | None:
    """The picture in a JPEG file, grey or RGB, decoded at the smallest scale at which both sides have `least` pixels.

    The result is the same as that of PIL's `open`, `draft` and `load`. None for files that need more than that:
    progressive ones, those with EXIF or XMP data, CMYK, very large and damaged ones, and files of another kind.
    """
    if not data.startswith(JPEG_START) or (frame := _frame(data)) is None:
        return None
    mode, width, height = frame
    scale = next(scale for scale in SCALES if scale <= min(width // least, height // least) or scale == 1)
    size = -(-width // scale), -(-height // scale)
    if not 0 < size[0] * size[1] <= MOST_PIXELS:
        return None
    try:
        return Image.frombytes(mode, size, data, "jpeg", mode, "", scale, 0)
    except ValueError:  # damaged: PIL says how
        return None


def _frame(data: bytes) -> tuple[str, int, int] | None:
    """Mode, width and height, from the segments before the data. None if there are others than in ordinary files."""
    at, found = 2, None
    while at + SEGMENT.size + FRAME.size <= len(data):
        marker, length = SEGMENT.unpack_from(data, at)
        if marker == SCAN_MARKER:
            return found
        if marker == FRAME_MARKER:
            bits, height, width, colours = FRAME.unpack_from(data, at + SEGMENT.size)
            if bits != 8 or colours not in MODES or found is not None:
                return None
            found = MODES[colours], width, height
        elif marker not in OTHER_MARKERS:
            return None
        at += 2 + length
    return None
