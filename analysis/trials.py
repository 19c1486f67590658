"""Figures of a hyperparameter search, drawn from a table of its trials and a table of its parameters.

The table of trials has one row per trial: its number (trial), its objectives (nan or None unless it was completed) and
its parameters. The first objective is maximized and the second, if there is one, minimized. The table of parameters has
one row per parameter, the most important first: parameter (its column in the table of trials), importance (from 0 to
1), log (whether its range is logarithmic) and choices (a list, or None for a range).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from analysis.style import (
    COLORS,
    FAINT,
    MUTED,
    WIDTH,
    escape_dollars,
    label_ends,
    new_figure,
    save,
    shorten,
    style_axes,
)

LABELS = {"accuracy": "accuracy on validation (%)", "time": "training time (s)"}
SCALES = {"accuracy": 100.0}  # from the table to the figures
CAPTIONS = {
    "history": "Accuracy of each trial, and the best so far",
    "importance": "How much each parameter matters for the accuracy",
    "slice": "Accuracy against the most important parameters. Later trials are lighter",
    "parallel-coordinates": "Each line is a trial. The best are the lightest",
    "contour": "Accuracy over each two of the most important parameters. Dots are trials",
    "pareto-front": "Accuracy against training time. No trial is better than those on the line in both",
}
FEWEST = 10  # completed trials from which on figures say which parameters are important
SHOWN_PARAMETERS = 4  # the most important ones have a panel or an axis each, or a panel for each pair
# Its ends would disappear, one on white and the other in dark mode.
COLOR_MAP = ListedColormap(colormaps["viridis"](np.linspace(0.25, 0.95, 256)))
EDGE: dict[str, Any] = {"edgecolor": FAINT, "linewidth": 0.6}
OUTLINE = [withStroke(linewidth=2, foreground="white")]


def pictures(
    trials: pd.DataFrame, parameters: pd.DataFrame, objectives: Sequence[str]
) -> dict[str, Callable[[Path], None]]:
    """The figures that the completed trials allow: for each name a function that draws it to a file.

    There are none for fewer than two completed trials, those that are about the most important parameters need FEWEST,
    a contour needs two parameters, and a Pareto front two objectives.
    """
    completed = trials.dropna(subset=list(objectives)).sort_values("trial")
    if len(completed) < 2:
        return {}
    completed = completed.astype({"trial": int} | dict.fromkeys(objectives, float))
    completed = completed.assign(**{name: completed[name] * SCALES.get(name, 1.0) for name in objectives})
    first = objectives[0]
    dimensions = [_dimension(completed, row) for _, row in parameters.head(SHOWN_PARAMETERS).iterrows()]
    drawn: dict[str, Callable[[Path], None]] = {"history": partial(history, completed, first)}
    if dimensions:
        drawn["parallel-coordinates"] = partial(parallel_coordinates, completed, dimensions, first)
    if dimensions and len(completed) >= FEWEST:
        drawn["importance"] = partial(importance, parameters, first)
        drawn["slice"] = partial(slices, completed, dimensions, first)
    if len(dimensions) > 1 and len(completed) >= FEWEST:
        drawn["contour"] = partial(contours, completed, dimensions, first)
    if len(objectives) > 1:
        drawn["pareto-front"] = partial(pareto_front, completed, first, objectives[1])
    return drawn


class Dimension(NamedTuple):
    """A parameter or an objective along an axis from 0 to 1."""

    name: str
    positions: NDArray[np.float64]  # one per trial, nan if the trial does not have the parameter
    ticks: list[float]
    labels: list[str]


def _dimension(trials: pd.DataFrame, parameter: pd.Series[Any]) -> Dimension:
    """A parameter with its choices at equal distances, or with its range scaled to that of the trials."""
    name, choices = parameter["parameter"], parameter["choices"]
    if not isinstance(choices, list):
        return _range_dimension(name, trials[name], parameter["log"])
    labels = [str(choice) for choice in choices]
    ticks = [float(tick) for tick in np.linspace(0, 1, len(labels))] if len(labels) > 1 else [0.5]
    position = dict(zip(labels, ticks, strict=True))
    positions = np.array([position.get(str(value), math.nan) for value in trials[name]])
    return Dimension(name, positions, ticks, [shorten(label, 14) for label in labels])


def _range_dimension(name: str, values: pd.Series[Any], log: bool = False) -> Dimension:
    """Numbers scaled to [0, 1], on a logarithmic scale if `log`."""
    numbers = pd.to_numeric(values).to_numpy(float)
    scaled = np.log(numbers) if log else numbers
    low, high = float(np.nanmin(scaled)), float(np.nanmax(scaled))
    ticks = [0.0, 0.5, 1.0] if low < high else [0.5]
    middle = np.linspace(low, high, 3) if low < high else np.array([low])
    labels = [f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}" for value in (np.exp(middle) if log else middle)]
    positions = (scaled - low) / (high - low) if low < high else np.where(np.isnan(scaled), math.nan, 0.5)
    return Dimension(name, positions, ticks, labels)


def history(trials: pd.DataFrame, objective: str, path: Path) -> None:
    """Draw the objective of each trial, and the best so far."""
    figure, axes = new_figure(WIDTH, 3.3)
    best = trials[objective].cummax()
    axes.scatter(trials["trial"], trials[objective], 24, color=COLORS[0])
    axes.step(trials["trial"], best, where="post", color=COLORS[1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=_label(objective))
    axes.margins(x=0.03, y=0.1)
    label_ends(axes, [(trials["trial"].iloc[-1], best.iloc[-1], f"best so far\n{best.iloc[-1]:.4g}", COLORS[1])])
    save(figure, path)


def importance(parameters: pd.DataFrame, objective: str, path: Path) -> None:
    """Draw the importance of each parameter as a bar, the most important at the top."""
    figure, axes = new_figure(WIDTH, 1 + 0.27 * len(parameters))
    axes.grid(visible=False)
    y = np.arange(len(parameters))
    bars = axes.barh(y, parameters["importance"], height=0.65, color=COLORS[0])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set_yticks(y, [shorten(name, 36) for name in parameters["parameter"]])
    axes.tick_params("y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel=f"importance for the {LABELS.get(objective, objective).partition(' (')[0]}")
    save(figure, path)


def slices(trials: pd.DataFrame, dimensions: Sequence[Dimension], objective: str, path: Path) -> None:
    """Draw the objective against each parameter, in a panel each. The colour shows the number of the trial."""
    rows = -(-len(dimensions) // 2)
    figure = Figure(figsize=(WIDTH, 0.3 + 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, min(2, len(dimensions)), sharey=True, squeeze=False)
    panels = list(grid.flat[: len(dimensions)])
    for unused in grid.flat[len(dimensions) :]:
        unused.remove()
    norm = Normalize(trials["trial"].min(), trials["trial"].max())
    for axes, dimension in zip(panels, dimensions, strict=True):
        style_axes(axes)
        axes.scatter(dimension.positions, trials[objective], 22, c=trials["trial"], cmap=COLOR_MAP, norm=norm, **EDGE)
        _label_x(axes, dimension)
    figure.supylabel(_label(objective), fontsize=10)
    bar = figure.colorbar(ScalarMappable(norm, COLOR_MAP), ax=panels, label="trial")
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path)


def contours(trials: pd.DataFrame, dimensions: Sequence[Dimension], objective: str, path: Path) -> None:
    """Draw the objective over each pair of parameters: trials as dots, and a surface interpolated between them."""
    side = len(dimensions) - 1
    figure = Figure(figsize=(1.8 + 1.8 * side, 1 + 1.8 * side), layout="constrained")
    grid = figure.subplots(side, side, squeeze=False)
    values = trials[objective].to_numpy()
    norm = Normalize(values.min(), values.max())
    for axes in grid[np.triu_indices(side, 1)]:
        axes.remove()
    for (column, x), (row, y) in combinations(enumerate(dimensions), 2):
        axes = grid[row - 1, column]
        _draw_surface(axes, np.column_stack([x.positions, y.positions]), values, norm)
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), xticks=[], yticks=[])
        if row == side:
            _label_x(axes, x)
        if column == 0:
            axes.set_yticks(y.ticks, y.labels, fontsize=7)
            axes.set_ylabel(shorten(y.name, 30), fontsize=8)
    panels = list(grid[np.tril_indices(side)])
    figure.colorbar(ScalarMappable(norm, COLOR_MAP), ax=panels, label=_label(objective))
    save(figure, path)


def _draw_surface(axes: Axes, points: NDArray[np.float64], values: NDArray[np.float64], norm: Normalize) -> None:
    """Draw values (N) at points (N x 2, nan if unknown), over a smooth surface through them."""
    known = ~np.isnan(points).any(axis=1)
    if not known.any():
        axes.text(0.5, 0.5, "no trial has both", ha="center", va="center", fontsize=8, color=MUTED)
        return
    points, values = points[known], values[known]
    if norm.vmin != norm.vmax:
        ticks = np.linspace(-0.05, 1.05, 45)
        x, y = np.meshgrid(ticks, ticks)
        z = _interpolate(points, values, np.column_stack([x.ravel(), y.ravel()])).reshape(x.shape)
        levels = np.linspace(norm.vmin or 0.0, norm.vmax or 0.0, 11)
        axes.contourf(x, y, z, levels, cmap=COLOR_MAP, norm=norm, extend="both", alpha=0.6)
    axes.scatter(
        points[:, 0], points[:, 1], c=values, s=20, cmap=COLOR_MAP, norm=norm, edgecolor="white", linewidth=0.6
    )


def _interpolate(
    points: NDArray[np.float64], values: NDArray[np.float64], targets: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Values at targets (M x 2), from values (N) at points (N x 2), which may occur more than once."""
    surface = RBFInterpolator(points, values, kernel="linear", smoothing=0.02, degree=0)
    return np.asarray(surface(targets), np.float64)


def parallel_coordinates(trials: pd.DataFrame, dimensions: Sequence[Dimension], objective: str, path: Path) -> None:
    """Draw each trial as a line through its objective and parameters. A trial without a parameter passes below it."""
    axis_list = [_range_dimension(_label(objective), trials[objective]), *dimensions]
    missing = -0.15
    positions = np.column_stack([dimension.positions for dimension in axis_list])
    figure, axes = new_figure(1.2 + 1.3 * len(axis_list), 4.2)
    axes.grid(visible=False)
    order = np.argsort(trials[objective].to_numpy())  # the best trials are drawn last, above the others
    lines = [np.column_stack([np.arange(len(axis_list)), row]) for row in np.nan_to_num(positions, nan=missing)[order]]
    collection = LineCollection(lines, cmap=COLOR_MAP, alpha=0.8)
    collection.set_array(trials[objective].to_numpy()[order])
    axes.add_collection(collection)
    for x, dimension in enumerate(axis_list):
        axes.axvline(x, color=FAINT, linewidth=1, zorder=0)
        ticks = list(zip(dimension.ticks, dimension.labels, strict=True))
        if np.isnan(dimension.positions).any():
            ticks.append((missing, "none"))
        for y, label in ticks:
            axes.text(x - 0.03, y, label, ha="right", va="center", fontsize=7, path_effects=OUTLINE)
    axes.set(xlim=(-0.5, len(axis_list) - 0.8), ylim=(missing - 0.05, 1.05), yticks=[])
    axes.set_xticks(range(len(axis_list)), [_wrapped(dimension.name) for dimension in axis_list], fontsize=8)
    axes.spines[:].set_visible(False)
    figure.colorbar(collection, label=_label(objective), shrink=0.8)
    save(figure, path)


def pareto_front(trials: pd.DataFrame, maximized: str, minimized: str, path: Path) -> None:
    """Draw one objective against the other, with a line through the trials that no other trial beats on both."""
    ordered = trials.sort_values([minimized, maximized], ascending=[True, False])
    front = ordered[ordered[maximized] > ordered[maximized].cummax().shift(fill_value=-math.inf)]
    figure, axes = new_figure(WIDTH, 3.3)
    axes.scatter(trials[minimized], trials[maximized], 24, color=COLORS[0])
    line: dict[str, Any] = {"marker": "o", "markersize": 8, "fillstyle": "none", "color": COLORS[1]}
    axes.plot(front[minimized], front[maximized], drawstyle="steps-post", **line)
    for x, y, trial in zip(front[minimized], front[maximized], front["trial"], strict=True):
        axes.annotate(str(trial), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel=_label(minimized), ylabel=_label(maximized))
    axes.margins(y=0.12)
    label_ends(axes, [(front[minimized].iloc[-1], front[maximized].iloc[-1], "Pareto\nfront", COLORS[1])])
    save(figure, path)


def _label(objective: str) -> str:
    return LABELS.get(objective, escape_dollars(objective))


def _label_x(axes: Axes, dimension: Dimension) -> None:
    axes.set_xticks(dimension.ticks, dimension.labels, fontsize=7, rotation=45, ha="right")
    axes.set_xlabel(_wrapped(dimension.name), fontsize=8)


def _wrapped(name: str) -> str:
    return textwrap.fill(shorten(name, 40), 24)
