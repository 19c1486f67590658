"""Tables of runs, and how a table is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tabulate import tabulate

from .statistics import mcnemar, same_size

MISSING = "—"
LABELS = {"knn_top1": "kNN top-1", "linear_top1": "linear top-1", "linear_top5": "linear top-5"}  # others: their name
ABSENT = object()


def comparison(runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a run: its name, the settings in which the runs differ, and its figures, accuracies in percent.

    A run is {"name", "id", "config": {setting: value}, "metrics": {metric: value, accuracies in [0, 1]}, "intervals":
    {metric: (low, high)}, "protocols": {metric: id}}. A name that occurs twice is followed by the run's id. A metric
    measured by several protocols has a column for each, so that one column never mixes them.
    """
    names = Counter(run["name"] for run in runs)
    configs = [run["config"] for run in runs]
    settings = [
        key
        for key in dict.fromkeys(key for config in configs for key in config)
        if any(config.get(key, ABSENT) != configs[0].get(key, ABSENT) for config in configs)
    ]
    figures = dict.fromkeys((metric, run["protocols"].get(metric)) for run in runs for metric in run["metrics"])
    protocols = Counter(metric for metric, _ in figures)
    order = list(protocols)
    rows = []
    for run in runs:
        row = {"run": run["name"] if names[run["name"]] == 1 else f"{run['name']} ({run['id']})"}
        row |= {key: run["config"].get(key) for key in settings}
        for metric, protocol in sorted(figures, key=lambda figure: order.index(figure[0])):
            label = LABELS.get(metric, metric) + (f" [{protocol or 'unknown'}]" if protocols[metric] > 1 else "")
            row[label] = _figure(run, metric) if run["protocols"].get(metric) == protocol else None
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def is_accuracy(metric: str) -> bool:
    """Whether a metric is a share of images, in [0, 1]."""
    return metric.endswith(("_top1", "_top5"))


def _figure(run: Mapping[str, Any], metric: str) -> str | None:
    value, interval = run["metrics"].get(metric), run["intervals"].get(metric)
    if value is None or not is_accuracy(metric):
        return None if value is None else f"{value:.4g}"
    return f"{100 * value:.2f}" + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else "")


def mcnemar_table(
    predictions: Mapping[str, Mapping[str, NDArray[np.integer]]], labels: NDArray[np.integer]
) -> pd.DataFrame:
    """McNemar's test of each pair of runs, A and B, for each metric of both: accuracies in percent, their difference.

    `predictions` holds the predicted classes of the test images (N) by run and metric, `labels` the true ones (N).
    Raises ValueError for different sizes.
    """
    rows = []
    for (first, ours), (second, theirs) in combinations(predictions.items(), 2):
        for metric in [metric for metric in ours if metric in theirs]:
            same_size(ours[metric], labels)
            same_size(theirs[metric], labels)
            right = [ours[metric] == labels, theirs[metric] == labels]
            a, b = (100 * float(correct.mean()) for correct in right)
            test = mcnemar(*right)
            counts = [test.only_first, test.only_second]
            name = LABELS.get(metric, metric)
            rows.append([name, first, second, f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}", *counts, p_value(test.p)])
    columns = ["metric", "run A", "run B", "A", "B", "B - A (points)", "only A right", "only B right", "p (McNemar)"]
    return pd.DataFrame(rows, columns=columns)


def terminal(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    return "\n".join([_table(frame, "simple"), "", *_lines("", notes)])


def markdown(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    """Notes are a list below the table."""
    return "\n".join([_table(frame, "github", {"|": "\\|", "\n": " "}), "", *_lines("- ", notes)])


def csv(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    """Notes are '# ' lines above the header; numbers have all their digits."""
    return "\n".join([*_lines("# ", notes), frame.to_csv(index=False, na_rep=MISSING)])


def latex(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    """A tabular with the rules of booktabs; notes are comments above it."""
    return "\n".join([*_lines("% ", notes), _table(frame, "latex_booktabs")])


FORMATS: dict[str, Callable[[pd.DataFrame, Sequence[str]], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": csv,
    "latex": latex,
}


def _table(frame: pd.DataFrame, style: str, escapes: Mapping[str, str] | None = None) -> str:
    escaped = str.maketrans(dict(escapes or {}))
    cells = [[cell(value).translate(escaped) for value in row] for row in [frame.columns, *frame.to_numpy(object)]]
    return str(tabulate(cells[1:], cells[0], style, disable_numparse=True))


def p_value(p: float) -> str:
    """A p value in words: what is too small for a floating-point number is not 0."""
    return f"{p:.2g}" if p > 0 else "< 1e-300"


def cell(value: object) -> str:
    """A value as a table shows it."""
    if value is None or value != value:
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _lines(prefix: str, notes: Sequence[str]) -> list[str]:
    return [prefix + line for note in notes for line in note.splitlines()]
