"""The summary of a study: the mean of each cell over its seeds, and its paired difference to the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.blocks import UNEQUAL, pooled_differences, sign_flip_p
from analysis.statistics import FEWEST_SEEDS, equivalence_p, holm, mcnemar, mean_interval, paired_difference
from analysis.tables import format_p, is_accuracy, metric_label

SIDES = {"lower": -1.0, "higher": 1.0}
CANT_TELL = "can't tell"
SAME = "the same"  # how a finding begins that says so
SIGNIFICANT = 0.05  # a p value, corrected for all comparisons of the table, below which there is a verdict
MARGIN = 1.0  # points; a smaller difference is called the same, unless a study says otherwise


def summary(  # over 60 lines, because a row is filled column by column
    records: pd.DataFrame,
    cells: Sequence[Mapping[str, Any]],
    metric: str,
    correct: Mapping[tuple[str, int], NDArray[np.bool_]],
    margin: float = MARGIN,
    first: Sequence[int] = (),
) -> pd.DataFrame:
    """One row per cell in the given order, the baseline first. Accuracies are in percent, differences in points.

    `records` has one row per cell and seed with the columns cell, seed, status, seconds, images_per_second and the
    metrics (accuracies in [0, 1]). Runs that are not FINISHED or lack the metric are left out. A cell is {"cell": name,
    "paper": the expected difference in points or None, "direction": a key of SIDES or None, "against": the name of the
    cell to which these refer, "caveat": why nothing can be expected or None, "source"}. `correct` says which test
    images were classified correctly, by cell and seed, as far as that is known. Accuracies that differ by less than
    `margin` points are called the same. `first` are the lowest seeds, if their spread decided how many follow (see
    `mean_interval`); empty, if the number of seeds was fixed.

    The columns are n, mean, std (standard deviation over seeds), low, high (Student's 95 % interval over seeds); pairs
    (the number of seeds shared with the baseline) and, over those, difference, difference_low, difference_high, p
    (paired t test); p_holm and p_same (that p, and the one of a difference of the margin or more, corrected together
    for all comparisons); p_sign_flip (if the number of seeds was fixed, and is at least six); p_dunnett (see
    `_pooled`); mcnemar ({seed: p}); seconds and images_per_second (means); finding (what p_holm and p_same say);
    expected (points or a side, if that is the difference to the baseline), source and verdict, which is that of p_holm
    and p_same on what was expected; against, against_difference and against_expected, if that is the difference to
    another cell. Unknown values are nan or None. `attrs["pooled"]` says whether p_dunnett holds,
    `attrs["comparisons"]` how many p_holm is corrected for, and `attrs["others"]` how many of these are not with the
    baseline. Raises ValueError for an unknown metric, and if a cell and seed occur twice.
    """
    done, names = _finished(records, metric), [cell["cell"] for cell in cells]
    scale = 100.0 if is_accuracy(metric) else 1.0
    values = done.pivot(index="seed", columns="cell", values=metric).reindex(columns=names).astype(float) * scale
    speed = done.groupby("cell")[["seconds", "images_per_second"]].mean().reindex(names)
    baseline = names[0]
    pairs = {name: values[values[[name, baseline]].notna().all(axis=1) & (name != baseline)] for name in values}
    others = {cell["cell"]: cell["against"] for cell in cells if cell["against"] != baseline and not cell["caveat"]}
    both = [(pair, name, baseline) for name, pair in pairs.items()]
    both += [(values[[name, other]].dropna(), name, other) for name, other in others.items()]

    def stage(pair: pd.DataFrame) -> int | None:
        return int(pair.index.isin(first).sum()) if first else None

    differences = [paired_difference(pair[a], pair[b], first=stage(pair)) for pair, a, b in both]
    margin = margin if is_accuracy(metric) else np.nan
    same_p = [equivalence_p(pair[a] - pair[b], margin, stage(pair)) for pair, a, b in both]
    corrected, same = holm([each.p for each in differences], same_p)
    against = dict(zip(others, list(zip(differences, corrected, same, strict=True))[len(names) :], strict=True))
    pooled, note = _pooled(values, baseline, stage)
    rows: list[dict[str, Any]] = []
    for cell, difference, p_holm, p_same in zip(cells, differences, corrected, same, strict=False):
        name, own = cell["cell"], values[[cell["cell"]]].dropna()
        mean = mean_interval(own[name], first=stage(own))
        tests = {
            seed: mcnemar(correct[name, seed], correct[baseline, seed]).p
            for seed in pairs[name].index
            if {(name, seed), (baseline, seed)} <= correct.keys()
        }
        row = {"cell": name, "n": mean.n, "mean": mean.mean, "std": values[name].std()}
        row |= {"low": mean.low, "high": mean.high}
        row |= {"pairs": difference.n, "difference": difference.mean}
        row |= {"difference_low": difference.low, "difference_high": difference.high, "p": difference.p}
        row |= {"p_holm": p_holm, "p_same": p_same}
        # The lowest p that flipped signs can give is 2 / 2^n.
        tells = not first and 2.0 ** (1 - difference.n) < SIGNIFICANT
        signs = sign_flip_p(pairs[name][name] - pairs[name][baseline]) if tells else np.nan
        row |= {"p_sign_flip": signs, "p_dunnett": pooled[name]}
        row |= {"mcnemar": tests or None, **speed.loc[name]}
        row |= {"finding": _finding(difference.mean, p_holm, p_same, margin)}
        row |= {"expected": None, "source": cell["source"]}
        row |= {"against": None, "against_difference": np.nan, "against_expected": None}
        expected = cell["direction"] if cell["paper"] is None else float(cell["paper"])
        if cell["caveat"]:
            row["verdict"] = f"not comparable: {cell['caveat']}"
        elif name in against:
            other, p, p_other = against[name]
            row |= {"against": others[name], "against_difference": other.mean, "against_expected": expected}
            size = expected if isinstance(expected, str) else f"{expected:+.2f}"
            row["verdict"] = _verdict(other.mean, p, _finding(other.mean, p, p_other, margin), expected)
            row["verdict"] += f" (against {others[name]}: {other.mean:+.2f}, expected {size})"
        else:
            row |= {"expected": expected, "verdict": _verdict(difference.mean, p_holm, row["finding"], expected)}
        rows.append(row)
    table = pd.DataFrame(rows)
    tested = [not np.isnan(each.p) for each in differences]
    table.attrs |= {"pooled": note, "comparisons": sum(tested), "others": sum(tested[len(names) :])}
    return table


def _pooled(
    values: pd.DataFrame, baseline: str, stage: Callable[[pd.DataFrame], int | None]
) -> tuple[pd.Series[float], str]:
    """Dunnett's p of each cell of `values` (seeds x cells), and a sentence about whether its error holds.

    It is made of the seeds that all cells have, and nan if the cells vary unequally or are too few.
    """
    unknown = pd.Series(np.nan, index=values.columns)
    whole = values.dropna(axis=1, how="all").dropna()
    first = stage(whole)
    cells, seeds = whole.shape[1], len(whole) if first is None else first
    if seeds < FEWEST_SEEDS or cells < 3 or baseline not in whole:
        return unknown, f"Not pooled: that takes {FEWEST_SEEDS} seeds of a baseline and two or more cells."
    found = pooled_differences(whole.to_numpy().T, first)
    if np.isnan(found.p_equal):
        return unknown, "Not pooled: each difference is the same in all seeds."
    if not found.holds():
        why = f"Bartlett's test: p = {found.p_equal:.2g}"
        if found.p_equal >= UNEQUAL:
            why = f"differences from the baseline have {found.excess:.2g} times the variance that a common error gives"
        return unknown, f"Not pooled: the variances of the cells may differ ({why}), so rely on the paired tests."
    return pd.Series(found.p_dunnett(), index=whole.columns).reindex(values.columns), (
        f"p (Dunnett) is pooled: it has one error for all cells, with {found.freedom} degrees of freedom "
        f"instead of {seeds - 1}, and is corrected for the number of cells. This holds only if all cells have the same "
        f"variance, and few seeds can't show that they don't (Bartlett's test: p = {found.p_equal:.2g})."
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


def _finding(difference: float, p: float, p_same: float, margin: float) -> str:
    """What the tests say of a difference: its side of 0, that it is smaller than the margin, or neither."""
    if np.isnan(difference):
        return ""
    size = f"{margin:g} point{'' if margin == 1 else 's'}"
    if p < SIGNIFICANT:
        return ("lower" if difference < 0 else "higher") + (f", by less than {size}" if p_same < SIGNIFICANT else "")
    return f"{SAME} within {size}" if p_same < SIGNIFICANT else CANT_TELL


def _verdict(difference: float, p: float, finding: str, expected: float | str | None) -> str:
    """Whether a difference is significantly on the expected side of 0, or on the other; else its finding."""
    if expected is None:
        return ""
    side = SIDES[expected] if isinstance(expected, str) else np.sign(expected)
    agreement = "agrees" if np.sign(difference) == side else "differs"
    return agreement if p < SIGNIFICANT else finding or CANT_TELL


def shown(summary: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A summary as text for readers: intervals behind their means, differences with a sign, None for unknown values.

    It has no column that would be empty.
    """
    digits, percent, points = (".2f", " (%)", " (points)") if is_accuracy(metric) else (".4g", "", "")

    def texts(column: str, style: str) -> list[str | None]:
        values = summary[column].astype(object).where(summary[column].notna(), None)
        return [f"{value:{style}}" if isinstance(value, float) else value for value in values]

    def intervals(columns: Sequence[str], style: str) -> list[str | None]:
        rows = zip(*(texts(column, style) for column in columns), strict=True)
        return [f"{middle} ({low} to {high})" if low else middle for middle, low, high in rows]

    counts = zip(summary["n"], summary["pairs"], strict=True)
    table = pd.DataFrame(
        {
            "cell": summary["cell"],
            "n": [f"{n} ({pairs} paired)" if 0 < pairs < n else f"{n}" for n, pairs in counts],
            metric_label(metric) + percent: intervals(["mean", "low", "high"], digits),
            "difference" + points: intervals(["difference", "difference_low", "difference_high"], f"+{digits}"),
            "p": texts("p", ".2g"),
            "p (Holm)": texts("p_holm", ".2g"),
            "p (same)": texts("p_same", ".2g"),
            "p (sign flip)": texts("p_sign_flip", ".2g"),
            "p (Dunnett)": texts("p_dunnett", ".2g"),
            "finding": summary["finding"],
            "expected": texts("expected", f"+{digits}"),
            "verdict": summary["verdict"],
            "p (McNemar, by seed)": [
                ", ".join(map(format_p, tests.values())) if tests else None for tests in summary["mcnemar"]
            ],
            "source": summary["source"],
            "seconds": texts("seconds", ".0f"),
            "images/s": texts("images_per_second", ".0f"),
        }
    )
    return table.drop(columns=[name for name in table if not any(table[name])])
