"""Ordinary JPEG files have the pixels that PIL gives, and all others are left to PIL."""

import io

import numpy as np
import pytest
from PIL import Image

from simclr.data.jpeg import decode_ordinary
from tests.simclr.data.helpers import encode, noise

SIZES = [(32, 32), (33, 17), (64, 48), (131, 257), (256, 256), (600, 401), (1, 9)]  # height, width
FORMS = {
    "plain": {},
    "high quality": {"quality": 100, "subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "optimised": {"optimize": True, "quality": 30},
    "restarts": {"restart_marker_blocks": 2},
    "profile and comment": {"icc_profile": b"x" * 500, "comment": b"y"},
    "of raw RGB": {"keep_rgb": True},
}


def as_pil(data, least):
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (least, least))
        return np.asarray(image)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("least", [16, 128])
def test_pixels_are_those_of_pil(form, least, rng):
    for height, width in SIZES:
        for array in (noise(rng, height, width, 3), noise(rng, height, width)):
            data = encode(array, "JPEG", **FORMS[form] if array.ndim == 3 else {})
            found = decode_ordinary(data, least)
            assert found is not None
            assert np.array_equal(found, as_pil(data, least))


def test_what_pil_adds_to_files_does_not_matter(rng):
    data = encode(noise(rng, 40, 40, 3), "JPEG")
    assert np.array_equal(decode_ordinary(data + b"more", 16), as_pil(data, 16))


def left_to_pil(rng):
    picture = Image.fromarray(noise(rng, 40, 40, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encode(picture, "JPEG")
    return {
        "turned": encode(picture, "JPEG", exif=exif),
        "xmp": encode(picture, "JPEG", xmp=b"<x:xmpmeta/>"),
        "progressive": encode(picture, "JPEG", progressive=True),
        "cmyk": encode(picture.convert("CMYK"), "JPEG"),
        "png": encode(picture),
        "empty": b"",
        **{f"cut at {size}": plain[:size] for size in (3, 20, 150, 400, len(plain) - 1)},
        "12 bits": plain.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        "no size": plain.replace(b"\xff\xc0\x00\x11\x08\x00\x28", b"\xff\xc0\x00\x11\x08\x00\x00"),
        "two frames": plain.replace(b"\xff\xc0", plain[plain.index(b"\xff\xc0") :][:19] + b"\xff\xc0", 1),
        "no tables": plain[: plain.index(b"\xff\xdb")] + plain[plain.index(b"\xff\xc0") :],
    }


def test_other_files_are_left_to_pil(rng):
    for name, data in left_to_pil(rng).items():
        assert decode_ordinary(data, 16) is None, name


def test_large_pictures_are_left_to_pil(rng, monkeypatch):
    monkeypatch.setattr("simclr.data.jpeg.MOST_PIXELS", 1600)
    assert decode_ordinary(encode(noise(rng, 40, 40, 3), "JPEG"), 40) is not None
    assert decode_ordinary(encode(noise(rng, 41, 40, 3), "JPEG"), 40) is None
    assert decode_ordinary(encode(noise(rng, 80, 80, 3), "JPEG"), 40) is not None  # at half the scale
