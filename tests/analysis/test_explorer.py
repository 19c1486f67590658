"""The explorer's page: its data, its sheets of pictures, and that no text of it becomes markup."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.explorer import ACROSS, PIXELS, Column, explorer_page, pixel_differences, small_pictures, thumbnail_side

EVIL = """</script><script>alert(1)</script><img src=x onerror=alert(2)>'"&{{ 7 }}\u2028"""
DRAW = np.random.default_rng(0)


def page_of(count: int, side: int = 32, **changes: Any) -> str:
    values: dict[str, Any] = {
        "title": "images",
        "notes": ["a note"],
        "names": [f"{i}.png" for i in range(count)],
        "columns": [Column("class", ["a", "b"], np.arange(count) % 3 - 1)],
        "points": DRAW.normal(size=(count, 2)),
        "neighbours": DRAW.integers(0, count, (count, 5)),
        "similarities": DRAW.uniform(-1, 1, (count, 5)),
        "sizes": [(640, 480, 70_000)] * count,
        "thumbnails": DRAW.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8).repeat(side, 1).repeat(side, 2),
    }
    return explorer_page(**(values | changes))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def numbers(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2").astype(int)


def sheets_of(page: str) -> list[np.ndarray]:
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    return [np.asarray(Image.open(BytesIO(base64.b64decode(text))), int) for text in found]


def test_the_data_come_back() -> None:
    points, near = DRAW.normal(size=(9, 2)), DRAW.integers(0, 9, (9, 4))
    similarities, codes = DRAW.uniform(-1, 1, (9, 4)), np.array([-1, 0, 1, 1, 0, -1, 0, 1, 2])
    columns = [Column("class", ["a", "b", "c"], codes)]
    page = page_of(9, points=points, neighbours=near, similarities=similarities, columns=columns)
    data = data_of(page)
    assert (data["perImage"], data["side"], data["across"]) == (4, 32, ACROSS)
    assert numbers(data["neighbours"]).tolist() == near.ravel().tolist()
    np.testing.assert_allclose(1 - numbers(data["distances"]) / 32767, similarities.ravel(), atol=2e-5)
    place = np.stack([numbers(data["x"]), numbers(data["y"])], 1)
    assert place.min() == 0
    assert place.max() == 65535
    longer = np.ptp(points, axis=0).max()
    scale = 65535 / np.maximum(np.ptp(points, axis=0), longer / 1.6)  # it fills a square unless that distorts it much
    np.testing.assert_allclose(place - place[0], (points - points[0]) * scale, atol=1)
    assert [column["categories"] for column in data["columns"]] == [["a", "b", "c"]]
    assert numbers(data["columns"][0]["codes"]).tolist() == (codes + 1).tolist()


def test_identical_images_have_the_largest_similarity_and_no_number_overflows() -> None:
    data = data_of(page_of(4, similarities=np.array([[1.0000002, 1, -1, -1.0000002, 0]] * 4), points=np.zeros((4, 2))))
    assert numbers(data["distances"])[:5].tolist() == [0, 0, 65534, 65534, 32767]
    assert set(numbers(data["x"])) == {0}


@pytest.mark.parametrize("side", [32, 48])
def test_pictures_are_on_sheets_in_their_order_and_do_not_run_into_each_other(side: int) -> None:
    count = ACROSS**2 + 3
    thumbnails = DRAW.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8).repeat(side, 1).repeat(side, 2)
    sheets = sheets_of(page_of(count, thumbnails=thumbnails))
    assert [sheet.shape for sheet in sheets] == [(ACROSS * side, ACROSS * side, 3)] * 2
    for i in (0, 1, ACROSS, ACROSS**2 - 1, ACROSS**2, count - 1):
        row, column = divmod(i % ACROSS**2, ACROSS)
        shown = sheets[i // ACROSS**2][row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert np.abs(shown - thumbnails[i])[1:-1, 1:-1].max() <= 12, i  # the outermost pixels have colours of others


def test_the_largest_map_still_has_16_bits() -> None:
    page = page_of(50_000, side=16, neighbours=np.full((50_000, 1), 49_999), similarities=np.ones((50_000, 1)))
    assert set(numbers(data_of(page)["neighbours"])) == {49_999}


def test_every_text_is_data_and_the_page_loads_nothing() -> None:
    columns = [Column(EVIL, [EVIL], np.zeros(4, int))]
    page = page_of(4, title=EVIL, notes=[EVIL], names=[EVIL] * 4, columns=columns)
    assert data_of(page)["names"] == [EVIL] * 4
    assert "alert(1)</script>" not in page
    assert "onerror=alert(2)>" not in page
    assert page.count("<script") == 2
    assert "default-src 'none'" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert not re.search(r"url\(|@import|https?:", page.replace("http-equiv", ""))


@pytest.mark.parametrize(
    ("images", "original", "side"),
    [
        (10, 4000, 160),
        (10, 20, 32),
        (10, 100, 96),
        (2_000, 500, 128),
        (10_000, 224, 64),
        (10_000, 32, 32),
        (50_000, 999, 32),
    ],
)
def test_pictures_are_as_fine_as_the_images_and_the_page_allow(images: int, original: int, side: int) -> None:
    assert thumbnail_side(images, original) == side
    assert images * side**2 <= 1.3 * PIXELS


def test_pixel_differences_are_those_of_bilinear_samples_of_the_pictures_on_the_sheets() -> None:
    count, side = ACROSS**2 + 9, 48
    stripes = DRAW.integers(0, 2, (count, 1, side, 1)) * 100 + DRAW.integers(0, 155, (count, 1, 1, 1))
    grey = torch.from_numpy(stripes).double().expand(count, 3, side, side)
    others = DRAW.permutation(count)
    shrunk = torch.nn.functional.interpolate(grey[:, :, 1:-1, 1:-1], (8, 8), mode="bilinear")  # not antialiased
    small = small_pictures(grey.permute(0, 2, 3, 1).numpy().astype(np.uint8))
    found = pixel_differences(small, slice(None), others)
    np.testing.assert_allclose(found, (shrunk - shrunk[others]).abs().mean((1, 2, 3)), atol=3)  # what JPEG loses
