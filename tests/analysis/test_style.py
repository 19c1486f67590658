"""Tests of the style and the saving of figures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from analysis.style import (
    DARK,
    FAINT,
    add_legend,
    color,
    label_ends,
    legend_label,
    line_style,
    new_figure,
    save,
    shorten,
    spread,
    values_alone,
    without_common_parts,
)


def test_short_names_keep_both_ends() -> None:
    assert shorten("same" * 20 + "-s1", 10) == "same…me-s1"
    assert shorten("$a$") == r"\$a\$"


def test_35_lines_look_different() -> None:
    assert len({str(line_style(index)) for index in range(35)}) == 35
    assert color(-1) == FAINT


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_figure_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        figure, axes = new_figure(3, 2)
        axes.plot([1, 3], [2, 1], label=legend_label("_x"))  # clipped, so an SVG has ids
        axes.fill_between([1, 3], [2, 1], [3, 2], alpha=0.2)
        add_legend(figure, "title")
        save(figure, path)
    first, second = [path.read_bytes() for path in paths]
    assert first == second


def test_one_figure_is_saved_in_several_formats(tmp_path: Path) -> None:
    figure, _ = new_figure(3, 2)
    save(figure, tmp_path / "a.png", tmp_path / "a.svg")
    assert Image.open(tmp_path / "a.png").size == (450, 300)
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_an_svg_has_the_colours_of_dark_mode_and_a_png_does_not_change(tmp_path: Path) -> None:
    figure, axes = new_figure(3, 2)
    axes.plot([1, 3], [2, 1], color=color(0))
    save(figure, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.count("@media(prefers-color-scheme:dark)") == 1
    assert f'[style*="stroke: {color(0).lower()}" i]{{stroke:{DARK[color(0).lower()]}!important}}' in text
    assert f"stroke: {color(0).lower()}" in text.split("</style>", 1)[1]  # the rule finds what it is for


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["no-crop@shapes-s0", "shapes-s0"], ["no-crop@shapes", "shapes"]),
        (["_a$", "a"], ["_a$", "a"]),
        (["shapes-no-crop-s0", "shapes-no-blur-s0"], ["crop", "blur"]),
        (["lr=0.1", "lr=0.01"], ["lr=0.1", "lr=0.01"]),
        (["shapes-s0", "shapes-s1"], ["s0", "s1"]),
        (["shapes", "shapes-s1"], ["shapes", "shapes-s1"]),
        (["same", "same"], ["same", "same"]),
        (["a-b-a", "a-a"], ["b-a", "a"]),
        (["one-name"], ["one-name"]),
        (["", "x"], ["", "x"]),
    ],
)
def test_common_parts_of_names_are_left_out_if_the_rest_still_tells_them_apart(
    names: list[str], short: list[str]
) -> None:
    assert without_common_parts(names) == short


@pytest.mark.parametrize(
    ("names", "labels", "settings"),
    [
        (["baseline (lr=3, batch=4)", "lr=1, batch=2", "lr=1, batch=3"], ["baseline", "1, 2", "1, 3"], "lr, batch"),
        (["baseline", "lr=1", "lr=2"], ["baseline", "lr=1", "lr=2"], ""),  # short as they are
        (["lr=1, batch=2", "batch=2, lr=1", "no crop"], ["lr=1, batch=2", "batch=2, lr=1", "no crop"], ""),
        (["no flip, lr=1, a=1", "no crop, lr=1, a=2"], ["no flip, lr=1, a=1", "no crop, lr=1, a=2"], ""),
        (
            ["a (1)", "a (2)", *(f"x=1, y={y}" for y in range(5))],
            ["a (1)", "a (2)", *(f"x=1, y={y}" for y in range(5))],
            "",
        ),
        (["baseline"], ["baseline"], ""),
    ],
)
def test_values_stand_alone_where_most_names_have_the_same_settings(names, labels, settings) -> None:
    assert values_alone(names) == (labels, settings)


@pytest.mark.parametrize("places", [[5.0, 5.0, 5.0], [0.0, 100.0], [1.0, 2.0, 50.0, 51.0], [99.0, 98.0, 97.0], []])
def test_labels_are_spread_near_their_lines(places: list[float]) -> None:
    found = spread(places, 10, 0, 100)
    assert sorted(range(len(places)), key=places.__getitem__) == sorted(range(len(places)), key=found.__getitem__)
    ordered = sorted(found)
    assert all(second - first >= 10 - 1e-9 for first, second in pairwise(ordered))
    assert all(0 <= place <= 100 for place in found)
    if len(places) == 3 and len(set(places)) == 1:
        assert found == pytest.approx([0, 10, 20])  # 5 is too near to the lower limit


def test_labels_at_line_ends_do_not_overlap_and_are_inside_the_figure() -> None:
    figure, axes = new_figure(5, 3)
    ends = []
    for index in range(8):
        look = line_style(index) | {"marker": "s"} if index % 2 else line_style(index)
        axes.plot([0, 1], [0, index / 100], **look)
        ends.append((1, index / 100, f"the cell {index}", look))
    label_ends(axes, ends)
    figure.draw_without_rendering()
    pieces = [artist for artist in figure.artists if isinstance(artist, Line2D)]  # of each line, before its label
    for text, line, piece in zip(axes.texts, axes.lines, pieces, strict=True):
        assert piece.get_color() == line.get_color()
        assert piece.get_linestyle() == line.get_linestyle()
        assert piece.get_marker() == line.get_marker()
        box, label = piece.get_window_extent(), Text.get_window_extent(text)
        assert axes.bbox.x1 < box.x0 < box.x1 < label.x0
        assert label.y0 < (box.y0 + box.y1) / 2 < label.y1
    boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)  # without arrows
    assert len(boxes) == 8
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    assert all(axes.bbox.x1 < box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
