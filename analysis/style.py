"""The look that all figures share, and how they are saved.

Figures are made with matplotlib's object interface, which needs neither a display nor a choice of backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart. Line styles also work without colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h", "d", "8", "H")  # 105 pairs with the colours

WITHOUT_DATE: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of a size in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def save(figure: Figure, *paths: Path) -> None:
    """Write a figure in the format of each path's suffix. The same figure always gives the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "simclr"}):
        for path in paths:
            figure.savefig(path, dpi=150, metadata=WITHOUT_DATE.get(path.suffix))


def color(index: int) -> str:
    """The colour of a class or a line. Negative indices are grey."""
    return COLORS[index % len(COLORS)] if index >= 0 else "0.5"


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


def legend_label(label: str) -> str:
    """A label for the legend. It starts with a space, as matplotlib hides labels that start with an underscore."""
    return f" {shorten(label, 40)}"


def add_legend(figure: Figure, title: str | None = None) -> None:
    """Add a legend beside the axes for everything that has a label."""
    figure.legend(loc="outside right upper", title=title, fontsize=8, title_fontsize=8, frameon=False)
