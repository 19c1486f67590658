"""What MLflow's page of a study shows: its finding and table as a description, and each cell's mean as a metric."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isnan

import pandas as pd

from analysis.page import literal
from analysis.summary import shown
from analysis.tables import is_accuracy, markdown
from experiments.tracking.writing import LONGEST_TAG, Tracker

COLUMNS = 6  # of the table: the cell, n, its mean, the difference, and both p (or what follows, if they are unknown)
NOT_ALLOWED = r"[^\w.-]+"  # in the name of a metric
LONGEST_CELL = 200  # characters of its name in the name of a metric


def file_name(metric: str) -> str:
    """A metric's name without slashes."""
    return metric.replace("/", "-")


def show_results(study: Tracker, summaries: Mapping[str, pd.DataFrame], finding: str) -> None:
    """Show a study on its page in MLflow: its `finding`, and its summaries.

    The summaries are by metric, as `analysis.summary.summary` makes them.
    """
    metric, table = next(iter(summaries.items()))
    study.describe(_description(finding, shown(table, metric).iloc[:, :COLUMNS], f"{file_name(metric)}.md"))
    scale = 100 if is_accuracy(metric) else 1
    names = metric_names(list(table["cell"]), metric)
    means = dict(zip(names, table["mean"] / scale, strict=True))
    study.log({name: mean for name, mean in means.items() if not isnan(mean)})


def _description(finding: str, rows: pd.DataFrame, file: str) -> str:
    """The finding and the rows as a Markdown table, or as many of them as a description can hold."""
    for count in range(len(rows), 0, -1):
        rest = [f"{len(rows) - count} more rows are in the file {file}."] if count < len(rows) else []
        if len(text := f"{literal(finding)}\n\n{markdown(rows[:count], rest)}") <= LONGEST_TAG:
            break
    return text


def metric_names(cells: Sequence[str], metric: str) -> list[str]:
    """A metric's name for each cell, as MLflow allows it: linear_top1/no crop. All differ."""
    names: dict[str, None] = {}
    for cell in cells:
        name = f"{metric}/{re.sub(NOT_ALLOWED, ' ', cell).strip(' .')[:LONGEST_CELL] or 'cell'}"
        while name in names:
            name += "_"
        names[name] = None
    return list(names)
