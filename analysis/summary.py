"""The summary of a study: the mean of each cell over its seeds, and its paired difference to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics import Mean, holm, mcnemar, mean_interval, paired_difference
from analysis.tables import format_p, is_accuracy, metric_label

SIDES = {"lower": -1.0, "higher": 1.0}


def summary(
    records: pd.DataFrame,
    cells: Sequence[Mapping[str, Any]],
    metric: str,
    correct: Mapping[tuple[str, int], NDArray[np.bool_]],
) -> pd.DataFrame:
    """One row per cell in the given order, the baseline first. Accuracies are in percent, differences in points.

    `records` has one row per cell and seed with the columns cell, seed, status, seconds, images_per_second and the
    metrics (accuracies in [0, 1]). Runs that are not FINISHED or lack the metric are left out. A cell is {"cell": name,
    "paper": the expected difference in points or None, "direction": a key of SIDES or None, "against": the name of the
    cell to which these refer, "caveat": why nothing can be expected or None, "source"}. `correct` says which test
    images were classified correctly, by cell and seed, as far as that is known.

    The columns are n, mean, std (standard deviation over seeds), low, high (Student's 95 % interval over seeds); pairs
    (the number of seeds shared with the baseline) and, over those, difference, difference_low, difference_high, p
    (paired t test); p_holm (over all cells); mcnemar (p by seed); seconds and images_per_second (means); expected
    (points or a side, if that is the difference to the baseline), source and verdict. Unknown values are nan or None.
    Raises ValueError for an unknown metric, and if a cell and seed occur twice.
    """
    done, names = _finished(records, metric), [cell["cell"] for cell in cells]
    scale = 100.0 if is_accuracy(metric) else 1.0
    values = done.pivot(index="seed", columns="cell", values=metric).reindex(columns=names).astype(float) * scale
    speed = done.groupby("cell")[["seconds", "images_per_second"]].mean().reindex(names)
    baseline = names[0]
    pairs = {name: values[values[[name, baseline]].notna().all(axis=1) & (name != baseline)] for name in values}
    differences = [paired_difference(pair[name], pair[baseline]) for name, pair in pairs.items()]
    rows: list[dict[str, Any]] = []
    for cell, difference, p_holm in zip(cells, differences, holm([each.p for each in differences]), strict=True):
        name = cell["cell"]
        mean = mean_interval(values[name].dropna())
        tests = [
            mcnemar(correct[name, seed], correct[baseline, seed]).p
            for seed in pairs[name].index
            if {(name, seed), (baseline, seed)} <= correct.keys()
        ]
        expected = cell["direction"] if cell["paper"] is None else float(cell["paper"])
        verdict = _verdict(difference, expected)
        if cell["caveat"] is not None:
            verdict = f"not comparable: {cell['caveat']}"
        elif expected is not None and cell["against"] != baseline:
            both = values[[name, cell["against"]]].dropna()
            own = paired_difference(both[name], both[cell["against"]])
            size = expected if isinstance(expected, str) else f"{expected:+.2f}"
            verdict = f"{_verdict(own, expected)} (against {cell['against']}: {own.mean:+.2f}, expected {size})"
            expected = None
        row = {"cell": name, "n": mean.n, "mean": mean.mean, "std": values[name].std()}
        row |= {"low": mean.low, "high": mean.high}
        row |= {"pairs": difference.n, "difference": difference.mean}
        row |= {"difference_low": difference.low, "difference_high": difference.high, "p": difference.p}
        row |= {"p_holm": p_holm, "mcnemar": ", ".join(map(format_p, tests)) or None, **speed.loc[name]}
        rows.append(row | {"expected": expected, "source": cell["source"], "verdict": verdict})
    return pd.DataFrame(rows)


def _finished(records: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The records of finished runs that have the metric."""
    if metric not in records:
        raise ValueError(f"the records have no metric '{metric}': choose from {', '.join(map(str, records))}")
    duplicates = records[records.duplicated(["cell", "seed"])]
    if len(duplicates):
        name, seed = duplicates[["cell", "seed"]].iloc[0]
        raise ValueError(f"cell '{name}' with seed {seed} occurs twice: give each cell its own name")
    return records[(records["status"] == "FINISHED") & records[metric].notna()]


def _verdict(difference: Mean, expected: float | str | None) -> str:
    """Whether the interval of a difference lies on the expected side of 0, on the other side, or on both."""
    if expected is None:
        return ""
    if not (difference.low > 0 or difference.high < 0):
        return "can't tell"
    side = SIDES[expected] if isinstance(expected, str) else np.sign(expected)
    return "agrees" if np.sign(difference.mean) == side else "differs"


def shown(summary: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A summary as text for readers: intervals behind their means, differences with a sign, None for unknown values."""
    digits, percent, points = (".2f", " (%)", " (points)") if is_accuracy(metric) else (".4g", "", "")

    def texts(column: str, style: str) -> list[str | None]:
        values = summary[column].astype(object).where(summary[column].notna(), None)
        return [f"{value:{style}}" if isinstance(value, float) else value for value in values]

    def intervals(columns: Sequence[str], style: str) -> list[str | None]:
        rows = zip(*(texts(column, style) for column in columns), strict=True)
        return [f"{middle} ({low} to {high})" if low else middle for middle, low, high in rows]

    counts = zip(summary["n"], summary["pairs"], strict=True)
    return pd.DataFrame(
        {
            "cell": summary["cell"],
            "n": [f"{n} ({pairs} paired)" if 0 < pairs < n else f"{n}" for n, pairs in counts],
            metric_label(metric) + percent: intervals(["mean", "low", "high"], digits),
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
