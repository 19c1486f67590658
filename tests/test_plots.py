from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from analysis import plots

DRAW = np.random.default_rng(0)
POINTS = DRAW.normal(size=(400, 2))
IMAGES = DRAW.integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """What was saved, kept open to look into."""
    saved: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, *paths: saved.append(figure))
    yield saved
    for figure in saved:
        plots.plt.close(figure)


def names(count: int) -> list[str]:
    return ["_hidden", "$a$b", "a long name of many words", *map(str, range(count))][:count]


def test_curves_and_rows_are_drawn(tmp_path: Path) -> None:
    curve = pd.DataFrame({"step": [1, 2], "value": [6.0, 5.0]})
    plots.loss_curve({"a": curve, "b": curve}, 6.2, tmp_path / "loss.png")
    plots.image_rows({"color_jitter": IMAGES[:3] / 255, "crop": IMAGES[:2] / 255}, tmp_path / "rows.png")
    assert {Image.open(path).format for path in tmp_path.iterdir()} == {"PNG"}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_map_is_the_same_file(suffix: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.{suffix}" for name in "abc"]
    labels = DRAW.integers(0, 3, 60)
    for files in (paths[:2], paths[2:]):
        plots.scatter(POINTS[:60], labels, names(3), files, IMAGES[:60], "a note")
    first, *others = [path.read_bytes() for path in paths]
    assert others == [first, first]


@pytest.mark.parametrize("count", [2, 10, 100, 200])
def test_every_class_of_a_map_has_a_look_of_its_own_and_a_line_in_the_legend(count: int, figures: list[Figure]) -> None:
    labels = np.arange(400) % count
    plots.scatter(POINTS, labels, names(count), [], note="what $it$ is")
    axes, legend = figures[0].axes[0], figures[0].legends[0]
    looks = {
        (dots.get_paths()[0].vertices.tobytes(), str(dots.get_facecolor()), str(dots.get_edgecolor()))
        for dots in axes.collections
        if len(dots.get_offsets())
    }
    assert len(looks) == count
    assert len(legend.get_texts()) == count
    figures[0].draw_without_rendering()
    box, page = legend.get_window_extent(), figures[0].bbox
    assert box.y0 >= page.y0
    assert box.x1 <= page.x1
    assert box.x0 >= axes.get_window_extent().x1
    assert len(axes.texts) == (count if count > 15 else 0)
    for text in axes.texts:
        np.testing.assert_allclose(text.xy, np.median(POINTS[labels == int(text.get_text())], axis=0))


def test_a_map_without_labels_is_grey_and_has_no_legend(figures: list[Figure]) -> None:
    plots.scatter(POINTS, None, [], [])
    assert not figures[0].legends
    assert [len(dots.get_offsets()) for dots in figures[0].axes[0].collections] == [400]


def test_thumbnails_stand_at_their_points_without_overlap_in_the_colour_of_their_class(figures: list[Figure]) -> None:
    labels = np.arange(400) % 2
    plots.scatter(POINTS, labels, names(2), [], IMAGES)
    axes = figures[0].axes[0]
    drawn = {bytes(image.get_array().data): image.get_extent() for image in axes.images}
    assert 50 < len(drawn) < 400
    centres = np.array([[(left + right) / 2, (low + high) / 2] for left, right, low, high in drawn.values()])
    rows = [next(i for i in range(400) if IMAGES[i].tobytes() == key) for key in drawn]
    np.testing.assert_allclose(centres, POINTS[rows])
    side = axes.patches[0].get_width()
    apart = np.abs(centres[:, None] - centres).max(-1) + 9 * np.eye(len(centres))
    assert apart.min() >= side * (1 - 1e-9)
    frames = [to_rgb(frame.get_edgecolor()) for frame in axes.patches]
    assert frames == [to_rgb(plots.COLORS[labels[row]]) for row in rows]


def test_a_confusion_matrix_shows_shares_of_the_true_class(figures: list[Figure]) -> None:
    plots.confusion_matrix(np.array([[3, 1], [0, 0]]), names(2), Path("unused"))
    axes = figures[0].axes[0]
    assert axes.images[0].get_array().tolist() == [[75, 25], [0, 0]]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [((0, 0), "75"), ((1, 0), "25")]


def test_many_classes_thin_the_ticks_and_leave_the_cells_bare(figures: list[Figure]) -> None:
    plots.confusion_matrix(np.eye(200, dtype=int), [f"c{i}" for i in range(200)], Path("unused"))
    axes = figures[0].axes[0]
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert ticks[:2] == ["c0", "c4"]
    assert not axes.texts


def test_neighbours_stand_beside_their_query_with_similarity_and_label(figures: list[Figure]) -> None:
    queries = [(IMAGES[0], IMAGES[1:4], [0.987, 0.9, 0.8], ["cat", None, "dog"]), (IMAGES[4], IMAGES[5:6], [1], ["x"])]
    plots.neighbours(queries, Path("unused"))
    cells = figures[0].axes
    assert [cell.get_xlabel() for cell in cells] == [
        "query",
        "0.99\ncat",
        "0.90",
        "0.80\ndog",
        "query",
        "1.00\nx",
        "",
        "",
    ]
    shown = [cell.images[0].get_array() if cell.images else None for cell in cells]
    assert all(np.array_equal(shown[i], IMAGES[i]) for i in range(6))
    assert shown[6:] == [None, None]
