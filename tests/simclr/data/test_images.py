"""Image files are found, decoded to upright RGB squares, and named where they can't be read."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from simclr.data import images
from simclr.data.images import Decoding, Files, bad_images, decode_files
from simclr.progress import SILENT
from tests.simclr.data.helpers import decode_with_pil, decoded, encode, noise, plain

# --- decoding ---------------------------------------------------------------------------------------------------------


def test_gray_image_has_its_value_in_all_channels(rng):
    gray = noise(rng, 16, 16)
    assert np.array_equal(decoded(encode(gray), 16), np.stack([gray] * 3))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_image_has_its_colours(kind, rng):
    palette = Image.fromarray(noise(rng, 16, 16, 3)).quantize(16)
    assert np.array_equal(decoded(encode(palette, kind), 16), decode_with_pil(encode(palette)))


def test_one_bit_image_is_black_and_white(rng):
    bits = noise(rng, 16, 16) > 127
    assert np.array_equal(decoded(encode(Image.fromarray(bits)), 16), np.stack([bits * np.uint8(255)] * 3))


def test_cmyk_image_is_converted_to_rgb(rng):
    content = encode(Image.fromarray(noise(rng, 16, 16, 3)).convert("CMYK"), "TIFF")
    assert np.array_equal(decoded(content, 16), decode_with_pil(content))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_image_is_scaled_to_8_bits(kind):
    deep = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    expected = (deep / 257).round()[None]
    assert np.array_equal(decoded(encode(deep, kind), 32, range=(0, 65535)), np.broadcast_to(expected, (3, 32, 32)))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_every_file_format_decodes_to_its_pixels(kind, rng):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("PIL was built without WebP")
    content = encode(noise(rng, 24, 24, 3), kind)
    assert np.array_equal(decoded(content, 24), decode_with_pil(content))


ORIENTATIONS = {  # turns an upright picture into what a camera stores
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_photo_is_turned_upright_by_its_exif_orientation(orientation):
    corners = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [200, 200, 200]]], np.uint8)
    upright = corners.repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(ORIENTATIONS[orientation](upright))
    content = encode(stored, "JPEG", quality=95, subsampling=0, exif=exif)
    assert np.abs(decoded(content, 32).astype(int) - upright.transpose(2, 0, 1)).max() < 12


@pytest.mark.parametrize(("height", "width"), [(48, 72), (72, 48), (48, 48), (20, 90)])
def test_shorter_side_is_resized_and_the_centre_cropped(height, width, rng):
    image = Image.fromarray(noise(rng, height, width, 3))
    side, scale = 12, 12 / min(height, width)
    resized = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    expected = np.asarray(resized.crop((left, top, left + side, top + side))).transpose(2, 0, 1).astype(int)
    assert np.abs(decoded(encode(image), side) - expected).max() <= 1


def test_jpeg_decoded_at_a_reduced_size_matches_the_full_size(rng):
    rough = Image.fromarray(noise(rng, 12, 16, 3)).resize((800, 600), Image.Resampling.BICUBIC)
    content = encode(rough, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(content)).convert("RGB").crop((100, 0, 700, 600))
    expected = np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)
    assert np.abs(decoded(content, 32) - expected).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
@pytest.mark.parametrize(("height", "width", "shown"), [(20, 60, (20, 60)), (40, 20, (40, 20)), (600, 300, (80, 40))])
def test_a_thumbnail_is_the_whole_image_and_never_larger_than_it(kind, height, width, shown, rng):
    flat = np.broadcast_to(noise(rng, 1, 1, 3), (height, width, 3)).copy()
    found = np.asarray(images.thumbnail(encode(Image.fromarray(flat), kind), Decoding(80)))
    assert found.shape == (*shown, 3)
    assert np.abs(found.astype(int) - flat[0, 0]).max() <= 4


def test_a_thumbnail_is_upright_and_opaque(rng):
    turned = Image.fromarray(noise(rng, 30, 60, 3))
    exif = turned.getexif()
    exif[274] = 6  # turned by 90 degrees
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=exif)
    assert images.thumbnail(file.getvalue(), Decoding(80)).size == (30, 60)
    clear = encode(Image.new("RGBA", (9, 9)))
    assert set(images.thumbnail(clear, Decoding(80, background="red")).get_flattened_data()) == {(255, 0, 0)}
    with pytest.raises(ValueError, match="text"):
        images.thumbnail(b"some text", Decoding(80))


# --- files that can't be read -----------------------------------------------------------------------------------------


def damaged_files(rng):
    """Files that can't be read as images, each damaged in a different way."""
    whole = {kind: encode(noise(rng, 30, 30, 3), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF")}
    cut = {f"cut.{kind.lower()}": content[: len(content) // 2] for kind, content in whole.items()}
    flipped = bytearray(whole["PNG"])
    flipped[len(flipped) // 2] ^= 0xFF
    upside_down = struct.pack("<HHIHH", 0x112, 3, 1, 3, 0)
    text_instead_of_number = struct.pack("<HHI4s", 0x128, 2, 2, b"x")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + upside_down + text_instead_of_number + bytes(4)
    files = cut | {
        "exif.jpg": encode(noise(rng, 30, 30, 3), "JPEG", exif=exif),
        "flipped.png": bytes(flipped),
        "header.png": whole["PNG"][:20],
        "text.jpg": b"I am a text file\n",
        "noise.jpg": b"\0I am no image",
        "empty.png": b"",
        "random.gif": noise(rng, 500).tobytes(),
    }
    if features.check("avif"):
        content = encode(noise(rng, 20, 30, 3), "AVIF")
        pixels_start = content.index(b"mdat") + 4
        files["zeros.avif"] = content[:pixels_start] + bytes(len(content) - pixels_start)
    return files


def test_every_kind_of_damage_is_reported_and_the_other_files_decoded(rng):
    damaged = damaged_files(rng)
    contents = {"first.png": plain(7)} | damaged | {"last.png": plain(9)}
    out = np.zeros((len(contents), 3, 8, 8), np.uint8)
    failed = decode_files(Files(list(contents), contents.__getitem__), out, Decoding(8), SILENT, "").failed
    assert list(failed) == list(range(1, 1 + len(damaged)))
    reasons = dict(zip(damaged, failed.values(), strict=True))
    assert all(reasons.values())
    assert reasons["text.jpg"].startswith("is a text file: if you downloaded it")
    assert reasons["noise.jpg"] == "not an image"
    assert [out[0, 0, 0, 0], out[-1, 0, 0, 0]] == [7, 9]


KINDS = {
    "a Radiance HDR image": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 2 +X 2\n" + bytes(16),
    "a JPEG XR image": b"II\xbc\1" + bytes(100),
    "a Photoshop file": b"8BPS" + bytes(100),
    "a drawing of Windows": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(100),
    "a PostScript drawing": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "a microscope's file": b"ZISRAWFILE" + bytes(100),
    "a volume": b"NRRD0004\n" + bytes(100),
    "a PAM image": b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 3\nMAXVAL 255\nENDHDR\n" + bytes(12),
    "a text": b'{"error": "quota exceeded"}',
    "a database": b"SQLite format 3\0" + bytes(100),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_programs_are_described_with_a_remedy(kind):
    files = Files(["a"], lambda name: KINDS[kind])
    reason = decode_files(files, np.zeros((1, 3, 8, 8)), Decoding(8), SILENT, "").failed[0]
    assert reason.startswith(f"is {kind}")
    assert ": " in reason


def test_running_out_of_memory_is_not_blamed_on_the_file(monkeypatch):
    def out_of_memory(data, decoding):
        raise MemoryError

    monkeypatch.setattr(images, "decode", out_of_memory)
    out = np.zeros((1, 3, 8, 8), np.uint8)
    with pytest.raises(MemoryError):
        decode_files(Files(["a.png"], lambda name: plain(0)), out, Decoding(8), SILENT, "")


def test_error_counts_all_bad_images_and_names_the_first():
    message = str(bad_images([f"bad{i}.png (not an image)" for i in range(9)], 21))
    assert message.startswith("9 of 21 files can't be read as images: bad0.png (not an image); bad1.png")
    assert "; and 4 more. Remove them, or add --on-bad-image skip" in message
    assert "bad5.png" not in message


def test_heic_photos_are_read_upright_with_the_extra(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    y, x = np.mgrid[:48, :64]
    picture = Image.fromarray(np.stack([4 * x, 5 * y, 255 - 4 * x], -1).astype(np.uint8))
    content = io.BytesIO()
    heif.from_pillow(picture).save(content, quality=95)
    found = decoded(content.getvalue(), 48).astype(int)
    expected = decoded(encode(picture), 48)
    assert abs(found - expected).mean() < 3  # it is a lossy format


def test_heic_photos_without_the_extra_have_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._register_heic.cache_clear()
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    with pytest.raises(ValueError, match="pip install 'simclr-suite\\[heic\\]'"):
        decoded(b"\0\0\0\x18ftypheic" + b"\0" * 100, 8)
    images._register_heic.cache_clear()


def test_a_png_with_too_much_metadata_is_refused_with_a_remedy():
    texts = PngInfo()
    texts.add_text("history", "x" * 2_000_000, zip=True)
    with pytest.raises(ValueError, match="too much text in its metadata: remove that"):
        decoded(encode(np.zeros((8, 8), np.uint8), pnginfo=texts), 8)
