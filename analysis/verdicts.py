"""Whether results agree with published ones: the sign of differences, their significance, and the order of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from math import nan
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike, NDArray

from analysis.statistics import FEWEST_SEEDS, Mean, apart_p, equivalence_p, holm, mean_interval
from analysis.summary import CANT_TELL, MARGIN, SIGNIFICANT

MOST_ORDERS = 5040  # of the rows, 7! of them, that a rank correlation is compared with
VERDICTS = ("agrees", "differs", CANT_TELL, "not comparable")
RULE = (
    f"How a verdict is reached. A comparison is a difference of rows, or a weighted sum of several, in each seed. It "
    f"agrees if it has the sign that the paper's figures have, and p < {SIGNIFICANT:g}; it differs if it has the other "
    f"sign, and p < {SIGNIFICANT:g}; otherwise the verdict is {CANT_TELL}. p is that of a paired t test over the "
    f"seeds, after Holm's correction for the comparisons of its table. Rows that should be the same agree if two "
    f"one-sided tests show that they differ by less than {MARGIN:g} point, and differ if a t test shows that it is "
    f"more. Both tests count as comparisons. Sizes are not compared, because the paper's are those of a ResNet-50 on "
    f"ImageNet. With fewer than {FEWEST_SEEDS} seeds, the verdict is always {CANT_TELL}."
)


class Comparison(NamedTuple):
    """What is to be compared: a weighted sum of rows, and what it should be."""

    weights: Mapping[str, float]  # by row
    metric: str
    expected: float | None  # its value according to the paper, if it reports one
    side: float  # the sign that it should have; 0 if it should be about 0
    caveat: str | None = None  # why it can't be compared
    says: str | None = None  # a sentence, unless it is a row minus another


class Tested(NamedTuple):
    """A comparison's result in our runs, and the verdict on it."""

    found: Mean
    p: float  # corrected
    verdict: str  # one of VERDICTS
    why: str


def apply_rule(values: Mapping[str, pd.DataFrame], comparisons: Sequence[Comparison]) -> list[Tested]:
    """The result and the verdict of each comparison of one table, by the rule in RULE.

    `values` has a table for each metric, with a row for each seed and a column for each row of the published table, in
    the units of the paper. Comparisons with a caveat take no part in the correction.
    """
    samples = [_sample(values[each.metric], each.weights) for each in comparisons]
    found = [mean_interval(sample) for sample in samples]
    open_p = [
        nan if each.caveat else equivalence_p(sample, MARGIN) if each.side == 0 else mean.p
        for each, sample, mean in zip(comparisons, samples, found, strict=True)
    ]
    other_p = [
        apart_p(sample, MARGIN) if each.side == 0 and not each.caveat else nan
        for each, sample in zip(comparisons, samples, strict=True)
    ]
    (corrected,) = holm([*open_p, *other_p])
    p_values = np.fmin(*np.split(corrected, 2))  # of both tests, the mean's side has this one
    return [
        Tested(mean, float(p), *_verdict(each, mean, float(p)))
        for each, mean, p in zip(comparisons, found, p_values, strict=True)
    ]


def _sample(values: pd.DataFrame, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """The weighted sum of some columns, in each row that has all of them."""
    known = values.reindex(columns=list(weights)).dropna().to_numpy(np.float64)
    return np.asarray(known @ np.array(list(weights.values())))


def _verdict(each: Comparison, found: Mean, p: float) -> tuple[str, str]:
    """The verdict on a comparison, and why."""
    if each.caveat:
        return "not comparable", each.caveat
    if found.n < FEWEST_SEEDS:
        return CANT_TELL, f"{found.n} {'seed' if found.n == 1 else 'seeds'}, and {FEWEST_SEEDS} are needed"
    if np.isnan(found.p):
        return CANT_TELL, "the same in all seeds, so there is no spread to test it against"
    if each.side == 0:
        if not p < SIGNIFICANT:
            return CANT_TELL, f"neither within {MARGIN:g} point nor outside of it, p = {p:.2g}"
        if abs(found.mean) < MARGIN:
            return "agrees", f"within {MARGIN:g} point, p = {p:.2g}"
        return "differs", f"more than {MARGIN:g} point apart, p = {p:.2g}"
    if not p < SIGNIFICANT:
        side = "the same direction" if np.sign(found.mean) == each.side else "the other direction"
        return CANT_TELL, f"{side}, but p = {p:.2g}"
    return ("agrees" if np.sign(found.mean) == each.side else "differs"), f"p = {p:.2g}"


class RankCorrelation(NamedTuple):
    """How well the order of rows agrees with a published one."""

    tau: Mean  # Kendall's, over seeds; its interval is about new seeds, not about other rows
    p: float  # of orders drawn at random that agree or disagree as much
    verdict: str


def rank_correlation(values: pd.DataFrame, published: Mapping[str, float]) -> RankCorrelation | None:
    """Kendall's tau of rows (columns of `values`, which has a row for each seed) with published figures, by seed.

    p is that of the mean tau if every order of the rows is equally likely. None if fewer than four rows have both.
    """
    known = values.reindex(columns=list(published)).dropna(axis=1, how="all").dropna()
    if known.shape[1] < 4 or not len(known):
        return None
    theirs = np.array([published[str(row)] for row in known])
    ours = known.to_numpy(np.float64)
    taus = [float(scipy.stats.kendalltau(theirs, row).statistic) for row in ours]
    tau = mean_interval(taus)
    tau = tau._replace(low=max(tau.low, -1.0), high=min(tau.high, 1.0)) if tau.low == tau.low else tau
    signs = np.mean([_signs(row) for row in ours], axis=0)
    scores = [float((_signs(theirs[order]) * signs).sum()) for order in _orders(len(theirs))]
    p = float(np.mean(np.abs(scores) >= abs(scores[0]) - 1e-9))
    clear = len(known) >= FEWEST_SEEDS and p < SIGNIFICANT
    return RankCorrelation(tau, p, ("agrees" if tau.mean > 0 else "differs") if clear else CANT_TELL)


def _signs(x: ArrayLike) -> NDArray[np.float64]:
    """Which of each two numbers is larger."""
    return np.sign(np.subtract.outer(x, x))


def _orders(count: int) -> list[NDArray[np.int64]]:
    """All orders of this many rows, or MOST_ORDERS of them drawn at random, the given one first."""
    if count <= 7:
        return [np.array(order) for order in permutations(range(count))]
    draw = np.random.default_rng(0)
    return [np.arange(count), *(draw.permutation(count) for _ in range(MOST_ORDERS - 1))]


def tally(verdicts: Sequence[str]) -> dict[str, int]:
    """How many there are of each of VERDICTS."""
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}
