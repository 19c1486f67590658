"""Tests of the figures that are rows of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import image_grids
from analysis.matches import Match, Query

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would have been saved."""
    saved: list[Figure] = []
    monkeypatch.setattr(image_grids, "save", lambda figure, *paths: saved.append(figure))
    return saved


def test_neighbours_have_similarities_classes_and_file_names(figures: list[Figure]) -> None:
    first = [Match(f"in/{i}.png", IMAGES[i], 1 - i / 10, label) for i, label in ((1, "cat"), (2, ""), (3, "dog"))]
    queries = [Query("q", IMAGES[0], first), Query("r", IMAGES[4], [Match("5.png", IMAGES[5], 1, "x")])]
    image_grids.neighbours(queries, Path("unused"))
    cells = figures[0].axes
    assert [cell.get_xlabel() for cell in cells] == [
        "query\nq",
        "0.900\ncat\n1.png",
        "0.800\n2.png",
        "0.700\ndog\n3.png",
        "query\nr",
        "1.000\nx\n5.png",
        "",
        "",
    ]
    shown = [cell.images[0].get_array() if cell.images else None for cell in cells]
    assert all(np.array_equal(shown[i], IMAGES[i]) for i in range(6))
    assert shown[6:] == [None, None]


def test_neighbours_fill_the_figure_and_nothing_is_cut_off(figures: list[Figure]) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    matches = [Match("a-long-name-of-a-file.jpeg", picture, 0.9, "an automobile") for picture in (IMAGES[1], wide)]
    image_grids.neighbours([Query("q.png", IMAGES[0], matches)], Path("unused"))
    figure = figures[0]
    figure.draw_without_rendering()
    tops = [cell.images[0].get_window_extent().y1 for cell in figure.axes]
    assert max(tops) - min(tops) < 1
    assert figure.bbox.y1 - 10 < tops[0] < figure.bbox.y1
    for cell in figure.axes:
        box = cell.get_tightbbox()
        assert box is not None
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_rows_of_images_have_their_labels_and_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "rows.svg"
    image_grids.image_rows({"color_jitter": IMAGES[:3] / 255, "crop": IMAGES[:2] / 255}, path)
    assert "color jitter" in path.read_text()
