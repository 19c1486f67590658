"""What a study says: the figure of each cell over its seeds, and its paired difference to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics import Mean, holm, mcnemar, mean_interval, paired_difference
from analysis.tables import LABELS, is_accuracy, p_value

SIDES = {"lower": -1.0, "higher": 1.0}


def summary(
    records: pd.DataFrame,
    cells: Sequence[Mapping[str, Any]],
    metric: str,
    correct: Mapping[tuple[str, int], NDArray[np.bool_]],
) -> pd.DataFrame:
    """One row a cell, in their order, the baseline first; accuracies in percent, their differences in points.

    `records` has one row a cell and seed: cell, seed, status, seconds, images_per_second and the metrics (accuracies in
    [0, 1]). What is not FINISHED or has no figure (nan) does not count. A cell is {"cell": name, "paper": the expected
    difference in points or None, "direction": a key of SIDES or None, "source"}. `correct` says which test images were
    right, by cell and seed, where that is known.

    Columns: n, mean, low, high (Student's 95 % interval over seeds); pairs (seeds that the baseline has too) and over
    them difference, difference_low, difference_high, p of the paired t test; p_holm (over all cells); mcnemar (p by
    seed); seconds and images_per_second (means); expected (points, or a side), source and the verdict on it. nan or
    None: not known. Raises ValueError for an unknown metric, and for a cell and seed that occur twice.
    """
    if metric not in records:
        known = ", ".join(map(str, records))
        raise ValueError(f"no figure '{metric}' in the records: they have {known}, so name one of those")
    if (double := records[records.duplicated(["cell", "seed"])]).size:
        name, seed = double[["cell", "seed"]].iloc[0]
        raise ValueError(f"cell '{name}' with seed {seed} occurs twice: expected once, so give each cell its own name")
    done = records[(records["status"] == "FINISHED") & records[metric].notna()]
    names = [cell["cell"] for cell in cells]
    scale = 100.0 if is_accuracy(metric) else 1.0
    values = done.pivot(index="seed", columns="cell", values=metric).reindex(columns=names).astype(float) * scale
    speed = done.groupby("cell")[["seconds", "images_per_second"]].mean().reindex(names)
    baseline = names[0]
    pairs = {name: values[values[[name, baseline]].notna().all(axis=1) & (name != baseline)] for name in names}
    differences = [paired_difference(pair[name], pair[baseline]) for name, pair in pairs.items()]
    rows = []
    for cell, difference, p_holm in zip(cells, differences, holm([each.p for each in differences]), strict=True):
        name = cell["cell"]
        figure = mean_interval(values[name].dropna())
        tests = [
            mcnemar(correct[name, seed], correct[baseline, seed]).p
            for seed in pairs[name].index
            if {(name, seed), (baseline, seed)} <= correct.keys()
        ]
        expected = cell["direction"] if cell["paper"] is None else float(cell["paper"])
        row = {"cell": name, "n": figure.n, "mean": figure.mean, "low": figure.low, "high": figure.high}
        row |= {"pairs": difference.n, "difference": difference.mean}
        row |= {"difference_low": difference.low, "difference_high": difference.high, "p": difference.p}
        row |= {"p_holm": p_holm, "mcnemar": ", ".join(map(p_value, tests)) or None, **speed.loc[name]}
        rows.append(row | {"expected": expected, "source": cell["source"], "verdict": _verdict(difference, expected)})
    return pd.DataFrame(rows)


def _verdict(difference: Mean, expected: float | str | None) -> str:
    """Whether the interval of a difference lies on the expected side of 0, on the other, or on both."""
    if expected is None:
        return ""
    if not (difference.low > 0 or difference.high < 0):
        return "can't tell"
    side = SIDES[expected] if isinstance(expected, str) else np.sign(expected)
    return "agrees" if np.sign(difference.mean) == side else "differs"


def shown(summary: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A summary for people, as text: intervals beside their figures, differences with their sign, None: not known."""
    digits, percent, points = (".2f", " (%)", " (points)") if is_accuracy(metric) else (".4g", "", "")

    def texts(column: str, style: str) -> list[str | None]:
        known = summary[column].astype(object).where(summary[column].notna(), None)
        return [f"{value:{style}}" if isinstance(value, float) else value for value in known]

    def intervals(columns: Sequence[str], style: str) -> list[str | None]:
        rows = zip(*(texts(column, style) for column in columns), strict=True)
        return [f"{middle} ({low} to {high})" if low else middle for middle, low, high in rows]

    return pd.DataFrame(
        {
            "cell": summary["cell"],
            "n": [
                f"{n} ({k} paired)" if 0 < k < n else f"{n}"
                for n, k in zip(summary["n"], summary["pairs"], strict=True)
            ],
            LABELS.get(metric, metric) + percent: intervals(["mean", "low", "high"], digits),
            "difference" + points: intervals(["difference", "difference_low", "difference_high"], f"+{digits}"),
            "p": texts("p", ".2g"),
            "p (Holm)": texts("p_holm", ".2g"),
            "expected": texts("expected", f"+{digits}"),
            "verdict": summary["verdict"],
            "p (McNemar, by seed)": summary["mcnemar"],
            "source": summary["source"],
            "seconds": texts("seconds", ".0f"),
            "images/s": texts("images_per_second", ".0f"),
        }
    )
