"""Tests of the figures of runs, studies and encoders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from analysis import plots
from analysis.style import ON_DARK, ON_LIGHT

DRAW = np.random.default_rng(0)
POINTS = DRAW.normal(size=(400, 2))
IMAGES = DRAW.integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would have been saved."""
    saved: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, *paths: saved.append(figure))
    return saved


def names(count: int) -> list[str]:
    return ["_hidden", "$a$b", "a long name of many words", *map(str, range(count))][:count]


def frame(values: Sequence[float], steps: Sequence[int] = (0, 10, 20, 30)) -> pd.DataFrame:
    """A curve with 5 steps an epoch of 500 images."""
    run = pd.DataFrame({"step": list(steps)[: len(values)], "value": values})
    return run.assign(images=100 * run["step"], epoch=run["step"] / 5)


HISTORIES = {
    "_a$": [frame([1, 2, 6, 3]), frame([3, 4, 8]), frame([2, 3, 7, 5])],
    "b": [frame([0, 0, 0, 9])],
    "none": [],
}


def labels_of(figure: Figure) -> list[str]:
    """The labels at the ends of lines."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_curves_show_the_mean_and_range_of_runs_against_the_epoch(figures: list[Figure]) -> None:
    plots.curves(HISTORIES, Path("unused"), "loss", {"_a$": 0.1, "b": 0.1, "none": math.nan})
    axes = figures[0].axes[0]
    first, second, chance = axes.lines
    assert first.get_xydata().tolist() == [[0, 2], [2, 3], [4, 7], [6, 4]]
    assert second.get_ydata().tolist() == [0, 0, 0, 9]
    assert first.get_marker() != second.get_marker() != "None"  # few points
    assert list(chance.get_ydata()) == [0.1, 0.1]
    band = axes.collections[0].get_paths()[0].vertices
    assert {(x, low, high) for x, low, high in [(0, 1, 3), (2, 2, 4), (4, 6, 8), (6, 3, 5)]} == {
        (x, band[band[:, 0] == x, 1].min(), band[band[:, 0] == x, 1].max()) for x in (0, 2, 4, 6)
    }
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("loss", "epoch")
    assert labels_of(figures[0]) == [r"_a\$ (n = 3)", "b (n = 1)", "chance 0.1"]
    assert not figures[0].legends


def test_accuracies_are_in_percent_and_without_epochs_there_are_images(figures: list[Figure]) -> None:
    unknown = {"x": [frame([0.5, 0.6])], "y": [frame([0.1, 0.2]).assign(epoch=float("nan"))]}
    plots.curves(unknown, Path("unused"), "kNN accuracy", {"x": 0.125}, percent=True)
    axes = figures[0].axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0, 50], [1000, 60]]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("kNN accuracy (%)", "images seen")
    assert labels_of(figures[0]) == ["x", "y", "chance 12.5 %"]


def test_a_curve_of_many_points_has_no_markers_and_names_lose_what_they_share(figures: list[Figure]) -> None:
    many = frame(list(range(40)), range(40))
    plots.curves({"shapes-no-crop-s0": [many], "shapes-no-blur-s0": [many]}, Path("unused"), "loss")
    assert {line.get_marker() for line in figures[0].axes[0].lines} == {"None"}
    assert labels_of(figures[0]) == ["crop", "blur"]


def test_levels_of_chance_that_differ_have_the_colour_of_their_curve(figures: list[Figure]) -> None:
    plots.curves(HISTORIES, Path("unused"), "loss", {"_a$": 5.5, "b": 6.2, "none": 6.2})
    axes = figures[0].axes[0]
    first, second, *levels = axes.lines
    assert [(line.get_ydata()[0], line.get_color()) for line in levels] == [
        (5.5, first.get_color()), (6.2, second.get_color()),
    ]  # fmt: skip
    assert labels_of(figures[0])[2:] == ["chance 5.5", "chance 6.2"]


def test_smoothing_is_stated_on_the_axis(figures: list[Figure]) -> None:
    plots.curves(HISTORIES, Path("unused"), "loss", smooth=3)
    axes = figures[0].axes[0]
    assert axes.get_ylabel() == "loss, running mean of 3 points"
    assert axes.lines[1].get_ydata().tolist() == [0, 0, 3, 4.5]  # never across two runs
    assert len(axes.lines) == 2
    with pytest.raises(ValueError, match="smooth is -1: expected 0"):
        plots.curves(HISTORIES, Path("unused"), "loss", smooth=-1)


def test_curve_points_are_the_points_of_the_runs() -> None:
    points = plots.curve_points(HISTORIES)
    assert list(points) == ["label", "run", "step", "images", "epoch", "value"]
    assert len(points) == 15
    assert points[(points["label"] == "_a$") & (points["run"] == 1)]["value"].tolist() == [3, 4, 8]
    assert list(plots.curve_points({})) == list(points)


def a_summary() -> pd.DataFrame:
    """A baseline, a cell for each kind of expectation, one without seeds, and one with a single seed."""
    columns = ["cell", "mean", "low", "high", "pairs", "difference", "difference_low", "difference_high", "expected"]
    nan = float("nan")
    rows = [
        ["baseline", 60, 59, 61, 0, nan, nan, nan, None],
        ["failed", nan, nan, nan, 0, nan, nan, nan, "lower"],
        ["$x$", 50, 48, 52, 3, -10, -11, -9, "lower"],
        ["up", 63, 62, 65, 3, 3, 2, 5, "higher"],
        ["size", 55, 54, 56, 3, -5, -6, -4, -6.4],
        ["once", 59, nan, nan, 1, -1, nan, nan, None],
    ]
    return pd.DataFrame(rows, columns=columns)


def test_differences_are_sorted_and_show_expectations(figures: list[Figure]) -> None:
    plots.differences(a_summary(), Path("unused"), "points")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["failed", "up", "once", "size", r"\$x\$"]
    assert [text.get_text() for text in axes.texts] == ["no result", "+3.0", "-1.0", "-5.0", "-10.0"]
    drawn = {line.get_label(): line for line in axes.lines}
    points = axes.containers[0].lines[0]
    np.testing.assert_array_equal(points.get_xdata().astype(float), [np.nan, 3, -1, -5, -10])
    bars = {segment[0, 1]: segment[:, 0].tolist() for segment in axes.collections[0].get_segments() if len(segment)}
    assert (bars[1], bars[3], bars[4]) == ([2, 5], [-6, -4], [-11, -9])
    np.testing.assert_array_equal(drawn["the paper's size"].get_xdata(), [np.nan] * 3 + [-6.4, np.nan])
    assert drawn["the paper: lower"].get_ydata().tolist() == [0, 4]
    assert drawn["the paper: higher"].get_ydata().tolist() == [1]


def test_against_sorts_lines_and_marks_the_baseline(figures: list[Figure]) -> None:
    lines = {"with": {"up": 1.0, "baseline": 0.5, "$x$": 0.05}, "without": {"once": 0.1, "size": 0.5}}
    plots.against(a_summary(), lines, Path("unused"), "temperature", "top-1", log=True)
    axes = figures[0].axes[0]
    first, second = (container.lines[0].get_xydata().tolist() for container in axes.containers)
    assert first == [[0.05, 50], [0.5, 60], [1, 63]]
    assert second == [[0.1, 59], [0.5, 55]]
    band = axes.collections[1].get_paths()[0].vertices
    assert [(band[band[:, 0] == x, 1].min(), band[band[:, 0] == x, 1].max()) for x in (0.05, 0.5, 1)] == [
        (48, 52),
        (59, 61),
        (62, 65),
    ]
    level, ring = axes.lines[-2:]
    assert (list(level.get_ydata()), ring.get_xydata().tolist()) == ([60, 60], [[0.5, 60]])
    assert axes.get_xscale() == "log"
    assert labels_of(figures[0]) == ["with", "without", "baseline"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.05", "0.1", "0.5", "1"]
    with pytest.raises(
        ValueError, match=r"^strength is 0 in cell 'up': expected positive numbers .* use a linear one$"
    ):
        plots.against(a_summary(), {"": {"up": 0.0}}, Path("unused"), "strength", "top-1", log=True)


def test_pair_matrix_shows_numbers_and_row_averages(figures: list[Figure]) -> None:
    plots.pair_matrix(["crop", "blur"], np.array([[60, 40.06], [np.nan, 20]]), Path("unused"), "top-1 (%)")
    axes = figures[0].axes[0]
    texts = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert [[texts[column, row][0] for column in range(3)] for row in range(2)] == [
        ["60.0", "40.1", "50.0"],
        ["—", "20.0", "20.0"],
    ]
    assert (texts[0, 0][1], texts[1, 1][1]) == (ON_DARK, ON_LIGHT)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("augmentation", "and")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["crop", "blur", "average"]


def test_every_figure_is_saved(tmp_path: Path) -> None:
    matrix, summary = np.full((2, 2), np.nan), a_summary()
    plots.curves(HISTORIES, tmp_path / "curves.svg", "y", {"b": 0.1}, 2)
    plots.differences(summary, tmp_path / "differences.svg", "x")
    plots.against(summary, {"": {"up": 1, "failed": 2, "baseline": 0}}, tmp_path / "against.svg", "x", "y")
    plots.pair_matrix(["a", "b"], matrix, tmp_path / "pairs.svg", "top-1")
    plots.confusion_matrix(np.eye(2, dtype=int), ["a", "b"], tmp_path / "confusion.png")
    maps = [tmp_path / "map.png", tmp_path / "map.svg"]
    plots.scatter(POINTS[:20], np.arange(20) % 3, names(3), maps, IMAGES[:20], "a note", "a $title$")
    assert len(list(tmp_path.iterdir())) == 7


@pytest.mark.parametrize("count", [2, 106])
def test_every_class_of_a_map_looks_different_and_is_in_the_legend(count: int, figures: list[Figure]) -> None:
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


def test_map_without_labels_has_no_legend(figures: list[Figure]) -> None:
    plots.scatter(POINTS, None, [], [])
    assert not figures[0].legends
    assert [len(dots.get_offsets()) for dots in figures[0].axes[0].collections] == [400]


def test_thumbnails_do_not_overlap_and_have_the_colour_of_their_class(figures: list[Figure]) -> None:
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


def test_confusion_matrix_shows_shares_of_the_true_class(figures: list[Figure]) -> None:
    plots.confusion_matrix(np.array([[3, 1], [0, 0]]), names(2), Path("unused"))
    axes = figures[0].axes[0]
    assert axes.images[0].get_array().tolist() == [[75, 25], [0, 0]]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [((0, 0), "75"), ((1, 0), "25")]


def test_confusion_matrix_of_many_classes_has_fewer_ticks_and_no_numbers(figures: list[Figure]) -> None:
    plots.confusion_matrix(np.eye(200, dtype=int), [f"c{i}" for i in range(200)], Path("unused"))
    axes = figures[0].axes[0]
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert ticks[:2] == ["c0", "c4"]
    assert not axes.texts


@pytest.mark.parametrize(
    ("out", "names"),
    [
        ("map", ["map.png", "map.svg"]),
        ("map.svg", ["map.png", "map.svg"]),
        ("t=0.1", ["t=0.1.png", "t=0.1.svg"]),
        ("t=0.1.png", ["t=0.1.png", "t=0.1.svg"]),
    ],
)
def test_dots_in_a_name_are_not_suffixes(out: str, names: list[str]) -> None:
    assert [path.name for path in plots.files_of(Path("folder") / out, ".png", ".svg")] == names


def test_ticks_that_have_no_room_are_not_written(figures: list[Figure]) -> None:
    numbers = {"a": 0.0, "b": 0.001, "c": 0.5, "d": 1.0}
    table = pd.DataFrame({"cell": list(numbers), "mean": 0.5, "low": 0.4, "high": 0.6})
    plots.against(table, {"one": numbers}, Path("unused"), "p", "accuracy")
    axes = figures[0].axes[0]
    assert axes.get_xticks().tolist() == list(numbers.values())
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "", "0.5", "1"]


def test_labels_of_curves_leave_out_settings_that_all_have_and_name_them_once(figures: list[Figure]) -> None:
    names = ["baseline (loss.temperature=0.2, grayscale.p=0.2)"]
    names += [f"loss.temperature={a}, grayscale.p={b}" for a in (0.05, 0.125) for b in (0, 0.3)]
    plots.curves({name: [frame([1, 2])] for name in names}, Path("unused"), "loss")
    assert labels_of(figures[0]) == ["baseline", "0.05, 0", "0.05, 0.3", "0.125, 0", "0.125, 0.3"]
    assert figures[0].axes[0].get_title(loc="left") == "labels are loss.temperature, grayscale.p"


def test_a_long_label_of_a_curve_is_in_two_lines_instead_of_cut_off(figures: list[Figure]) -> None:
    names = ["colour-s0", "no-color_jitter,grayscale-s0@colour"]
    plots.curves({name: [frame([1, 2])] for name in names}, Path("unused"), "loss")
    assert labels_of(figures[0]) == ["colour-s0", "no-color_jitter,grayscale-\ns0@colour"]
