"""Figures of a hyperparameter search, drawn from a table of its trials and a table of its parameters.

The table of trials has one row per trial: its number (trial), its objectives (nan or None unless it was completed) and
its parameters. The first objective is maximized and the second, if there is one, minimized. The table of parameters has
one row per parameter, the most important first: parameter (its column in the table of trials), importance (from 0 to
1), log (whether its range is logarithmic) and choices (a list, or None for a range).
"""

from __future__ import annotations

import math
import re
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
from matplotlib.colors import ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from analysis.statistics import accuracy_interval
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
    "history": "Accuracy of each trial, and the best so far.",
    "importance": "How much each parameter matters for the accuracy.",
    "slice": "Accuracy against the most important parameters. Later trials are lighter.",
    "parallel-coordinates": "Each line is a trial: the stronger its colour, the higher its accuracy.",
    "contour": "Accuracy over each two of the most important parameters. Dots are trials.",
    "pareto-front": "Accuracy against training time. No trial is better than those on the line in both.",
}
FEWEST_TRIALS = 10  # completed trials from which on figures say which parameters are important
SHOWN_PARAMETERS = 4  # the most important ones have a panel or an axis each, or a panel for each pair
# Its ends would disappear, one on white and the other in dark mode.
COLOR_MAP = ListedColormap(colormaps["viridis"](np.linspace(0.25, 0.95, 256)))
EDGE: dict[str, Any] = {"edgecolor": FAINT, "linewidth": 0.6}
NARROW = 18  # characters of a name beside or below one of several panels
WEAKEST = 0.4  # opacity of the line of the worst trial, which can still be seen in dark mode
ABSENT = -0.3  # where lines pass a parameter that their trial doesn't have, on an axis from 0 to 1
TICK: dict[str, Any] = {"fontsize": 8, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8}, "zorder": 3}


class Picture(NamedTuple):
    """A figure with its caption, and the function that draws it to a file."""

    caption: str
    draw: Callable[[Path], None]


def pictures(
    trials: pd.DataFrame,
    parameters: pd.DataFrame,
    objectives: Sequence[str],
    *,
    start: float = math.nan,
    images: int | None = None,
    varied: int | None = None,
) -> dict[str, Picture]:
    """The figures that the completed trials allow, by name.

    There are none for fewer than two completed trials, those that are about the most important parameters need
    FEWEST_TRIALS, a contour needs two parameters, and a Pareto front two objectives. `start` is the first objective of
    the config that the search started from (nan: unknown), `images` the number of images that accuracies are about, and
    `varied` the number of settings that the trials vary.
    """
    completed = trials.dropna(subset=list(objectives)).sort_values("trial")
    if len(completed) < 2:
        return {}
    completed = completed.astype({"trial": int} | dict.fromkeys(objectives, float))
    completed = completed.assign(**{name: completed[name] * SCALES.get(name, 1.0) for name in objectives})
    first, enough = objectives[0], len(completed) >= FEWEST_TRIALS
    dimensions = [_dimension(completed, row) for _, row in parameters.head(SHOWN_PARAMETERS).iterrows()]
    drawn: dict[str, Callable[[Path], None]] = {
        "history": partial(history, completed, first, start * SCALES.get(first, 1.0))
    }
    if dimensions:
        drawn["parallel-coordinates"] = partial(parallel_coordinates, completed, dimensions, first)
    if dimensions and enough:
        drawn["importance"] = partial(importance, parameters)
        drawn["slice"] = partial(slices, completed, dimensions, first)
    if len(dimensions) > 1 and enough:
        drawn["contour"] = partial(contours, completed, dimensions, first)
    if len(objectives) > 1:
        drawn["pareto-front"] = partial(pareto_front, completed, first, objectives[1])
    more = {
        "history": _by_chance(completed[first].max() / SCALES.get(first, 1.0), images) if first in SCALES else "",
        "parallel-coordinates": _what_is_shown(completed, dimensions, first, varied or len(parameters), enough=enough),
    }
    return {name: Picture(f"{CAPTIONS[name]} {more.get(name, '')}".strip(), draw) for name, draw in drawn.items()}


def _by_chance(accuracy: float, images: int | None) -> str:
    """How much an accuracy on some images varies by chance."""
    if images is None:
        return ""
    low, high = accuracy_interval(accuracy * images, images)
    return (
        f"On {images:,} validation images, a single accuracy varies by about ±{50 * (high - low):.1f} points by chance "
        f"(95 %, binomial), so smaller differences say little."
    )


def _what_is_shown(
    trials: pd.DataFrame, dimensions: Sequence[Dimension], objective: str, varied: int, *, enough: bool
) -> str:
    """Which line is the best trial, and which of the settings that vary have an axis."""
    best = f"The thick one is trial {trials['trial'].iloc[trials[objective].to_numpy().argmax()]}, the best."
    settings = {each.name.partition(" (")[0] for each in dimensions}  # one can have several axes, with conditions
    if len(settings) >= varied:
        return best
    return f"{best} Shown are {len(settings)} of {varied} settings that vary{', the most important' * enough}."


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


def _in_short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _value(objective: str, value: float) -> str:
    """A value of an objective, with as many digits as in the table of trials."""
    return f"{value:.1f}" if objective in SCALES else _in_short(value)


def _range_dimension(
    name: str, values: pd.Series[Any], log: bool = False, show: Callable[[float], str] = _in_short
) -> Dimension:
    """Numbers scaled to [0, 1], on a logarithmic scale if `log`, with texts by `show`."""
    numbers = pd.to_numeric(values).to_numpy(float)
    scaled = np.log(numbers) if log else numbers
    low, high = float(np.nanmin(scaled)), float(np.nanmax(scaled))
    ticks = [0.0, 0.5, 1.0] if low < high else [0.5]
    middle = np.linspace(low, high, 3) if low < high else np.array([low])
    labels = [show(value) for value in (np.exp(middle) if log else middle)]
    positions = (scaled - low) / (high - low) if low < high else np.where(np.isnan(scaled), math.nan, 0.5)
    return Dimension(name, positions, ticks, labels)


def history(trials: pd.DataFrame, objective: str, start: float, path: Path) -> None:
    """Draw the objective of each trial, the best so far, and that of the start as a line, unless it is nan."""
    figure, axes = new_figure(WIDTH, 3.3)
    best = trials[objective].cummax()
    axes.scatter(trials["trial"], trials[objective], 24, color=COLORS[0])
    look: dict[str, Any] = {"color": COLORS[1]}
    axes.step(trials["trial"], best, where="post", **look)
    ends = [(trials["trial"].iloc[-1], best.iloc[-1], f"best so far\n{_value(objective, best.iloc[-1])}", look)]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=_label(objective))
    axes.margins(x=0.03, y=0.1)
    if not math.isnan(start):
        look = {"color": MUTED, "linestyle": "--", "linewidth": 1}
        axes.axhline(start, **look)
        ends.append((axes.get_xlim()[1], start, f"your config\n{_value(objective, start)}", look))
    label_ends(axes, ends)
    save(figure, path)


def importance(parameters: pd.DataFrame, path: Path) -> None:
    """Draw the importance of each parameter as a bar, the most important at the top."""
    figure, axes = new_figure(WIDTH, 1 + 0.27 * len(parameters))
    axes.grid(visible=False)
    y = np.arange(len(parameters))
    bars = axes.barh(y, parameters["importance"], height=0.65, color=COLORS[0])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set_yticks(y, [shorten(name, 36) for name in parameters["parameter"]])
    axes.tick_params("y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="importance")
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
    figure = Figure(figsize=(WIDTH, 1.4 + 1.2 * side), layout="constrained")
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
            _label_x(axes, x, NARROW)
        if column == 0:
            axes.set_yticks(y.ticks, y.labels, fontsize=8)
            axes.set_ylabel(_wrapped(y.name, NARROW), fontsize=8)
    panels = list(grid[np.tril_indices(side)])
    figure.colorbar(ScalarMappable(norm, COLOR_MAP), ax=panels, label=_label(objective), location="top", aspect=40)
    save(figure, path)


def _draw_surface(axes: Axes, points: NDArray[np.float64], values: NDArray[np.float64], norm: Normalize) -> None:
    """Draw values (N) at points (N x 2, nan if unknown), over a smooth surface through them."""
    known = ~np.isnan(points).any(axis=1)
    if not known.any():
        axes.text(0.5, 0.5, "no trial\nhas both", ha="center", va="center", fontsize=8, color=MUTED)
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
    """Draw each trial as a line from its objective, at the top, down through its parameters.

    A line passes a parameter that its trial doesn't have on the left.
    """
    show = partial(_value, objective)
    rows = [_range_dimension(_label(objective), trials[objective], show=show), *dimensions]
    positions = np.nan_to_num(np.column_stack([row.positions for row in rows]), nan=ABSENT)
    figure, axes = new_figure(WIDTH, 0.4 + 0.72 * len(rows))
    axes.grid(visible=False)
    order = np.argsort(positions[:, 0], kind="stable")  # the best trials are drawn last, above the others
    best = int(trials[objective].to_numpy().argmax())
    y = np.arange(len(rows))
    lines = [np.column_stack([positions[index], y]) for index in order if index != best]
    colors = [to_rgba(COLORS[0], WEAKEST + (0.9 - WEAKEST) * positions[index, 0]) for index in order if index != best]
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=1.2))
    axes.plot(positions[best], y, color=COLORS[1], linewidth=2.8)
    for place, row in enumerate(rows):
        axes.plot([0, 1], [place, place], color=FAINT, linewidth=1, zorder=0)
        ticks = list(zip(row.ticks, row.labels, strict=True))
        if np.isnan(row.positions).any():
            ticks.append((ABSENT, "none"))
        for x, label in ticks:
            axes.annotate(label, (x, place), (0, -4), textcoords="offset points", ha="center", va="top", **TICK)
    left = ABSENT if (positions == ABSENT).any() else 0
    axes.set(xlim=(left - 0.12, 1.12), ylim=(len(rows) - 0.5, -0.15), xticks=[])
    axes.set_yticks(y, [_wrapped(row.name) for row in rows])
    axes.tick_params("y", length=0)
    axes.spines[:].set_visible(False)
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
    label_ends(axes, [(front[minimized].iloc[-1], front[maximized].iloc[-1], "Pareto\nfront", line)])
    save(figure, path)


def _label(objective: str) -> str:
    return LABELS.get(objective, escape_dollars(objective))


def _label_x(axes: Axes, dimension: Dimension, width: int = 22) -> None:
    axes.set_xticks(dimension.ticks, dimension.labels, fontsize=8, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlabel(_wrapped(dimension.name, width), fontsize=8)


def _wrapped(name: str, width: int = 22) -> str:
    """A name in lines of about this many characters. They end at a space or, in longer words, after a dot."""
    words = [re.split(r"(?<=\.)", word) if len(word) > width else [word] for word in shorten(name, 44).split(" ")]
    lines = [""]
    for word in words:
        for place, part in enumerate(word):
            joined = lines[-1] + (" " if lines[-1] and not place else "") + part
            lines[-1:] = [joined] if not lines[-1] or len(joined) <= width else [lines[-1], part]
    return "\n".join(lines)
