"""Tests of the style and the saving of figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from analysis.style import add_legend, color, legend_label, line_style, new_figure, save, shorten


def test_short_names_keep_both_ends() -> None:
    assert shorten("same" * 20 + "-s1", 10) == "same…me-s1"
    assert shorten("$a$") == r"\$a\$"


def test_35_lines_look_different() -> None:
    assert len({str(line_style(index)) for index in range(35)}) == 35
    assert color(-1) == "0.5"


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
