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
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from analysis.style import COLORS, add_legend, escape_dollars, new_figure, save, shorten

LABELS = {"accuracy": "accuracy on validation", "time": "training time (s)"}
SHOWN_PARAMETERS = 4  # the most important ones have a panel or an axis each, or a panel for each pair
COLOR_MAP = "viridis"
OUTLINE = [withStroke(linewidth=2, foreground="white")]


def pictures(
    trials: pd.DataFrame, parameters: pd.DataFrame, objectives: Sequence[str]
) -> dict[str, Callable[[Path], None]]:
    """The figures that the completed trials allow: for each name a function that draws it to a file.

    There are none for fewer than two completed trials, a contour needs two parameters, and a Pareto front two
    objectives.
    """
    completed = trials.dropna(subset=list(objectives)).sort_values("trial")
    if len(completed) < 2:
        return {}
    completed = completed.astype({"trial": int} | dict.fromkeys(objectives, float))
    first = objectives[0]
    dimensions = [_dimension(completed, row) for _, row in parameters.head(SHOWN_PARAMETERS).iterrows()]
    drawn: dict[str, Callable[[Path], None]] = {"history": partial(history, completed, first)}
    if dimensions:
        drawn["importance"] = partial(importance, parameters, first)
        drawn["slice"] = partial(slices, completed, dimensions, first)
        drawn["parallel-coordinates"] = partial(parallel_coordinates, completed, dimensions, first)
    if len(dimensions) > 1:
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
    figure, axes = new_figure(8, 4)
    axes.scatter(trials["trial"], trials[objective], 20, color=COLORS[0], label="trials")
    axes.step(trials["trial"], trials[objective].cummax(), where="post", color=COLORS[1], label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=_label(objective))
    add_legend(figure)
    save(figure, path)


def importance(parameters: pd.DataFrame, objective: str, path: Path) -> None:
    """Draw the importance of each parameter as a bar, the most important at the top."""
    figure, axes = new_figure(8, 1.2 + 0.32 * len(parameters))
    y = np.arange(len(parameters))
    bars = axes.barh(y, parameters["importance"], color=COLORS[0])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(y, [shorten(name, 40) for name in parameters["parameter"]], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel=f"importance for the {_label(objective)}")
    save(figure, path)


def slices(trials: pd.DataFrame, dimensions: Sequence[Dimension], objective: str, path: Path) -> None:
    """Draw the objective against each parameter, in a panel each. The colour shows the number of the trial."""
    figure = Figure(figsize=(1.5 + 2.6 * len(dimensions), 4), layout="constrained")
    panels = figure.subplots(1, len(dimensions), sharey=True, squeeze=False)[0]
    norm = Normalize(trials["trial"].min(), trials["trial"].max())
    for axes, dimension in zip(panels, dimensions, strict=True):
        axes.scatter(dimension.positions, trials[objective], 20, c=trials["trial"], cmap=COLOR_MAP, norm=norm)
        _label_x(axes, dimension)
    panels[0].set_ylabel(_label(objective))
    bar = figure.colorbar(ScalarMappable(norm, COLOR_MAP), ax=panels, label="trial")
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path)


def contours(trials: pd.DataFrame, dimensions: Sequence[Dimension], objective: str, path: Path) -> None:
    """Draw the objective over each pair of parameters: trials as dots, and a surface interpolated between them."""
    side = len(dimensions) - 1
    figure = Figure(figsize=(1.8 + 2.6 * side, 1 + 2.6 * side), layout="constrained")
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
        axes.text(0.5, 0.5, "no trial has both", ha="center", va="center", fontsize=8, color="0.3")
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
    figure, axes = new_figure(2 + 1.8 * len(axis_list), 5)
    order = np.argsort(trials[objective].to_numpy())  # the best trials are drawn last, above the others
    lines = [np.column_stack([np.arange(len(axis_list)), row]) for row in np.nan_to_num(positions, nan=missing)[order]]
    collection = LineCollection(lines, cmap=COLOR_MAP, alpha=0.8)
    collection.set_array(trials[objective].to_numpy()[order])
    axes.add_collection(collection)
    for x, dimension in enumerate(axis_list):
        axes.axvline(x, color="0.5", linewidth=1, zorder=0)
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
    figure, axes = new_figure(8, 4)
    axes.scatter(trials[minimized], trials[maximized], 20, color=COLORS[0], label="trials")
    line: dict[str, Any] = {
        "marker": "o",
        "markersize": 7,
        "fillstyle": "none",
        "color": COLORS[1],
        "label": "Pareto front",
    }
    axes.plot(front[minimized], front[maximized], drawstyle="steps-post", **line)
    for x, y, trial in zip(front[minimized], front[maximized], front["trial"], strict=True):
        axes.annotate(str(trial), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel=_label(minimized), ylabel=_label(maximized))
    add_legend(figure)
    save(figure, path)


def _label(objective: str) -> str:
    return LABELS.get(objective, escape_dollars(objective))


def _label_x(axes: Axes, dimension: Dimension) -> None:
    axes.set_xticks(dimension.ticks, dimension.labels, fontsize=7, rotation=45, ha="right")
    axes.set_xlabel(_wrapped(dimension.name), fontsize=8)


def _wrapped(name: str) -> str:
    return textwrap.fill(shorten(name, 40), 24)
