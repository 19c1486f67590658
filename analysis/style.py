"""The look that all figures share, and how they are saved.

Figures are made with matplotlib's object interface, which needs neither a display nor a choice of backend. An SVG file
follows the light or dark mode of whatever shows it.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch
from matplotlib.transforms import Affine2D, ScaledTranslation

# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart. Line styles also work without colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h", "d", "8", "H")  # 105 pairs with the colours

GRID, FAINT, MUTED = "#dfe3e8", "#8a929b", "#59626c"  # grid lines; marks that matter less; texts that matter less
DARK = {  # how the colours of a figure change in dark mode
    "#ffffff": "#15181b",
    "#000000": "#e8eaed",
    GRID: "#33393f",
    MUTED: "#a4adb6",
    "#0072b2": "#58a9e6",
    "#d55e00": "#f0823f",
    "#009e73": "#2fc296",
    "#cc79a7": "#e29cc3",
    "#56b4e9": "#a5dcff",
}
ON_DARK, ON_LIGHT = "#fefefe", "#010101"  # texts on coloured areas, which are the same in both modes

WIDTH = 4.9  # inches; texts of 9 points can still be read where a figure is as wide as a phone
SPARSE = 25  # curves of up to so many points have markers
LABEL_HEIGHT = 11.5  # points between two labels at the ends of lines
PIECE = (7, 27)  # points from the axes to the ends of the piece of a line before its label
TICK_GAP = 4  # points between the texts of two ticks
ENDS = "- /@"
SEPARATORS = re.compile(f"(?<=[{ENDS}])")  # after these, a name can be cut

WITHOUT_DATE: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of a size in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes, grid: str | None = "y") -> None:
    """Give axes the look that all figures share, with grid lines along x, y, both or (None) neither."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(FAINT)
    axes.tick_params(color=FAINT, labelsize=9)
    axes.set_axisbelow(True)
    if grid is not None:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]


def save(figure: Figure, *paths: Path) -> None:
    """Write a figure in the format of each path's suffix. The same figure always gives the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "simclr"}):
        for path in paths:
            figure.savefig(path, dpi=150, metadata=WITHOUT_DATE.get(path.suffix))
            if path.suffix == ".svg":
                _follow_dark_mode(path)


def _follow_dark_mode(path: Path) -> None:
    """Add a style to an SVG file that changes its colours where dark mode is on."""
    rules = [
        f'[style*="{part}: {light}" i]{{{part}:{dark}!important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    ]
    # What has no fill, such as black text, takes it from the root.
    style = f"<style>@media(prefers-color-scheme:dark){{svg{{fill:{DARK['#000000']}}}{''.join(rules)}}}</style>"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"<svg[^>]*>", lambda tag: f"{tag[0]}\n {style}", text, count=1), encoding="utf-8")


def color(index: int) -> str:
    """The colour of a class or a line. Negative indices are grey."""
    return COLORS[index % len(COLORS)] if index >= 0 else FAINT


def line_style(index: int) -> dict[str, Any]:
    """Colour and style of a line, different for the first 35 indices."""
    return {"color": color(index), "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}


def escape_dollars(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def shorten(name: str, longest: int = 20) -> str:
    """A name with its middle left out where it is too long.

    Runs of one study have names that start alike, and the seed and the id are at the end.
    """
    if len(name) > longest:
        kept = longest - 1
        name = f"{name[: kept // 2]}…{name[len(name) - (kept - kept // 2) :]}"
    return escape_dollars(name)


def in_lines(name: str) -> str:
    """A name as a label at the end of a line: in lines of up to 26 characters, and cut only if it needs three."""
    return textwrap.fill(shorten(name, 50), 26)


def without_common_parts(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them start or end with. At least one word is left of each."""
    words = [SEPARATORS.split(name) for name in names]
    if len(set(names)) < 2:
        return list(names)
    for end in (0, -1):
        while all(len(parts) > 1 for parts in words) and len({parts[end].strip(ENDS) for parts in words}) == 1:
            for parts in words:
                del parts[end]
    short = ["".join(parts).strip(ENDS) for parts in words]
    return short if all(short) else list(names)


def values_alone(names: Sequence[str]) -> tuple[list[str], str]:
    """Names such as `lr=1, batch=2` as `1, 2` where most have the same settings, and these settings; else "".

    Other names lose what follows them in brackets.
    """
    parts = [[part.partition("=") for part in name.split(", ")] for name in names]
    settings = [
        tuple(setting for setting, *_ in each) if all(equals for _, equals, _ in each) else () for each in parts
    ]
    common, number = Counter(settings).most_common(1)[0]
    if len(common) < 2 or number <= len(names) / 2:
        return list(names), ""
    values = [", ".join(value for *_, value in each) for each in parts]
    labels = [
        value if own == common else name.partition(" (")[0]
        for name, value, own in zip(names, values, settings, strict=True)
    ]
    return (labels, ", ".join(common)) if len(set(labels)) == len(labels) else (list(names), "")


def legend_label(label: str) -> str:
    """A label for the legend. It starts with a space, as matplotlib hides labels that start with an underscore."""
    return f" {shorten(label, 40)}"


def add_legend(figure: Figure, title: str | None = None) -> None:
    """Add a legend above the axes for everything that has a label."""
    look: dict[str, Any] = {
        "fontsize": 9,
        "title_fontsize": 9,
        "frameon": False,
        "handlelength": 1.5,
        "columnspacing": 1.2,
    }
    figure.legend(loc="outside upper left", title=title, ncols=3, **look)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, Mapping[str, Any]]]) -> None:
    """Write labels beside the axes at the heights of the ends of lines, and apart from each other.

    An end is (x, y, label, look), with x and y in units of the data, and dollars in the label escaped. Before its label
    is a short piece of the line, whose look is what `axes.plot` was given. Call it when the limits of the axes are
    final.
    """
    if not ends:
        return
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # lays out the axes, whose height is needed
    heights = [float(axes.transData.transform((x, y))[1]) for x, y, _, _ in ends]
    gap = LABEL_HEIGHT * max(label.count("\n") + 1 for _, _, label, _ in ends)
    apart = spread(heights, gap * figure.dpi / 72, axes.bbox.y0, axes.bbox.y1)
    left, right = PIECE
    for (x, y, label, look), place in zip(ends, apart, strict=True):
        height = (place - axes.bbox.y0) / axes.bbox.height
        beside = ScaledTranslation(1, height, axes.transAxes)  # type: ignore[arg-type]
        in_points = Affine2D().scale(1 / 72) + figure.dpi_scale_trans + beside
        piece = Line2D([left, (left + right) / 2, right], [0, 0, 0], transform=in_points, markevery=[1], **look)
        leader = ConnectionPatch(
            (x, y),
            (left, 0),
            "data",
            in_points,
            axesA=axes,
            color=look["color"],
            linewidth=0.8,
            linestyle=(0, (1, 3)),  # so that it doesn't look like a part of the line
            shrinkA=2,
        )
        for artist in (leader, piece):
            artist.set_in_layout(False)
            figure.add_artist(artist)
        axes.annotate(
            label,
            (1, height),
            xycoords="axes fraction",
            xytext=(right + 4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def label_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Mark ascending values on the x axis, and write those that have room beside the one written before.

    Call it when the limits of the axes are final.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    texts = [f"{value:g}" for value in values]
    axes.set_xticks(values, texts)
    figure.draw_without_rendering()  # lays out the axes and their texts
    end = -math.inf
    for index, label in enumerate(axes.get_xticklabels()):
        box = label.get_window_extent()
        if box.x0 < end + TICK_GAP * figure.dpi / 72:
            texts[index] = ""
        else:
            end = box.x1
    axes.set_xticks(values, texts)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the given ones, in the same order, that are at least `gap` apart, and between the limits if they fit.

    Neighbours that are too close become a block around their mean.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    blocks: list[tuple[float, int]] = []  # middle and size of each block, from below

    def limited(middle: float, size: int) -> float:
        half = gap * (size - 1) / 2
        return float(np.clip(middle, low + half, max(high - half, low + half)))

    for index in order:
        middle, size = limited(places[index], 1), 1
        while blocks and middle - gap * (size - 1) / 2 < blocks[-1][0] + gap * (blocks[-1][1] - 1) / 2 + gap:
            below, count = blocks.pop()
            middle = limited((middle * size + below * count) / (size + count), size + count)
            size += count
        blocks.append((middle, size))
    flat = [middle + gap * (rank - (size - 1) / 2) for middle, size in blocks for rank in range(size)]
    result = [0.0] * len(places)
    for index, place in zip(order, flat, strict=True):
        result[index] = place
    return result
