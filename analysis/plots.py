"""Figures of runs, studies and encoders."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.image import AxesImage
from matplotlib.markers import CARETLEFTBASE, CARETRIGHTBASE
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from analysis.style import (
    COLORS,
    FAINT,
    LABEL_HEIGHT,
    MARKERS,
    MUTED,
    ON_DARK,
    ON_LIGHT,
    SPARSE,
    WIDTH,
    add_legend,
    color,
    escape_dollars,
    in_lines,
    label_ends,
    label_ticks,
    line_style,
    new_figure,
    save,
    shorten,
    values_alone,
    without_common_parts,
)
from analysis.tables import signed

MAX_NUMBERED_CLASSES = 20  # a larger confusion matrix has no room for numbers
MAX_CLASS_TICKS = 50
MAX_LEGEND_ROWS = 48


def files_of(out: Path, *suffixes: str) -> list[Path]:
    """The path `out` with each suffix in place of one that it already has. Other dots belong to the name."""
    name = out.stem if out.suffix in suffixes else out.name
    return [out.with_name(name + suffix) for suffix in suffixes]


def curves(
    histories: Mapping[str, Sequence[pd.DataFrame]],
    path: Path,
    ylabel: str,
    chances: Mapping[str, float] = MappingProxyType({}),
    smooth: int = 0,
    *,
    percent: bool = False,
) -> None:
    """Draw a metric against the epoch, one curve per label: the mean of its runs, with their range as a band.

    Each run is a frame with the columns step, images (seen by then, with repetitions), epoch and value. If the epochs
    of a run are unknown (nan), all runs are drawn against the images. Where only some runs have a point, the mean is
    over those. `chances` has the level of chance of each label, nan if it has none. They are drawn as one horizontal
    line, or if they differ, as one for each in the colour of its curve. `smooth` is the number of points of a running
    mean over each run, which the axis label then states. `percent` shows values from 0 to 1 as percentages. Raises
    ValueError if `smooth` is negative.
    """
    if smooth < 0:
        raise ValueError(f"smooth is {smooth}: expected 0 (no smoothing) or the number of points of a running mean")
    points = curve_points(histories)
    scale, unit = (100, " (%)") if percent else (1, "")
    points["value"] *= scale
    ylabel += unit
    if smooth > 1:
        runs = points.groupby(["label", "run"])["value"]
        points["value"] = runs.transform(lambda run: run.rolling(smooth, center=True, min_periods=1).mean())
        ylabel += f", running mean of {smooth} points"
    x = "epoch" if points["epoch"].notna().all() else "images"
    levels = {label: scale * chance for label, chance in chances.items() if not math.isnan(chance)}
    groups = list(points.groupby("label", sort=False))
    counts = [group["run"].nunique() for _, group in groups]
    names, settings = values_alone(without_common_parts([str(label) for label, _ in groups]))
    names = list(map(in_lines, names))
    lines = max((name.count("\n") + 1 for name in names), default=1) * (len(groups) + len(set(levels.values())))
    figure, axes = new_figure(WIDTH, max(3.3, 0.9 + LABEL_HEIGHT / 72 * lines))
    ends = []
    for index, ((_, group), name, n) in enumerate(zip(groups, names, counts, strict=True)):
        line = group.groupby(x)["value"].agg(["mean", "min", "max"])
        look = line_style(index) | {"markersize": 4}
        look |= {"marker": MARKERS[index % len(MARKERS)]} if len(line) <= SPARSE else {}
        axes.plot(line.index, line["mean"], **look)
        axes.fill_between(line.index, line["min"], line["max"], color=color(index), alpha=0.2, linewidth=0)
        if len(groups) > 1:
            count = f" (n = {n})" if len(set(counts)) > 1 else ""
            ends.append((line.index[-1], line["mean"].iloc[-1], name + count, look))
    axes.set(xlabel={"images": "images seen"}.get(x, x), ylabel=escape_dollars(ylabel))
    axes.margins(x=0.02, y=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=points[x].max() >= 2))
    if x == "images":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    ends += _draw_chance(axes, levels, [str(label) for label, _ in groups], " %" if percent else "")
    title = [f"labels are {settings}"] * bool(settings)
    if max(counts, default=1) > 1:
        each = f"{counts[0]} runs" if len(set(counts)) == 1 else "the runs"
        title.append(f"lines are the mean of {each}, bands their range")
    axes.set_title("\n".join(title), fontsize=9, color=MUTED, loc="left")
    label_ends(axes, ends)
    save(figure, path)


def _draw_chance(
    axes: Axes, levels: Mapping[str, float], labels: Sequence[str], unit: str
) -> list[tuple[float, float, str, dict[str, Any]]]:
    """Draw the levels of chance of some curves, and return the ends of their lines for `label_ends`."""
    ends = []
    for level in sorted(set(levels.values())):
        first = next(label for label, chance in levels.items() if chance == level)
        shade = color(labels.index(first)) if len(set(levels.values())) > 1 else FAINT
        look: dict[str, Any] = {"color": shade, "linewidth": 1, "linestyle": (0, (1, 2))}
        axes.axhline(level, **look)
        ends.append((axes.get_xlim()[1], level, f"chance {level:.3g}{unit}", look))
    return ends


def curve_points(histories: Mapping[str, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """The points that `curves` draws, one per row: label, run (index within its label), step, images, epoch, value."""
    columns = ["label", "run", "step", "images", "epoch", "value"]
    runs = [
        run.assign(label=label, run=index)[columns]
        for label, of_label in histories.items()
        for index, run in enumerate(of_label)
    ]
    return pd.concat(runs, ignore_index=True) if runs else pd.DataFrame(columns=columns)


def differences(summary: pd.DataFrame, path: Path, xlabel: str) -> None:
    """Draw the difference between each cell and the baseline with its interval, sorted.

    `summary` is a table from `analysis.summary.summary`, whose first row is the baseline. Grey marks show what was
    expected: a bar at the expected size, or a triangle from 0 to the expected side.
    """
    rows = summary.iloc[1:].sort_values("difference", ascending=False, na_position="first")
    y = np.arange(len(rows))
    names = [textwrap.fill(shorten(cell, 44), 24) for cell in rows["cell"]]
    lines = sum(max(1, name.count("\n") + 0.5) for name in names)
    figure, axes = new_figure(WIDTH, 1.1 + 0.3 * lines)
    axes.grid(visible=False)
    axes.axvline(0, color=MUTED, linewidth=1)
    low, middle, high = (rows[f"difference{end}"] for end in ("_low", "", "_high"))
    axes.errorbar(middle, y, xerr=[middle - low, high - middle], fmt="o", color=COLORS[0], capsize=3)
    for position, value in zip(y, middle, strict=True):
        text = "no result" if np.isnan(value) else signed(value, ".1f")
        axes.annotate(text, (1.02, position), xycoords=axes.get_yaxis_transform(), va="center", fontsize=9)
    sizes = pd.to_numeric(rows["expected"], errors="coerce")
    faint: dict[str, Any] = {"color": FAINT, "linestyle": "none", "zorder": 0}
    if sizes.notna().any():
        axes.plot(sizes, y, marker="|", markersize=15, markeredgewidth=3, label="the paper's size", **faint)
    for side, marker in (("lower", CARETLEFTBASE), ("higher", CARETRIGHTBASE)):
        if (expected := (rows["expected"] == side).to_numpy()).any():
            zeros = np.zeros(expected.sum())
            axes.plot(zeros, y[expected], marker=marker, markersize=10, label=f"the paper: {side}", **faint)
    axes.set_yticks(y, names)
    axes.tick_params("y", length=0)
    axes.set(xlabel=escape_dollars(xlabel), ylim=(-0.6, len(rows) - 0.4))
    if axes.get_legend_handles_labels()[0]:
        add_legend(figure)
    save(figure, path)


def against(
    summary: pd.DataFrame,
    lines: Mapping[str, Mapping[str, float]],
    path: Path,
    xlabel: str,
    ylabel: str,
    log: bool = False,
) -> None:
    """Draw the means of cells with their intervals against a number, as a line of {cell: number} per label.

    `summary` is a table from `analysis.summary.summary`. The baseline, its first row, is a dotted level, with a ring
    where a line passes through it. Raises ValueError if a number has no place on a logarithmic axis.
    """
    numbers = {cell: x for line in lines.values() for cell, x in line.items()}
    if log and (wrong := [cell for cell, x in numbers.items() if x <= 0]):
        raise ValueError(
            f"{xlabel} is {numbers[wrong[0]]:g} in cell '{wrong[0]}': expected positive numbers on a logarithmic "
            f"axis, so use a linear one"
        )
    table = summary.set_index("cell")
    baseline = summary["cell"].iloc[0]
    level = table.loc[baseline, "mean"]
    figure, axes = new_figure(WIDTH, max(3.3, 0.9 + LABEL_HEIGHT / 72 * (len(lines) + 1)))
    ends = []
    for index, (label, line) in enumerate(zip(without_common_parts(list(lines)), lines.values(), strict=True)):
        cells = table.loc[list(line)].assign(x=list(line.values())).sort_values("x")
        bars = [cells["mean"] - cells["low"], cells["high"] - cells["mean"]]
        look = line_style(index) | {"marker": MARKERS[index % len(MARKERS)]}
        axes.errorbar(cells["x"], cells["mean"], yerr=bars, capsize=3, **look)
        axes.fill_between(cells["x"], cells["low"], cells["high"], color=color(index), alpha=0.2, linewidth=0)
        if len(lines) > 1 and len(known := cells.dropna(subset=["mean"])):
            ends.append((known["x"].iloc[-1], known["mean"].iloc[-1], shorten(label, 30), look))
    if log:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set(xlabel=escape_dollars(xlabel), ylabel=escape_dollars(ylabel))
    dotted: dict[str, Any] = {"color": MUTED, "linestyle": ":"}
    axes.axhline(level, **dotted)
    if baseline in numbers:
        axes.plot(numbers[baseline], level, marker="o", markersize=12, color=MUTED, fillstyle="none")
    if not np.isnan(level):
        ends.append((axes.get_xlim()[1], level, shorten(baseline, 30), dotted))
    label_ticks(axes, sorted(set(numbers.values())))
    label_ends(axes, ends)
    save(figure, path)


def pair_matrix(names: Sequence[str], values: NDArray[Any], path: Path, label: str) -> None:
    """Draw the values (K x K, nan if unknown) of pairs of augmentations, and the average of each row.

    Follows Fig. 5 of arXiv 2002.05709. The diagonal holds single augmentations.
    """
    with_average = np.column_stack([values, pd.DataFrame(values).mean(axis=1)])
    side = 2 + 0.5 * len(names)
    figure, axes = new_figure(side + 1.3, side)
    axes.grid(visible=False)
    image = axes.imshow(with_average, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, label=escape_dollars(label), shrink=0.8)
    _write_numbers(axes, image, with_average, np.argwhere(np.ones_like(with_average)), ".1f")
    axes.axvline(len(names) - 0.5, color="white", linewidth=4)
    ticks = [shorten(name, 30) for name in names]
    axes.set_xticks(range(len(names) + 1), [*ticks, "average"], rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), ticks, fontsize=8)
    axes.set(xlabel="and", ylabel="augmentation")
    save(figure, path)


def confusion_matrix(matrix: NDArray[np.integer], classes: Sequence[str], path: Path) -> None:
    """Draw counts (C x C, rows: true, columns: predicted) as percentages of their row.

    The row of a class without images is 0.
    """
    n = len(matrix)
    share = 100 * matrix / matrix.sum(1, keepdims=True).clip(min=1)
    side = min(2.2 + 0.32 * n, 10)
    figure, axes = new_figure(side + 1, side)
    axes.grid(visible=False)
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    figure.colorbar(image, label="% of the true class (square-root scale)", shrink=0.8)
    if n <= MAX_NUMBERED_CLASSES:
        _write_numbers(axes, image, share, np.argwhere(matrix), ".0f")
    ticks = range(0, n, -(-n // MAX_CLASS_TICKS))
    names = [shorten(classes[tick]) for tick in ticks]
    axes.set_xticks(ticks, names, rotation=90, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    save(figure, path)


def _write_numbers(axes: Axes, image: AxesImage, values: NDArray[Any], cells: NDArray[np.integer], style: str) -> None:
    """Write the values (R x C) of an image into some of its cells (N x 2: row, column)."""
    dark = np.asarray(image.norm(values)) > 0.63
    for row, column in cells:
        text = "—" if np.isnan(values[row, column]) else f"{values[row, column]:{style}}"
        text_color = ON_DARK if dark[row, column] else ON_LIGHT
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=text_color)


def scatter(
    points: NDArray[Any],
    labels: NDArray[np.integer] | None,
    classes: Sequence[str],
    paths: Sequence[Path],
    thumbnails: NDArray[np.uint8] | None = None,
    note: str = "",
    title: str = "",
) -> None:
    """Draw a map (N x 2) with a colour and a marker for each class, and save it to each path.

    `labels` are N class indices (-1: unknown), or None. With more classes than markers, each class also has its number
    in the legend and at its median on the map. `thumbnails` (N x H x W x 3) are drawn where they fit without overlap,
    framed in the colour of their class. `title` is printed above the map, and `note` below it.
    """
    labels = np.full(len(points), -1) if labels is None else labels
    present = [int(label) for label in np.unique(labels) if label >= 0]
    numbered = len(present) > len(MARKERS)
    # The space keeps names that start with an underscore in the legend.
    names = {label: f"{label if numbered else ''} {shorten(classes[label])}" for label in present}
    legend_columns = -(-len(present) // MAX_LEGEND_ROWS)
    figure, axes = new_figure(*_map_size(points, list(names.values()), legend_columns))
    axes.use_sticky_edges = False  # otherwise thumbnails touch the frame
    size = float(np.clip(40_000 / len(points), 5, 25))
    for label in [-1, *present]:
        _draw_class(axes, points[labels == label], label, size, names.get(label))
        if numbered and label >= 0:
            _draw_class_number(axes, points[labels == label], label)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="box")
    axes.set_title(shorten(title, 80), fontsize=10, loc="left")
    lines = [textwrap.fill(line, 100) for line in note.splitlines()]
    axes.set_xlabel(escape_dollars("\n".join(lines)), fontsize=8)
    if thumbnails is not None:
        _draw_thumbnails(axes, points, labels, thumbnails)
    if present:
        spacing = {"labelspacing": 0.3, "columnspacing": 1, "markerscale": 5 / size**0.5}
        figure.legend(loc="outside right upper", ncols=legend_columns, fontsize=7, frameon=False, **spacing)
    save(figure, *paths)


def _map_size(points: NDArray[Any], names: Sequence[str], legend_columns: int) -> tuple[float, float]:
    """Width and height in inches of a map with the proportions of its points, and of the legend beside it."""
    legend_width = legend_columns * (0.5 + 0.065 * max(map(len, names), default=0))
    legend_height = 0.14 * -(-len(names) // max(legend_columns, 1))
    width, height = np.ptp(points, axis=0)
    map_height = 6.5 * float(np.clip(height / max(width, 1e-9), 0.4, 1))
    return 6.5 + legend_width, max(map_height, legend_height) + 0.4


def _draw_class(axes: Axes, points: NDArray[Any], label: int, size: float, name: str | None) -> None:
    """Draw the points (N x 2) of one class. Every second class of a colour has hollow markers."""
    axes.scatter(
        points[:, 0],
        points[:, 1],
        size,
        marker=MARKERS[label % len(MARKERS)],
        facecolor="none" if label // len(COLORS) % 2 else color(label),
        edgecolor=color(label),
        linewidth=0.6,
        alpha=0.8,
        label=name,
    )


def _draw_class_number(axes: Axes, points: NDArray[Any], label: int) -> None:
    """Write the number of a class at the median of its points (N x 2)."""
    x, y = np.median(points, axis=0)
    outline = [withStroke(linewidth=2, foreground="white")]
    axes.annotate(str(label), (x, y), ha="center", va="center", fontsize=7, path_effects=outline, zorder=4)


def _draw_thumbnails(
    axes: Axes, points: NDArray[Any], labels: NDArray[np.integer], images: NDArray[np.uint8], across: int = 32
) -> None:
    """Draw images at their points, except those that would overlap an earlier one.

    `across` is how many fit side by side.
    """
    side = np.ptp(points, axis=0).max() / across
    drawn: list[int] = []
    for index, point in enumerate(points):
        if (np.abs(points[drawn] - point).max(1) >= side).all():
            drawn.append(index)
    for index in drawn:
        left, bottom = points[index] - side / 2
        extent = (left, left + side, bottom, bottom + side)
        axes.imshow(images[index], extent=extent, interpolation="nearest", aspect="equal", zorder=2)
        axes.add_patch(Rectangle((left, bottom), side, side, fill=False, color=color(labels[index]), zorder=3))
    axes.autoscale()
