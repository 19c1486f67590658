"""Pixels of every kind of image file are those that independent readers (OpenCV, tifffile) find."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from simclr.data.images import Decoding, Files, decode, measure_range
from simclr.data.unreadable import describe
from simclr.data.wide import WideImage, find_range
from simclr.progress import SILENT
from tests.simclr.data.helpers import decoded, encode

SIDE = 16  # of the images and of the pixels, so that nothing is resized
RNG = np.random.default_rng(0)


def noise(*channels, kind=np.uint8):
    limits = np.iinfo(kind)
    return RNG.integers(limits.min, limits.max, (SIDE, SIDE, *channels), kind, endpoint=True)


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def read_with_tifffile(content):
    return tifffile.imread(io.BytesIO(content))


def write_with_opencv(array, suffix):
    """Encode H x W or H x W x C in the order RGBA."""
    swapped = array[..., [2, 1, 0, *range(3, array.shape[-1])]] if array.ndim == 3 else array
    return cv2.imencode(suffix, swapped)[1].tobytes()


def read_with_opencv(content):
    """Pixels with all channels and bits, in the order RGBA."""
    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return array[..., [2, 1, 0, *range(3, array.shape[-1])]] if array.ndim == 3 else array


def on_background(array, colour=(255, 255, 255)):
    """H x W x 4 laid over a colour, computed in floats."""
    alpha = array[..., 3:] / 255
    return array[..., :3] * alpha + np.array(colour) * (1 - alpha)


def three_channels(array):
    """3 x H x W from H x W or H x W x 3."""
    return np.broadcast_to(array[None], (3, SIDE, SIDE)) if array.ndim == 2 else array.transpose(2, 0, 1)


def scaled(values, low, high):
    """Values mapped to 0 to 255, computed in floats."""
    return ((values.astype(np.float64) - low) / (high - low) * 255).round().clip(0, 255)


# --- 8 bits -----------------------------------------------------------------------------------------------------------

OPAQUE = {
    "grey PNG": encode(noise()),
    "RGB PNG": encode(noise(3)),
    "palette PNG": encode(Image.fromarray(noise(3)).quantize(32)),
    "1-bit PNG": encode(Image.fromarray(noise() > 127)),
    "BMP": encode(noise(3), "BMP"),
    "lossless WebP": encode(noise(3), "WEBP", lossless=True),
    "PPM": encode(noise(3), "PPM"),
    "PGM": encode(noise(), "PPM"),
    "JPEG 2000": encode(noise(3), "JPEG2000", num_resolutions=1),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_image_of_8_bits_has_the_pixels_that_opencv_reads(kind):
    assert np.array_equal(decoded(OPAQUE[kind], SIDE), three_channels(read_with_opencv(OPAQUE[kind])))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_has_the_pixels_that_opencv_reads(mode):
    smooth = Image.fromarray(noise(3)).resize((4, 4)).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert(mode)
    content = encode(smooth, "JPEG", quality=95)
    difference = decoded(content, SIDE).astype(int) - three_channels(read_with_opencv(content))
    assert np.abs(difference).max() <= 3  # the two use other versions of libjpeg


TIFFS = {
    "grey": (noise(), {}),
    "white is zero": (noise(), {"photometric": "miniswhite"}),
    "RGB": (noise(3), {"photometric": "rgb"}),
    "RGB, compressed": (noise(3), {"photometric": "rgb", "compression": "zlib"}),
    "RGB in planes": (np.moveaxis(noise(3), 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
    "RGB in tiles": (noise(3), {"photometric": "rgb", "tile": (16, 16)}),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_of_8_bits_has_the_pixels_that_tifffile_reads(kind):
    array, options = TIFFS[kind]
    content = tiff(array, **options)
    expected = read_with_tifffile(content)
    expected = 255 - expected if kind == "white is zero" else expected
    assert np.array_equal(decoded(content, SIDE), expected if "planes" in kind else three_channels(expected))


def test_cmyk_is_multiplied_out():
    inks = noise(4).astype(int)
    content = tiff(inks.astype(np.uint8), photometric="separated")
    assert np.array_equal(read_with_tifffile(content), inks)
    expected = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert np.abs(decoded(content, SIDE) - three_channels(expected)).max() <= 1


# --- transparency -----------------------------------------------------------------------------------------------------


def png(colour_type, depth, rows, *chunks):
    """A PNG from the bytes of its rows, which PIL can't write in all of its modes."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour_type, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks), chunk(b"IDAT", content), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


LEVELS = noise() // 32  # eight different values
COLOURS = np.stack([LEVELS, LEVELS, LEVELS], 2)
PALETTE = noise(3)[0, :8]
TRANSPARENT = {  # the file, and its pixels as H x W x 4
    "RGBA PNG": (content := encode(noise(4)), read_with_opencv(content)),
    "RGBA TIFF": (
        content := tiff(noise(4), photometric="rgb", extrasamples=["unassalpha"]),
        read_with_tifffile(content),
    ),
    "RGBA lossless WebP": (
        content := encode(noise(4), "WEBP", lossless=True, exact=True),
        read_with_opencv(content),
    ),
    "grey with alpha": (grey := png(4, 8, both := noise(2)), both[..., [0, 0, 0, 1]]),
    "grey with a transparent value": (
        png(0, 8, LEVELS, (b"tRNS", b"\0\3")),
        np.dstack([COLOURS, np.where(LEVELS == 3, 0, 255)]),
    ),
    "RGB with a transparent colour": (
        png(2, 8, COLOURS, (b"tRNS", b"\0\3\0\3\0\3")),
        np.dstack([COLOURS, np.where(LEVELS == 3, 0, 255)]),
    ),
    "palette with alpha": (
        png(3, 8, LEVELS, (b"PLTE", PALETTE.tobytes()), (b"tRNS", bytes([255, 0, 100]))),
        np.dstack([PALETTE[LEVELS], np.array([255, 0, 100, 255, 255, 255, 255, 255])[LEVELS]]),
    ),
    "1 bit with a transparent value": (
        png(0, 1, np.packbits(LEVELS > 3, axis=1), (b"tRNS", b"\0\1")),
        np.dstack([np.repeat((LEVELS > 3)[..., None] * 255, 3, 2), np.where(LEVELS > 3, 0, 255)]),
    ),
}


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 30, 90)])
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_image_is_laid_over_the_background(kind, colour):
    content, array = TRANSPARENT[kind]
    expected = three_channels(on_background(array, colour))
    assert np.abs(decoded(content, SIDE, background=f"rgb{colour}") - expected).max() <= 1


def test_premultiplied_alpha_is_laid_over_the_background():
    alpha = noise().astype(int)
    content = tiff(
        np.dstack([alpha // 2] * 3 + [alpha]).astype(np.uint8), photometric="rgb", extrasamples=["assocalpha"]
    )
    stored = read_with_tifffile(content).astype(int)
    expected = stored[..., :3] + 255 - stored[..., 3:]
    assert np.abs(decoded(content, SIDE) - three_channels(expected)).max() <= 2


def test_drawing_on_a_transparent_ground_is_not_black():
    drawing = np.zeros((SIDE, SIDE, 4), np.uint8)
    drawing[4:8, 4:8, 3] = 255
    found = decoded(encode(drawing), SIDE)
    assert (found[:, 4:8, 4:8] == 0).all()
    assert found.mean() > 230


def test_opaque_alpha_changes_nothing():
    rgb = noise(3)
    opaque = np.dstack([rgb, np.full((SIDE, SIDE), 255, np.uint8)])
    assert np.array_equal(decoded(encode(opaque), SIDE), decoded(encode(rgb), SIDE))


# --- more than 8 bits -------------------------------------------------------------------------------------------------

WHOLE = {name: np.iinfo(name) for name in ("int8", "uint16", "int16", "uint32", "int32")}
WIDE = {name: (noise(kind=name), (limits.min, limits.max), {}) for name, limits in WHOLE.items()}
WIDE |= {
    "float32": (RNG.random((SIDE, SIDE), np.float32) * 3 - 1, (-1.0, 2.0), {}),
    "RGB uint16": (noise(3, kind="uint16"), (0, 65535), {"photometric": "rgb"}),
    "12 bits": (noise(kind="uint16") // 16, (0, 4095), {}),
    "CT": (noise(kind="int16") // 16, (-1000, 400), {}),
}


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", WIDE)
def test_wide_tiff_has_the_values_that_tifffile_reads(kind, compression):
    array, limits, options = WIDE[kind]
    content = tiff(array, compression=compression, **options)
    expected = three_channels(scaled(read_with_tifffile(content), *limits))
    assert np.array_equal(decoded(content, SIDE, range=limits), expected)


@pytest.mark.parametrize("kind", ["uint16", "int16", "int32", "float32", "RGB uint16"])
def test_byte_order_of_a_tiff_does_not_matter(kind):
    array, limits, options = WIDE[kind]
    low, high = (decoded(tiff(array, byteorder=order, **options), SIDE, range=limits) for order in "<>")
    assert np.array_equal(low, high)


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_wide_tiff_whose_white_is_zero_is_inverted(kind):
    array, limits, _ = WIDE[kind]
    content = tiff(array, photometric="miniswhite")
    expected = 255 - scaled(read_with_tifffile(content), *limits)
    assert np.array_equal(decoded(content, SIDE, range=limits), three_channels(expected))


DEEP = {
    "grey PNG": write_with_opencv(noise(kind="uint16"), ".png"),
    "RGB PNG": write_with_opencv(noise(3, kind="uint16"), ".png"),
    "PGM": write_with_opencv(noise(kind="uint16"), ".pgm"),
    "JPEG 2000": encode(noise(kind="uint16"), "JPEG2000", num_resolutions=1),
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("limits", [(0, 65535), (300, 9000)])
def test_image_of_16_bits_has_the_values_that_opencv_reads(kind, limits):
    expected = scaled(read_with_opencv(DEEP[kind]), *limits)
    assert np.array_equal(decoded(DEEP[kind], SIDE, range=limits), three_channels(expected))


def test_rgba_of_16_bits_is_laid_over_the_background():
    content = write_with_opencv(noise(4, kind="uint16"), ".png")
    stored = read_with_opencv(content)
    array = np.dstack([scaled(stored[..., :3], 0, 65535), stored[..., 3] / 257])
    found = decoded(content, SIDE, range=(0, 65535))
    assert np.abs(found - three_channels(on_background(array))).max() <= 1.5


def test_transparent_value_of_16_bits_shows_the_background():
    values = ((LEVELS.astype(int) + 1) * 5000).astype(">u2")
    content = png(0, 16, values, (b"tRNS", struct.pack(">H", 20_000)))
    expected = np.where(values == 20_000, 255, scaled(values, 0, 65535))
    assert np.array_equal(decoded(content, SIDE, range=(0, 65535)), three_channels(expected))


def test_values_that_are_not_numbers_are_black():
    array = np.full((SIDE, SIDE), 0.5, np.float32)
    array[0, :3] = np.nan, np.inf, -np.inf
    assert decoded(tiff(array), SIDE, range=(0, 1))[0, 0, :4].tolist() == [0, 255, 0, 128]


def test_wide_image_is_turned_upright():
    values = noise(kind="uint16")
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.fromarray(np.ascontiguousarray(np.rot90(values))), "PNG", exif=exif)
    expected = three_channels(scaled(values, 0, 65535))
    assert np.array_equal(decoded(content, SIDE, range=(0, 65535)), expected)


@pytest.mark.parametrize("kind", [*WIDE, "PGM"])
def test_wide_image_needs_a_range(kind):
    array, _, options = WIDE.get(kind, WIDE["uint16"])
    content = write_with_opencv(array, ".pgm") if kind == "PGM" else tiff(array, **options)
    with pytest.raises(WideImage, match="convert it to 8 bits"):
        decode(content, Decoding(SIDE))


def test_colours_of_16_bits_in_planes_are_refused_because_pil_misreads_them():
    content = tiff(np.moveaxis(noise(3, kind="uint16"), 2, 0), photometric="rgb", planarconfig="separate")
    with pytest.raises(ValueError, match="interleaved"):
        decode(content, Decoding(SIDE, range=(0, 65535)))


# --- the range --------------------------------------------------------------------------------------------------------


def test_range_of_a_data_set_are_percentiles_over_all_images():
    arrays = [RNG.normal(2000 + 20 * i, 300, (40, 40)).astype(np.uint16) for i in range(30)]
    contents = {f"{i}.tif": tiff(array) for i, array in enumerate(arrays)}
    found = measure_range(Files(list(contents), contents.__getitem__), SILENT)
    assert np.allclose(found, np.percentile(np.stack(arrays), (0.1, 99.9)))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (0, 4095), (0, 65535)])
def test_range_that_is_nearly_a_common_one_is_that(low, high):
    assert find_range([np.linspace(low, high, 10_001)]) == (low, high)
    assert find_range([np.linspace(low, high * 0.9, 10_001)]) != (low, high)


def test_range_of_few_values_includes_them():
    mostly = np.zeros(10_000)
    mostly[:3] = 7
    assert find_range([mostly]) == (0, 7)
    assert find_range([np.full(9, 5.0)]) == (5, 6)


def test_values_that_are_not_finite_are_not_measured():
    contents = {"a.tif": tiff(np.linspace(0, 3, 400, dtype=np.float32).reshape(20, 20))}
    contents["b.tif"] = tiff(np.array([[np.nan, np.inf], [1, 2]], np.float32))
    low, high = measure_range(Files(list(contents), contents.__getitem__), SILENT)
    assert 0 <= low < high <= 3


@pytest.mark.parametrize("channels", [2, 5])
def test_a_tiff_whose_channels_would_be_dropped_is_refused(channels):
    array = np.zeros((9, 9, channels), np.uint8)
    content = tiff(array, photometric="minisblack" if channels == 2 else "rgb", planarconfig="contig")
    with pytest.raises(ValueError, match=f"is a TIFF with {channels} channels"):
        decoded(content, 8)


@pytest.mark.parametrize(("kind", "remedy"), [
    ("uint32", "save it without compression"), ("float16", "save it with 1 channel"), ("float64", "save it with"),
])  # fmt: skip
def test_the_remedy_for_a_tiff_is_not_the_form_that_it_has(kind, remedy):
    assert remedy in describe(tiff(np.zeros((9, 9), kind)))
