"""All images of a data set are decoded with one range of values, one background, and what was done is said."""

import numpy as np
import pytest
from PIL import Image

from simclr.data import images
from simclr.data.dataset import DataConfig, open_dataset, with_range
from tests.simclr.data.helpers import encode, error_message, noise, open_and_listen, open_data, store_folders, write


def ramp(i, high, kind):
    """A gradient from 0 to `high`, moved by i pixels."""
    return (np.roll(np.tile(np.linspace(0, 1, 64), (64, 1)), i, 1) * high).astype(kind)


def write_ramps(folder, high, kind, count=12, suffix=".tif"):
    for i in range(count):
        write(folder / f"{i:02d}{suffix}", encode(ramp(i, high, kind), "PNG" if suffix == ".png" else "TIFF"))


@pytest.mark.parametrize(
    ("high", "kind", "suffix", "said"),
    [
        (1, "float32", ".tif", "values 0 to 1 of floating-point images are mapped to 0 to 255"),
        (4095, "uint16", ".png", "values 0 to 4095 of 16-bit images are mapped to 0 to 255"),
        (65535, "uint16", ".png", "values 0 to 65535 of 16-bit images are mapped to 0 to 255"),
        (255, "int32", ".tif", "values 0 to 255 of integer images are mapped to 0 to 255"),
    ],
)
def test_range_of_wide_images_is_found_said_and_kept(high, kind, suffix, said, home, tmp_path):
    write_ramps(tmp_path / "wide", high, kind, suffix=suffix)
    data, messages = open_and_listen(home, dir=tmp_path / "wide")
    assert any(message.startswith(said) for message in messages)
    assert data.range == (0, high)
    values = ramp(0, high, kind).astype(float)
    assert np.array_equal(data.images[0, 0], (values * (255 / high)).round())
    again, repeated = open_and_listen(home, dir=tmp_path / "wide")
    assert (again.range, again.digest, repeated) == (data.range, data.digest, messages)


def test_range_is_one_for_all_images(home, tmp_path):
    for i in range(10):
        write(tmp_path / "wide" / f"{i}.png", encode(np.full((16, 16), 100 * (i + 1), np.uint16)))
    means = open_data(home, dir=tmp_path / "wide", side=16, check="report").images.mean((1, 2, 3))
    assert np.allclose(means, np.linspace(0, 255, 10), atol=1)  # brighter images stay brighter


def test_explicit_range_is_part_of_the_digest(home, tmp_path):
    write_ramps(tmp_path / "wide", 4095, "uint16")
    found, set_ = (open_data(home, dir=tmp_path / "wide", range=limits) for limits in ("auto", (0, 8190)))
    assert set_.images.max() == 128
    assert found.digest != set_.digest
    assert set_.range == (0, 8190)


def test_config_with_the_range_that_was_found_decodes_nothing_again(home, tmp_path, monkeypatch):
    write_ramps(tmp_path / "wide", 3000, "uint16")
    config = DataConfig(dataset="folder", dir=tmp_path / "wide")
    data = open_dataset(config, home)
    explicit = with_range(config, data)
    assert explicit.range == data.range
    monkeypatch.setattr(images, "decode", None)
    assert open_dataset(explicit, home).digest == data.digest
    assert with_range(config, open_data(home, "digits")) == config


@pytest.mark.parametrize("other", [np.uint8, np.float32])
def test_mixture_of_kinds_is_refused_unless_a_range_is_set(other, home, tmp_path, rng):
    write_ramps(tmp_path / "mixed", 4095, "uint16", count=3)
    write(tmp_path / "mixed" / "zz.tif", encode(noise(rng, 64, 64).astype(other), "TIFF"))
    message = error_message(home, dir=tmp_path / "mixed")
    name = "8-bit" if other is np.uint8 else "floating-point"
    assert f"3 16-bit (such as 00.tif), 1 {name} (such as zz.tif)" in message
    assert "Leave it out (zz.tif), or convert all to one kind. Or say which value is black" in message
    assert "data.range=[0, 65535]" in message
    assert store_folders(home) == []
    assert len(open_data(home, dir=tmp_path / "mixed", range=(0, 4095)).images) == 4


def test_files_that_cannot_be_read_do_not_count_as_a_kind(home, tmp_path):
    write_ramps(tmp_path / "wide", 4095, "uint16")
    write(tmp_path / "wide" / "bad.tif", b"x")
    data = open_data(home, dir=tmp_path / "wide", on_bad_image="skip")
    assert (len(data.images), data.range) == (12, (0, 4095))


def test_background_is_chosen_and_part_of_the_digest(home, tmp_path, rng):
    for i in range(4):
        write(tmp_path / "alpha" / f"{i}.png", encode(noise(rng, 16, 16, 4)))
        write(tmp_path / "opaque" / f"{i}.png", encode(noise(rng, 16, 16, 3)))
    white, black = (open_data(home, dir=tmp_path / "alpha", side=16, background=name) for name in ("white", "black"))
    assert white.images.mean() > black.images.mean() + 50
    assert white.digest != black.digest
    digests = {open_data(home, dir=tmp_path / "opaque", background=name).digest for name in ("white", "black")}
    assert len(digests) == 1


def test_files_with_several_pages_are_counted(home, tmp_path, rng):
    pages = [Image.fromarray(noise(rng, 16, 16)) for _ in range(3)]
    for i in range(2):
        for suffix, kind in ((".tif", "TIFF"), (".gif", "GIF"), (".png", "PNG")):
            path = tmp_path / "stacks" / f"{i}{suffix}"
            path.parent.mkdir(exist_ok=True)
            pages[i].save(path, kind, save_all=True, append_images=pages[i + 1 :])
    write(tmp_path / "stacks" / "single.tif", encode(pages[0], "TIFF"))
    data, messages = open_and_listen(home, dir=tmp_path / "stacks", side=16)
    assert "6 of 7 files have several pages or frames: only the first is used" in messages
    assert np.array_equal(data.images[0, 0], np.asarray(pages[0]))
