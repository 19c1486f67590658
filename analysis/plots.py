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
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

# Okabe and Ito's palette: told apart by colour-blind readers; the line styles tell them apart in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h", "d", "8", "H")  # with colours: 105 pairs


def loss_curve(curves: Mapping[str, pd.DataFrame], chance: float, path: Path) -> None:
    """Loss against the step (columns step, value) for each run, with the chance level ln(2N - 1)."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for index, (name, curve) in enumerate(curves.items()):
        color, style = COLORS[index % len(COLORS)], STYLES[index % len(STYLES)]
        axes.plot(curve["step"], curve["value"], color=color, linestyle=style, label=name)
    axes.axhline(chance, color="0.5", linewidth=1)
    label = f"chance, ln(2N - 1) = {chance:.2f}"
    axes.annotate(label, (0.99, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.3")
    axes.set(xlabel="step", ylabel="NT-Xent loss", ylim=(0, 1.1 * chance))
    axes.legend(frameon=False, loc="lower left")
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
        for row, column in np.argwhere(matrix):
            value = share[row, column]
            color = "white" if value > 40 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color)
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
    figure, axes = plt.subplots(figsize=(6.5 + width, 6.7), layout="constrained")
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
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.set_xlabel(_plain(textwrap.fill(note, 100)), fontsize=8)
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


def _color(label: int) -> str:
    return COLORS[label % len(COLORS)] if label >= 0 else "0.5"


def _short(name: str, longest: int = 20) -> str:
    return _plain(name if len(name) <= longest else f"{name[: longest - 1]}…")


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


def _save(figure: Figure, *paths: Path) -> None:
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
