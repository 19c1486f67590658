"""Tests of rows of small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.strip import GAP, save_strip


@pytest.mark.parametrize(("side", "shown"), [(8, 8), (200, 64)])
def test_images_are_in_rows_with_transparent_gaps_and_large_ones_are_shrunk(
    side: int, shown: int, tmp_path: Path
) -> None:
    rows = [np.full((3, side, side, 3), value) for value in (0.2, 0.8)]
    save_strip(rows, tmp_path / "strip.webp")
    image = Image.open(tmp_path / "strip.webp").convert("RGBA")
    assert image.size == (3 * shown + 2 * GAP, 2 * shown + GAP)
    pixels = np.asarray(image)
    for row, value in enumerate((51, 204)):
        centre = pixels[row * (shown + GAP) + shown // 2, shown // 2]
        assert np.abs(centre[:3].astype(int) - value).max() < 8
        assert centre[3] == 255
    assert pixels[shown // 2, shown, 3] == 0
