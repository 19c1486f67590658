"""Figures, drawn without a display."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "simclr"  # the same figure is the same file
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.markers import CARETLEFTBASE, CARETRIGHTBASE
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

# Okabe and Ito's palette: told apart by colour-blind readers; the line styles tell them apart in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))  # told apart in grey too
UNDATED: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h", "d", "8", "H")  # with colours: 105 pairs


def curves(
    histories: Mapping[str, Sequence[pd.DataFrame]],
    path: Path,
    ylabel: str,
    chances: Sequence[float] = (),
    smooth: int = 0,
) -> None:
    """A curve against the step (columns step, value) for each label: the mean of its runs, and their range as a band.

    `smooth` draws running means over so many points of a run, and says so. A step that only some runs have is a mean of
    those. Raises ValueError for a negative `smooth`.
    """
    if smooth < 0:
        raise ValueError(f"smooth {smooth}: expected 0 (as it is), or over how many points to take running means")
    points = curve_points(histories)
    if smooth > 1:
        runs = points.groupby(["label", "run"])["value"]
        points["value"] = runs.transform(lambda run: run.rolling(smooth, center=True, min_periods=1).mean())
        ylabel += f" (running mean of {smooth} points)"
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    title = None
    for index, (label, group) in enumerate(points.groupby("label", sort=False)):
        n = group["run"].nunique()
        name = _entry(str(label))
        if n > 1:
            name, title = f"{name} (n = {n})", "mean and range of runs"
        at = group.groupby("step")["value"].agg(["mean", "min", "max"])
        axes.plot(at.index, at["mean"], label=name, **_look(index))
        axes.fill_between(at.index, at["min"], at["max"], color=_color(index), alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel=_plain(ylabel))
    axes.margins(y=0.1)
    for chance in chances:
        axes.axhline(chance, color="0.5", linewidth=1)
        note, place = f"chance = {chance:.3g}", ("axes fraction", "data")
        axes.annotate(note, (0.99, chance), xycoords=place, ha="right", va="bottom", color="0.3")
    _legend(figure, title)
    _save(figure, path)


def curve_points(histories: Mapping[str, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """What `curves` draws, one row a point: label, run (its index in the label), step, value."""
    columns = ["label", "run", "step", "value"]
    runs = [
        run.assign(label=label, run=index)[columns]
        for label, of_label in histories.items()
        for index, run in enumerate(of_label)
    ]
    return pd.concat(runs, ignore_index=True) if runs else pd.DataFrame(columns=columns)


def differences(summary: pd.DataFrame, path: Path, xlabel: str) -> None:
    """The difference of each cell to the baseline with its interval, sorted, from `study.summary` (the baseline first).

    Light marks show what was expected: a bar at the size, or a triangle from 0 to the side.
    """
    rows = summary.iloc[1:].sort_values("difference", ascending=False, na_position="first")
    y = np.arange(len(rows))
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes.axvline(0, color="0.5", linewidth=1)
    low, middle, high = (rows[f"difference{end}"] for end in ("_low", "", "_high"))
    bars = [middle - low, high - middle]
    axes.errorbar(middle, y, xerr=bars, fmt="o", color=COLORS[0], capsize=3, label="difference, 95 % interval")
    sizes = pd.to_numeric(rows["expected"], errors="coerce")
    light: dict[str, Any] = {"color": "0.7", "linestyle": "none", "zorder": 0}
    if sizes.notna().any():
        axes.plot(sizes, y, marker="|", markersize=15, markeredgewidth=4, label="expected size", **light)
    for side, marker in (("lower", CARETLEFTBASE), ("higher", CARETRIGHTBASE)):
        if (expected := (rows["expected"] == side).to_numpy()).any():
            zeros = np.zeros(expected.sum())
            axes.plot(zeros, y[expected], marker=marker, markersize=11, label=f"expected {side}", **light)
    names = [f"{_short(cell, 40)} (n = {pairs})" for cell, pairs in zip(rows["cell"], rows["pairs"], strict=True)]
    axes.set_yticks(y, names, fontsize=8)
    axes.set(xlabel=_plain(xlabel), ylim=(-0.6, len(rows) - 0.4))
    _legend(figure)
    _save(figure, path)


def against(
    summary: pd.DataFrame,
    lines: Mapping[str, Mapping[str, float]],
    path: Path,
    xlabel: str,
    ylabel: str,
    log: bool = False,
) -> None:
    """The figures of `study.summary` with their intervals against a number: for each label, a line of {cell: number}.

    The baseline (the first row) is a dotted level, and a ring where a line passes it. Raises ValueError for a number
    that has no place on a logarithmic axis.
    """
    places = {cell: x for line in lines.values() for cell, x in line.items()}
    if log and (wrong := [cell for cell, x in places.items() if x <= 0]):
        raise ValueError(
            f"{xlabel} {places[wrong[0]]:g} of cell '{wrong[0]}' on a logarithmic axis: "
            f"expected a positive number, so draw the axis linear"
        )
    table = summary.set_index("cell")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    baseline = summary["cell"].iloc[0]
    level = table.loc[baseline, "mean"]
    for index, (label, line) in enumerate(lines.items()):
        at = table.loc[list(line)].assign(x=list(line.values())).sort_values("x")
        bars = [at["mean"] - at["low"], at["high"] - at["mean"]]
        look = _look(index) | {"marker": MARKERS[index % len(MARKERS)], "label": _entry(label)}
        axes.errorbar(at["x"], at["mean"], yerr=bars, capsize=3, **look)
        axes.fill_between(at["x"], at["low"], at["high"], color=_color(index), alpha=0.2, linewidth=0)
    axes.axhline(level, color="0.4", linestyle=":", label=_entry(baseline))
    if baseline in places:
        axes.plot(places[baseline], level, marker="o", markersize=12, color="0.4", fillstyle="none")
    if log:
        axes.set_xscale("log")
        axes.minorticks_off()
    ticks = sorted(set(places.values()))
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set(xlabel=_plain(xlabel), ylabel=_plain(ylabel))
    _legend(figure)
    _save(figure, path)


def pair_matrix(names: Sequence[str], values: NDArray[Any], path: Path, label: str) -> None:
    """Figures (K x K, nan: none) of pairs of augmentations, and their average over the row.

    As Fig. 5 of arXiv 2002.05709; on the diagonal are single augmentations.
    """
    shown = np.column_stack([values, pd.DataFrame(values).mean(axis=1)])
    side = 2.5 + 0.75 * len(names)
    figure, axes = plt.subplots(figsize=(side + 1.5, side), layout="constrained")
    image = axes.imshow(shown, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, label=_plain(label), shrink=0.8)
    _numbers(axes, image, shown, np.argwhere(np.ones_like(shown)), ".1f")
    axes.axvline(len(names) - 0.5, color="white", linewidth=4)
    ticks = [_short(name, 30) for name in names]
    axes.set_xticks(range(len(names) + 1), [*ticks, "average"], rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), ticks, fontsize=8)
    axes.set(xlabel="and", ylabel="augmentation")
    _save(figure, path)


def image_rows(rows: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Rows of images (each N x H x W x 3 in [0, 1]) with a label on the left of each row."""
    figure, grid = _grid(len(rows), max(len(images) for images in rows.values()), 0.85)
    for line, (label, images) in zip(grid, rows.items(), strict=True):
        for cell, image in zip(line, images, strict=False):
            cell.imshow(image.clip(0, 1), interpolation="nearest")
        line[0].set_ylabel(label.replace("_", " "), rotation=0, ha="right", va="center")
    _save(figure, path)


def neighbours(
    queries: Sequence[tuple[NDArray[Any], Sequence[NDArray[Any]], Sequence[float], Sequence[str | None]]], path: Path
) -> None:
    """A row for each query: its image on the left, then its nearest images with similarity and label (or None) below.

    Images are H x W x 3, uint8 or in [0, 1].
    """
    figure, grid = _grid(len(queries), 1 + max(len(images) for _, images, _, _ in queries), 1.15)
    for (cell, *others), (query, images, similarities, labels) in zip(grid, queries, strict=True):
        cell.imshow(query, interpolation="nearest")
        cell.set_xlabel("query", fontsize=8, weight="bold")
        for other, image, similarity, label in zip(others, images, similarities, labels, strict=False):
            other.imshow(image, interpolation="nearest")
            other.set_xlabel(f"{similarity:.2f}" + (f"\n{_short(label, 14)}" if label else ""), fontsize=8)
    _save(figure, path)


def confusion_matrix(matrix: NDArray[np.integer], classes: Sequence[str], path: Path) -> None:
    """Counts (C x C, rows true, columns predicted) as percent of their row; a class without images is a row of 0."""
    n = len(matrix)
    share = 100 * matrix / matrix.sum(1, keepdims=True).clip(min=1)
    side = min(3 + 0.4 * n, 10)
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    figure.colorbar(image, label="% of the true class", shrink=0.8)
    if n <= 20:
        _numbers(axes, image, share, np.argwhere(matrix), ".0f")
    ticks = range(0, n, -(-n // 50))
    names = [_short(classes[tick]) for tick in ticks]
    axes.set_xticks(ticks, names, rotation=90, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    _save(figure, path)


def scatter(
    points: NDArray[Any],
    labels: NDArray[np.integer] | None,
    classes: Sequence[str],
    paths: Sequence[Path],
    thumbnails: NDArray[np.uint8] | None = None,
    note: str = "",
) -> None:
    """A map (N x 2) with a colour and a marker for each class, in the format of each path's suffix.

    `labels` are N class indices (-1: unknown), or None. With more classes than markers, their numbers in the
    legend stand at their medians on the map. `thumbnails` (N x H x W x 3) are drawn where they fit without overlap,
    framed in the colour of the class. `note` is printed below.
    """
    labels = np.full(len(points), -1) if labels is None else labels
    present = [int(label) for label in np.unique(labels) if label >= 0]
    numbered = len(present) > len(MARKERS)
    # A legend leaves out what begins with an underscore; hence the blank.
    names = {label: f"{label if numbered else ''} {_short(classes[label])}" for label in present}
    columns = -(-len(present) // 48)
    width = columns * (0.5 + 0.065 * max(map(len, names.values()), default=0))
    spread = np.ptp(points, axis=0)
    height = max(
        6.5 * float(np.clip(spread[1] / max(spread[0], 1e-9), 0.4, 1)), 0.14 * -(-len(present) // max(columns, 1))
    )
    figure, axes = plt.subplots(figsize=(6.5 + width, height + 0.4), layout="constrained")
    axes.use_sticky_edges = False  # thumbnails would touch the frame
    size = float(np.clip(40_000 / len(points), 5, 25))
    for label in [-1, *present]:
        x, y = points[labels == label].T
        face = "none" if label // len(COLORS) % 2 else _color(label)  # of two classes in a colour, one is hollow
        axes.scatter(
            x,
            y,
            size,
            marker=MARKERS[label % len(MARKERS)],
            facecolor=face,
            edgecolor=_color(label),
            linewidth=0.6,
            alpha=0.8,
            label=names.get(label),
        )
        if label in names and numbered:
            outline = [withStroke(linewidth=2, foreground="white")]
            middle = (float(np.median(x)), float(np.median(y)))
            axes.annotate(str(label), middle, ha="center", va="center", fontsize=7, path_effects=outline, zorder=4)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="box")
    lines = [textwrap.fill(line, 100) for line in note.splitlines()]
    axes.set_xlabel(_plain("\n".join(lines)), fontsize=8)
    if thumbnails is not None:
        _thumbnails(axes, points, labels, thumbnails)
    if present:
        figure.legend(
            loc="outside right upper",
            ncols=columns,
            fontsize=7,
            frameon=False,
            labelspacing=0.3,
            columnspacing=1,
            markerscale=5 / size**0.5,
        )
    _save(figure, *paths)


def _thumbnails(
    axes: Axes, points: NDArray[Any], labels: NDArray[np.integer], images: NDArray[np.uint8], across: int = 32
) -> None:
    """Images at their points, each as wide as the map / `across`; one that would overlap an earlier one is left out."""
    side = np.ptp(points, axis=0).max() / across
    drawn: list[int] = []
    for index, point in enumerate(points):
        if (np.abs(points[drawn] - point).max(1) >= side).all():
            drawn.append(index)
    for index in drawn:
        left, bottom = points[index] - side / 2
        extent = (left, left + side, bottom, bottom + side)
        axes.imshow(images[index], extent=extent, interpolation="nearest", aspect="equal", zorder=2)
        frame = Rectangle((left, bottom), side, side, fill=False, color=_color(labels[index]), zorder=3)
        axes.add_patch(frame)
    axes.autoscale()


def _numbers(axes: Axes, image: AxesImage, values: NDArray[Any], cells: NDArray[np.integer], style: str) -> None:
    """The values (R x C) of an image (blue: high), in some of its cells (N x 2: row, column)."""
    dark = np.asarray(image.norm(values)) > 0.63
    for row, column in cells:
        text = "—" if np.isnan(values[row, column]) else f"{values[row, column]:{style}}"
        color = "white" if dark[row, column] else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)


def _look(index: int) -> dict[str, Any]:
    """The colour and style of a line: 35 pairs."""
    return {"color": _color(index), "linestyle": STYLES[index % len(STYLES)]}


def _color(label: int) -> str:
    return COLORS[label % len(COLORS)] if label >= 0 else "0.5"


def _short(name: str, longest: int = 20) -> str:
    """A name without its middle where it is long: names of one study begin alike, and seed and id stand at the end."""
    kept = longest - 1
    return _plain(name if len(name) <= longest else f"{name[: kept // 2]}…{name[len(name) - (kept - kept // 2) :]}")


def _entry(label: str) -> str:
    """A label for the legend, which leaves out what begins with an underscore; hence the blank."""
    return f" {_short(label, 40)}"


def _legend(figure: Figure, title: str | None = None) -> None:
    """A legend beside the figure, of what has a label."""
    figure.legend(loc="outside right upper", title=title, fontsize=8, title_fontsize=8, frameon=False)


def _plain(text: str) -> str:
    """Text in which dollars are dollars, not formulas."""
    return text.replace("$", r"\$")


def _grid(rows: int, columns: int, height: float) -> tuple[Figure, NDArray[Any]]:
    """Cells for images, without ticks and frames."""
    figure, grid = plt.subplots(
        rows, columns, figsize=(0.8 * columns + 1.2, height * rows), squeeze=False, layout="constrained"
    )
    for cell in grid.flat:
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
    return figure, grid


def files_of(out: Path, *suffixes: str) -> list[Path]:
    """`out` with each suffix; one of them that it has already is replaced, any other dot is part of its name."""
    name = out.stem if out.suffix in suffixes else out.name
    return [out.with_name(name + suffix) for suffix in suffixes]


def _save(figure: Figure, *paths: Path) -> None:
    for path in paths:
        figure.savefig(path, dpi=150, metadata=UNDATED.get(path.suffix))
    plt.close(figure)
