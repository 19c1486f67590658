"""How sure a figure is: intervals, tests of a difference, and a correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def same_size(first: NDArray[Any], second: NDArray[Any]) -> None:
    """Raises ValueError unless both have one shape, as figures of the same images or seeds do."""
    if first.shape != second.shape:
        raise ValueError(
            f"got {first.size} and {second.size} values: expected one for one, "
            f"so compare figures of the same test images or the same seeds"
        )


def accuracy_interval(correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval, in [0, 1], of an accuracy of `correct` out of `n` test images.

    A mean of n outcomes, each 0 or 1, drawn with replacement is exactly Binomial(n, correct / n) / n, so its quantiles
    stand here without resampling noise. With none or all correct the interval is a point, as every resample agrees.
    Raises ValueError where `correct` is not in [0, n] or there are no images.
    """
    if not 0 <= correct <= n or not n:
        raise ValueError(
            f"{correct} of {n} images correct: expected at least one image, and between none and all right"
        )
    low, high = (float(stats.binom.ppf((1 + side * level) / 2, n, correct / n)) / n for side in (-1, 1))
    return low, high


def share_interval(shares: NDArray[np.floating], level: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """The percentile bootstrap interval, in [0, 1], of a mean over test images of `shares` (N, each in [0, 1]).

    As `accuracy_interval`, for images that some classifiers of several get right. Images of one share are alike, so a
    resample is a draw of how many there are of each; the draws are always the same.
    """
    values, counts = np.unique(shares, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(shares.size, counts / shares.size, resamples)
    low, high = np.quantile(drawn @ values / shares.size, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class McNemar(NamedTuple):
    """Images that only the first or only the second classifier got right, and the p value of no difference."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first_correct: NDArray[np.bool_], second_correct: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact two-sided test of two classifiers on the same images (N booleans each: right or not).

    Without a difference each image on which they disagree is a fair coin; p is 1 where there is none. Raises ValueError
    for different sizes.
    """
    same_size(first_correct, second_correct)
    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    discordant = only_first + only_second
    p = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return McNemar(only_first, only_second, float(p))


class Mean(NamedTuple):
    """A mean over n runs, its interval, and the p value of its being 0."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def mean_interval(values: ArrayLike, level: float = 0.95) -> Mean:
    """Student's t interval and test of the mean of some values, one a seed.

    Fewer than two values, or values that are all the same, say nothing of the spread: interval and p are nan.
    """
    x = np.asarray(values, np.float64)
    mean = float(x.mean()) if x.size else math.nan
    if x.size < 2 or np.ptp(x) < 1e-12:
        return Mean(mean, math.nan, math.nan, math.nan, x.size)
    test = stats.ttest_1samp(x, 0.0)
    low, high = test.confidence_interval(level)
    return Mean(mean, float(low), float(high), float(test.pvalue), x.size)


def paired_difference(values: ArrayLike, baseline: ArrayLike, level: float = 0.95) -> Mean:
    """The mean of values - baseline over the same seeds in the same order, by the paired t test.

    Interval and p as in `mean_interval`, nan where there are fewer than two seeds. Raises ValueError for different
    sizes.
    """
    first, second = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    same_size(first, second)
    return mean_interval(first - second, level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979) of p values, in their order; a nan stays one and does not count."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # nan sorts last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return [float(value) for value in adjusted]
