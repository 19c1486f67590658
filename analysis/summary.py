"""The summary of a study: the mean of each cell over its seeds, and its paired difference to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.blocks import UNEQUAL, pooled_differences, sign_flip_p
from analysis.statistics import FEWEST, holm, mcnemar, mean_interval, paired_difference
from analysis.tables import format_p, is_accuracy, metric_label

SIDES = {"lower": -1.0, "higher": 1.0}
CANT_TELL = "can't tell"
SIGNIFICANT = 0.05  # a p value, corrected for all comparisons of the table, below which there is a verdict


def summary(  # over 60 lines, because a row is filled column by column
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
    (paired t test); p_holm (corrected for all comparisons); p_sign_flip; pooled_low, pooled_high and p_dunnett (see
    `_pooled`); mcnemar (p by seed); seconds and images_per_second (means); expected (points or a side, if that is the
    difference to the baseline), source and verdict, which is that of p_holm. Unknown values are nan or None.
    `attrs["pooled"]` says whether the pooled columns hold. Raises ValueError for an unknown metric, and if a cell and
    seed occur twice.
    """
    done, names = _finished(records, metric), [cell["cell"] for cell in cells]
    scale = 100.0 if is_accuracy(metric) else 1.0
    values = done.pivot(index="seed", columns="cell", values=metric).reindex(columns=names).astype(float) * scale
    speed = done.groupby("cell")[["seconds", "images_per_second"]].mean().reindex(names)
    baseline = names[0]
    pairs = {name: values[values[[name, baseline]].notna().all(axis=1) & (name != baseline)] for name in values}
    differences = [paired_difference(pair[name], pair[baseline]) for name, pair in pairs.items()]
    others = {cell["cell"]: cell["against"] for cell in cells if cell["against"] != baseline and not cell["caveat"]}
    both = {name: values[[name, other]].dropna() for name, other in others.items()}
    against = {name: paired_difference(pair[name], pair[others[name]]) for name, pair in both.items()}
    corrected = holm([each.p for each in (*differences, *against.values())])
    p_against = dict(zip(against, corrected[len(names) :], strict=True))
    pooled, note = _pooled(values, baseline)
    rows: list[dict[str, Any]] = []
    for cell, difference, p_holm in zip(cells, differences, corrected, strict=False):
        name = cell["cell"]
        mean = mean_interval(values[name].dropna())
        tests = [
            mcnemar(correct[name, seed], correct[baseline, seed]).p
            for seed in pairs[name].index
            if {(name, seed), (baseline, seed)} <= correct.keys()
        ]
        row = {"cell": name, "n": mean.n, "mean": mean.mean, "std": values[name].std()}
        row |= {"low": mean.low, "high": mean.high}
        row |= {"pairs": difference.n, "difference": difference.mean}
        row |= {"difference_low": difference.low, "difference_high": difference.high, "p": difference.p}
        row |= {"p_holm": p_holm, "p_sign_flip": sign_flip_p(pairs[name][name] - pairs[name][baseline])}
        row |= {**pooled.loc[name], "mcnemar": ", ".join(map(format_p, tests)) or None, **speed.loc[name]}
        row |= {"expected": None, "source": cell["source"]}
        expected = cell["direction"] if cell["paper"] is None else float(cell["paper"])
        if cell["caveat"]:
            row["verdict"] = f"not comparable: {cell['caveat']}"
        elif name in against:
            found, size = against[name].mean, expected if isinstance(expected, str) else f"{expected:+.2f}"
            row["verdict"] = _verdict(found, p_against[name], expected)
            row["verdict"] += f" (against {others[name]}: {found:+.2f}, expected {size})"
        else:
            row |= {"expected": expected, "verdict": _verdict(difference.mean, p_holm, expected)}
            if row["verdict"] == CANT_TELL and (p := row["p_dunnett"]) < SIGNIFICANT:
                row["verdict"] += f" (pooled: {_verdict(difference.mean, p, expected)})"
        rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs["pooled"] = note
    return table


def _pooled(values: pd.DataFrame, baseline: str) -> tuple[pd.DataFrame, str]:
    """What the pooled error says of each cell of `values` (seeds x cells), and a sentence about whether it holds.

    It is made of the seeds that all cells have. The columns are pooled_low, pooled_high and p_dunnett, nan if the cells
    vary unequally or are too few.
    """
    columns = ["pooled_low", "pooled_high", "p_dunnett"]
    unknown = pd.DataFrame(np.nan, index=values.columns, columns=columns)
    whole = values.dropna(axis=1, how="all").dropna()
    seeds, cells = whole.shape
    if seeds < FEWEST or cells < 3 or baseline not in whole:
        return unknown, f"Not pooled: that takes {FEWEST} seeds of a baseline and two or more cells."
    found = pooled_differences(whole.to_numpy().T)
    if np.isnan(found.p_equal):
        return unknown, "Not pooled: each difference is the same in all seeds."
    if found.p_equal < UNEQUAL:
        return unknown, (
            f"Not pooled: the cells vary unequally (Bartlett's test: p = {found.p_equal:.2g}), so only paired tests "
            f"hold."
        )
    table = pd.DataFrame(dict(zip(columns, found[:3], strict=True)), index=whole.columns)
    return table.reindex(values.columns), (
        f"Pooled: one error for all cells, with {(cells - 1) * (seeds - 1)} degrees of freedom instead of {seeds - 1}. "
        f"p (Dunnett) is corrected for the number of cells. This holds only if all cells vary alike, and few seeds "
        f"can't show that they don't (Bartlett's test: p = {found.p_equal:.2g})."
    )


def _finished(records: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The records of finished runs that have the metric."""
    if metric not in records:
        raise ValueError(f"the records have no metric '{metric}': choose from {', '.join(map(str, records))}")
    duplicates = records[records.duplicated(["cell", "seed"])]
    if len(duplicates):
        name, seed = duplicates[["cell", "seed"]].iloc[0]
        raise ValueError(f"cell '{name}' with seed {seed} occurs twice: give each cell its own name")
    return records[(records["status"] == "FINISHED") & records[metric].notna()]


def _verdict(difference: float, p: float, expected: float | str | None) -> str:
    """Whether a difference is significantly on the expected side of 0, or on the other."""
    if expected is None:
        return ""
    if not p < SIGNIFICANT:  # nan, too
        return CANT_TELL
    side = SIDES[expected] if isinstance(expected, str) else np.sign(expected)
    return "agrees" if np.sign(difference) == side else "differs"


def shown(summary: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A summary as text for readers: intervals behind their means, differences with a sign, None for unknown values."""
    digits, percent, points = (".2f", " (%)", " (points)") if is_accuracy(metric) else (".4g", "", "")

    def texts(column: str, style: str) -> list[str | None]:
        values = summary[column].astype(object).where(summary[column].notna(), None)
        return [f"{value:{style}}" if isinstance(value, float) else value for value in values]

    def intervals(columns: Sequence[str], style: str) -> list[str | None]:
        rows = zip(*(texts(column, style) for column in columns), strict=True)
        return [f"{middle} ({low} to {high})" if low else middle for middle, low, high in rows]

    def ranges(low: str, high: str, style: str) -> list[str | None]:
        return [a and f"{a} to {b}" for a, b in zip(texts(low, style), texts(high, style), strict=True)]

    counts = zip(summary["n"], summary["pairs"], strict=True)
    return pd.DataFrame(
        {
            "cell": summary["cell"],
            "n": [f"{n} ({pairs} paired)" if 0 < pairs < n else f"{n}" for n, pairs in counts],
            metric_label(metric) + percent: intervals(["mean", "low", "high"], digits),
            "difference" + points: intervals(["difference", "difference_low", "difference_high"], f"+{digits}"),
            "p": texts("p", ".2g"),
            "p (Holm)": texts("p_holm", ".2g"),
            "p (sign flip)": texts("p_sign_flip", ".2g"),
            "pooled interval": ranges("pooled_low", "pooled_high", f"+{digits}"),
            "p (Dunnett)": texts("p_dunnett", ".2g"),
            "expected": texts("expected", f"+{digits}"),
            "verdict": summary["verdict"],
            "p (McNemar, by seed)": summary["mcnemar"],
            "source": summary["source"],
            "seconds": texts("seconds", ".0f"),
            "images/s": texts("images_per_second", ".0f"),
        }
    )
