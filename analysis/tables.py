"""Tables of runs, and the formats in which tables are written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tabulate import tabulate

from analysis.latex import escape, latex_table
from analysis.statistics import check_same_shape, mcnemar
from analysis.text import NUMBER, paragraph, percent, text_table

MISSING = "—"
FORMULA = ("=", "+", "-", "@")  # what a formula of a spreadsheet starts with
# Names of runs, cells and classes are shown literally: no cell of a Markdown table holds HTML, a link or an image.
MARKDOWN = {"\n": " ", "&": "&amp;", "<": "&lt;"} | {character: f"\\{character}" for character in "\\|>[]*`"}
OTHER_SHARES = ("contrastive", "few_shot", "robustness")  # of matched views; over draws of images and corruptions
INTERVALS = {  # for names of metrics: what they are, and what their intervals are if not those of other accuracies
    r"_balanced$": ("balanced accuracies", "Korn and Graubard's, over the images"),
    r"\b(finetune|robustness)_.*_top\d$": ("means over seeds or corruptions", "Korn and Graubard's, over the images"),
    r"\bfew_shot_": ("few-shot accuracies", "Student's, over the draws of labelled images"),
    r"_map$": ("mean average precision", "Student's, over the queries"),
}
LABELS = {"knn_top1": "kNN top-1", "linear_top1": "linear top-1", "linear_top5": "linear top-5"}
LABELS |= {"knn_balanced": "kNN balanced", "linear_balanced": "linear balanced"}


def is_accuracy(metric: str) -> bool:
    """Whether a metric is the share of correct images, in [0, 1]."""
    return metric.endswith(("_top1", "_top5"))


def is_classification(metric: str) -> bool:
    """Whether a metric is the share of images whose class was predicted, once for each image."""
    return metric.endswith("_top1") and not any(name in metric for name in OTHER_SHARES)


def in_percent(metric: str) -> bool:
    """Whether tables and JSON show a metric in percent: an accuracy, a precision, the deviation of one, or a share."""
    name = metric.rpartition("/")[2]  # without the data set, the layer and the part that it was measured on
    return is_accuracy(name) or name.endswith(("_std", "_balanced", "_map")) or name.startswith("transformation_")


def as_shown(metric: str, value: float) -> float:
    """The value of a metric as tables and JSON show it."""
    return percent(value) if in_percent(metric) else value


def is_choice(metric: str) -> bool:
    """Whether a metric is a setting that an evaluation chose, such as a penalty, and not a result."""
    return metric.endswith(("_l2", "_lr"))


def is_on_validation(metric: str) -> bool:
    """Whether a metric is about validation images: its name has `val` before the last slash, as in val/linear_top1."""
    return "val" in metric.split("/")[:-1]


def metric_label(metric: str) -> str:
    """How a metric is called in tables. Those of kNN name their k. Those without an entry in LABELS stay."""
    if is_on_validation(metric):
        return f"{metric_label('/'.join(part for part in metric.split('/') if part != 'val'))} on validation"
    if k := re.fullmatch(r"knn_k(\d+)_(top1|balanced)", metric):
        return f"kNN (k = {k[1]}) {'top-1' if k[2] == 'top1' else k[2]}"
    if part := re.fullmatch(r"finetune_(.+)pct_top1", metric):
        return f"fine-tuned on {part[1]} % of labels, top-1"
    return LABELS.get(metric, metric)


def has_other_interval(metric: str) -> bool:
    """Whether the interval of a metric is one of INTERVALS, and not Clopper and Pearson's."""
    return any(re.search(pattern, metric) for pattern in INTERVALS)


def interval_kinds(metrics: Collection[str]) -> str:
    """A sentence on the intervals of some metrics, which are of several kinds; empty if there are no metrics."""
    kinds = [kind for pattern, kind in INTERVALS.items() if any(re.search(pattern, name) for name in metrics)]
    if not all(map(has_other_interval, metrics)):
        kinds.insert(0, ("accuracies", "Clopper and Pearson's, over the images"))
    if len(kinds) == 1:
        return f"The 95 % intervals are {kinds[0][1]}."
    return f"95 % intervals: {'; '.join(f'{kind} (for {what})' for what, kind in kinds)}." if kinds else ""


def comparison(runs: Sequence[Mapping[str, Any]], *, numbers: bool = False) -> pd.DataFrame:
    """One row per run: its name, the settings that differ between the runs, and its metrics, some `in_percent`.

    Settings that evaluations chose are left out, and settings of an augmentation count only where it is used.
    Metrics are texts with their interval, or with `numbers` one column for each and one for each end of its interval.

    A run is {"name", "id", "config": {setting: value}, "metrics": {metric: value, accuracies in [0, 1]}, "intervals":
    {metric: (low, high)}, "protocols": {metric: id}}. The run's id is added to a name that occurs twice. A metric that
    was measured under several protocols has one column for each, so a column never mixes protocols.
    """
    names = Counter(run["name"] for run in runs)
    settings = _differing_settings([run["config"] for run in runs])
    measured = dict.fromkeys(
        (metric, run["protocols"].get(metric)) for run in runs for metric in run["metrics"] if not is_choice(metric)
    )
    protocols = Counter(metric for metric, _ in measured)
    order = list(protocols)
    rows = []
    for run in runs:
        row = {"run": run["name"] if names[run["name"]] == 1 else f"{run['name']} ({run['id']})"}
        row |= {setting: run["config"].get(setting) for setting in settings}
        for metric, protocol in sorted(measured, key=lambda pair: order.index(pair[0])):
            label = metric_label(metric) + (f" [{protocol or 'unknown'}]" if protocols[metric] > 1 else "")
            same = run["protocols"].get(metric) == protocol
            row |= (
                _metric_numbers(run if same else None, metric, label)
                if numbers
                else {label: _metric_text(run, metric) if same else None}
            )
        rows.append(row)
    return pd.DataFrame(rows, dtype=None if numbers else object)


def _differing_settings(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that do not have the same value in all configs."""
    missing = object()
    found = []
    for setting in dict.fromkeys(setting for config in configs for setting in config):
        values = [config.get(setting, missing) for config in configs if not is_unused(setting, config)]
        if any(value != values[0] for value in values):
            found.append(setting)
    return found


def is_unused(setting: str, config: Mapping[str, Any]) -> bool:
    """Whether a setting is of an augmentation whose probability is 0."""
    probability = f"{setting.rpartition('.')[0]}.p"
    return setting != probability and str(config.get(probability)) in ("0", "0.0")


def _metric_numbers(run: Mapping[str, Any] | None, metric: str, label: str) -> dict[str, float]:
    """A metric of a run and, if it is in percent, the ends of its interval; nan if it was not measured."""
    value = run["metrics"].get(metric, nan) if run else nan
    if not in_percent(metric):
        return {label: value}
    low, high = run["intervals"].get(metric, (nan, nan)) if run else (nan, nan)
    return {label: percent(value), f"{label} low": percent(low), f"{label} high": percent(high)}


def _metric_text(run: Mapping[str, Any], metric: str) -> str | None:
    """A metric of a run as text, `in_percent` with its interval, or None if it was not measured."""
    value, interval = run["metrics"].get(metric), run["intervals"].get(metric)
    if value is None:
        return None
    if not in_percent(metric):
        return f"{value:.4g}"
    return f"{100 * value:.2f}" + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else "")


def mcnemar_table(
    predictions: Mapping[str, Mapping[str, NDArray[np.integer]]], labels: NDArray[np.integer]
) -> pd.DataFrame:
    """McNemar's test of each pair of runs, A and B, on each metric that both have. Accuracies are in percent.

    `predictions` holds the predicted classes of the test images (N) by run and metric, `labels` the true classes (N).
    Raises ValueError if their sizes differ.
    """
    rows = []
    for (run_a, predicted_a), (run_b, predicted_b) in combinations(predictions.items(), 2):
        for metric in [metric for metric in predicted_a if metric in predicted_b]:
            check_same_shape(predicted_a[metric], labels)
            check_same_shape(predicted_b[metric], labels)
            correct = [predicted_a[metric] == labels, predicted_b[metric] == labels]
            a, b = (100 * float(images.mean()) for images in correct)
            test = mcnemar(*correct)
            counts = [test.only_first, test.only_second]
            accuracies = [f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}"]
            rows.append([metric_label(metric), run_a, run_b, *accuracies, *counts, format_p(test.p)])
    columns = ["metric", "run A", "run B", "A", "B", "B - A (points)", "only A right", "only B right", "p (McNemar)"]
    return pd.DataFrame(rows, columns=columns)


def terminal(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    """Plain text that fits the terminal, with the notes below the table."""
    header, *rows = _texts(frame)
    return "\n".join([text_table(header, rows), "", *map(paragraph, _note_lines("", notes))])


def markdown(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    """A Markdown table with the notes as a list below it."""
    return "\n".join([_tabulate(frame, "github", MARKDOWN), "", *_note_lines("- ", notes)])


def markdown_rows(frame: pd.DataFrame) -> str:
    """A Markdown table whose texts keep their lines."""
    return _tabulate(frame, "github", MARKDOWN | {"\n": "<br>", "_": "\\_"})


def csv(frame: pd.DataFrame, _notes: Sequence[str] = ()) -> str:
    """CSV that other programs can load: it has no notes, numbers have up to twelve digits, missing values are empty."""
    return str(_without_formulas(frame).to_csv(index=False, float_format="%.12g")).rstrip("\n")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write the same to a file."""
    path.write_text(csv(frame) + "\n", encoding="utf-8", newline="")


def _without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an apostrophe before each text, in the header too, that spreadsheets would take for a formula."""
    texts = frame.select_dtypes(exclude="number")
    safe = {  # as objects, so that whole numbers stay whole where others are missing
        str(name): pd.Series([_without_formula(value) for value in texts[name]], texts.index, object) for name in texts
    }
    return frame.assign(**safe).rename(columns=_without_formula)


def _without_formula(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value  # a signed number


def latex(frame: pd.DataFrame, notes: Sequence[str], label: str = "") -> str:
    """A LaTeX table for booktabs, with the notes as its caption. Its label is the name of its first column by default.

    Columns of numbers are aligned on the right.
    """
    texts = _texts(frame)
    header, *rows = [[escape(text) for text in row] for row in texts]
    columns = "".join(
        "r" if all(NUMBER.fullmatch(text) or text == MISSING for text in column[1:]) else "l"
        for column in zip(*texts, strict=True)
    )
    lines = [" & ".join(header) + r" \\", r"\midrule", *(" & ".join(row) + r" \\" for row in rows)]
    return latex_table(columns, lines, escape(" ".join(notes)), label or str(frame.columns[0]))


FORMATS: dict[str, Callable[[pd.DataFrame, Sequence[str]], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": csv,
    "latex": latex,
}


def format_p(p: float) -> str:
    """A p value as text. One that is too small for a floating-point number is not shown as 0."""
    return f"{p:.2g}" if p > 0 else "< 1e-300"


def signed(value: float, style: str) -> str:
    """A difference with its sign. One that is rounded to 0 has none."""
    text = f"{value:+{style}}"
    return text if float(text) else text[1:]


def with_interval(
    value: float, low: float, high: float, style: str, show: Callable[[float, str], str] = format
) -> str | None:
    """A value as text, with its interval on a second line if it has one; None if it is unknown."""
    if value != value:
        return None
    return show(value, style) + (f"\n{show(low, style)}\u00a0to {show(high, style)}" if low == low else "")


def format_value(value: object) -> str:
    """A value as a table shows it. None and nan are shown as —."""
    if value is None or value != value:
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _tabulate(frame: pd.DataFrame, style: str, escapes: Mapping[str, str] | None = None) -> str:
    """A frame in one of tabulate's styles, with some characters escaped."""
    table = str.maketrans(dict(escapes or {}))
    header, *rows = [[text.translate(table) for text in row] for row in _texts(frame)]
    return str(tabulate(rows, header, style, disable_numparse=True))


def _texts(frame: pd.DataFrame) -> list[list[str]]:
    """The header and the rows of a frame as texts."""
    return [[format_value(value) for value in row] for row in [frame.columns, *frame.to_numpy(object)]]


def _note_lines(prefix: str, notes: Sequence[str]) -> list[str]:
    return [prefix + line for note in notes for line in note.splitlines()]
