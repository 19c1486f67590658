"""Decoded images that look as if something went wrong are counted, and data sets full of them are refused."""

import numpy as np
import pytest

from simclr.data.check import FEWEST_IMAGES, Measured, describe, find_fault, measure
from tests.simclr.data.helpers import encode, error_message, noise, open_data, write

GOOD = Measured(images=1000, distinct=1000, repeated=0, one_colour=0, few_levels=0, lowest=0, highest=255)


def test_images_are_counted(rng):
    images = noise(rng, 9, 3, 16, 16)
    images[1] = 7
    images[2] = images[1]
    images[3] = np.array([10, 20, 30]).reshape(3, 1, 1)  # one colour, although it has three values
    images[4] = images[5]
    images[6] = images[6] // 15  # 18 values
    images[7] = images[7] // 16  # 16 values
    assert measure(images)[0] == Measured(9, 7, 4, 3, 1, int(images.min()), int(images.max()))


def test_values_outside_the_sampled_pixels_count(rng):
    image = np.zeros((1, 3, 64, 64), np.uint8)
    image[0, 0, 1, 1:40] = np.arange(1, 40)
    assert measure(image)[0].few_levels == 0


def test_what_was_counted_is_one_line_or_nothing():
    assert describe(GOOD) == ""
    assert describe(GOOD._replace(images=2000, distinct=1300, one_colour=3, repeated=1200)) == (
        "of 2,000 images, 3 are of one colour, 1,200 are identical to another one (700 spare copies; `simclr explore` "
        "shows them)"
    )


@pytest.mark.parametrize("check", [True, False])
def test_equal_images_are_always_refused(check):
    assert "all 2 images are equal" in find_fault(GOOD._replace(images=2, distinct=1, repeated=2), check)


BROKEN = {
    "black and white": {"one_colour": 501},
    "12 bits shifted to 4": {"few_levels": 1000, "highest": 15},
    "few different ones": {"distinct": 99},
}
FINE = {
    "line art": {"few_levels": 1000},
    "some black frames": {"one_colour": 400},
    "a test set copied from train": {"distinct": 500, "repeated": 1000},
    "few images": {"images": FEWEST_IMAGES - 1, "distinct": FEWEST_IMAGES - 1, "one_colour": FEWEST_IMAGES - 1},
}


@pytest.mark.parametrize("case", BROKEN)
def test_data_set_that_looks_wrongly_decoded_is_refused(case):
    found = GOOD._replace(**BROKEN[case])
    assert "data.check=report" in find_fault(found, True)
    assert find_fault(found, False) is None


@pytest.mark.parametrize("case", FINE)
def test_drawings_repetitions_and_small_data_sets_are_not_refused(case):
    assert find_fault(GOOD._replace(**FINE[case]), True) is None


@pytest.mark.parametrize(("dataset", "side"), [("digits", 8), ("digits", 16)])
def test_built_in_data_is_not_refused(dataset, side, home):
    assert len(open_data(home, dataset, side=side).images) == 1797


def test_line_art_is_not_refused(home, tmp_path, rng):
    for i in range(FEWEST_IMAGES):
        write(tmp_path / "art" / f"{i}.png", encode(noise(rng, 16, 16) > 200))
    assert set(np.unique(open_data(home, dir=tmp_path / "art", side=16).images)) == {0, 255}


def test_black_images_are_a_sentence_each_time_they_are_opened(home, tmp_path):
    for i in range(3):
        write(tmp_path / "black" / f"{i}.png", encode(np.zeros((20, 20, 3), np.uint8)))
    for check in ("error", "error", "report"):
        assert "all 3 images are equal and of one colour" in error_message(home, dir=tmp_path / "black", check=check)


def test_report_accepts_what_is_refused_without_decoding_again(home, tmp_path, rng, monkeypatch):
    for i in range(FEWEST_IMAGES):
        write(tmp_path / "dark" / f"{i}.png", encode(noise(rng, 16, 16) // 16))
    assert "have at most 16 of 256 values" in error_message(home, dir=tmp_path / "dark", side=16)
    monkeypatch.setattr("simclr.data.images.decode", None)
    assert len(open_data(home, dir=tmp_path / "dark", side=16, check="report").images) == FEWEST_IMAGES
