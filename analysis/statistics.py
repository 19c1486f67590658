"""Confidence intervals, tests of differences, and a correction for multiple tests."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy  # loads scipy.stats, which takes a second, when it is first used
from numpy.typing import ArrayLike, NDArray

FEWEST_SEEDS = 3  # values, one per seed, that an interval is made of. That of two is 13 times as wide as their distance
FEWEST_ANSWERS = 5  # right and wrong ones, from which the spread of images' shares of right answers is measured


def check_same_shape(first: NDArray[Any], second: NDArray[Any]) -> None:
    """Raises ValueError unless both arrays have the same shape, as results on the same images or seeds do."""
    if first.shape != second.shape:
        raise ValueError(
            f"got {first.size} and {second.size} values: expected equally many, "
            f"so compare results on the same test images or the same seeds"
        )


def accuracy_interval(correct: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval (1934, doi 10.1093/biomet/26.4.404), in [0, 1], of an accuracy on n images.

    It contains the accuracy on all images of the kind with a probability of at least `level`, however few are tested,
    so it never is a point: 20 of 20 correct gives 83 % to 100 %. `correct` may be a fraction where several answers are
    averaged over each image (such as those of two views). The interval is then a little too wide, as an average varies
    less than one answer. Raises ValueError if `correct` is not in [0, n] or there are no images.
    """
    if not 0 <= correct <= n or not n:
        raise ValueError(f"{correct} of {n} images correct: expected at least one image, and a count from 0 to all")
    tail, wrong = (1 - level) / 2, n - correct
    low = scipy.special.betaincinv(correct, wrong + 1, tail) if correct else 0.0
    high = scipy.special.betaincinv(correct + 1, wrong, 1 - tail) if wrong else 1.0
    return float(low), float(high)


def balanced_interval(
    value: float, correct: NDArray[np.bool_], labels: NDArray[np.integer], level: float = 0.95
) -> tuple[float, float]:
    """An interval, in [0, 1], of a balanced accuracy: the mean over classes of the accuracy on their images.

    `correct` and `labels` are those of the N images. It is `accuracy_interval` with the number of images whose plain
    accuracy would be as uncertain (Korn and Graubard 1998). That is Kish's number, C^2 / sum(1 / images of a class), or
    fewer if the classes that are rare are the uncertain ones.
    """
    counts = np.unique(labels, return_counts=True)[1]
    shares = np.array([correct[labels == label].mean() for label in np.unique(labels)])
    effective = len(counts) ** 2 / (1 / counts).sum()
    variance = (shares * (1 - shares) / counts).sum() / len(counts) ** 2
    if variance > 0:
        effective = min(effective, value * (1 - value) / variance)
    return accuracy_interval(value * effective, effective, level)


def images_interval(shares: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """An interval, in [0, 1], of an accuracy that averages several answers to each of N images.

    `shares` are the N shares of right answers. It is `accuracy_interval` with the number of images whose plain accuracy
    would be as uncertain (Korn and Graubard 1998): N if there is one answer to each image, and more otherwise. It is
    also N, which is cautious, if fewer than FEWEST_ANSWERS images' worth of answers are right, or wrong: so few don't
    show how much images vary.
    """
    value, variance, effective = float(shares.mean()), float(shares.var()), float(len(shares))
    if min(value, 1 - value) * len(shares) >= FEWEST_ANSWERS and variance > 1e-12:
        effective *= value * (1 - value) / variance
    return accuracy_interval(value * effective, effective, level)


class McNemar(NamedTuple):
    """How many images only the first or only the second classifier got right, and the p value of no difference."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first_correct: NDArray[np.bool_], second_correct: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact two-sided test of two classifiers on the same images (N booleans each: correct or not).

    If the classifiers do not differ, each image on which they disagree is a fair coin toss. Without such images p is 1.
    Raises ValueError if the sizes differ.
    """
    check_same_shape(first_correct, second_correct)
    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    discordant = only_first + only_second
    p = scipy.stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return McNemar(only_first, only_second, float(p))


class Mean(NamedTuple):
    """A mean over n runs, its confidence interval, and the p value of a true mean of 0.

    Of values with several axes, all but n are arrays.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int


def mean_interval(values: ArrayLike, level: float = 0.95, first: int | None = None) -> Mean:
    """The mean of some values, one per seed along the last axis, with Student's t interval and test.

    If the spread of the `first` values decided how many follow, only these estimate it, and both stay exact (Stein
    1945, doi 10.1214/aoms/1177731088). Interval and p are nan if fewer than FEWEST_SEEDS values measure the spread,
    or none of them differ.
    """
    mean, error, freedom = _student(values, first)
    half = error * scipy.special.stdtrit(freedom, (1 + level) / 2)
    p = 2 * scipy.special.stdtr(freedom, -abs(mean) / error)
    return Mean(mean, mean - half, mean + half, p, np.shape(values)[-1])


def paired_difference(values: ArrayLike, baseline: ArrayLike, level: float = 0.95, first: int | None = None) -> Mean:
    """The mean of values - baseline over the same seeds in the same order, with the paired t interval and test.

    `first`, interval and p are as in `mean_interval`. Raises ValueError if the sizes differ.
    """
    one, other = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    check_same_shape(one, other)
    return mean_interval(one - other, level, first)


def equivalence_p(differences: ArrayLike, margin: float, first: int | None = None) -> Any:
    """The p value of a mean difference, along the last axis, of `margin` or more in either direction.

    It is the larger one of two one-sided t tests (Schuirmann 1987, doi 10.1007/BF01068419). If it is below 0.05, the
    90 % interval lies within the margin. `first` is as in `mean_interval`, and so is nan.
    """
    mean, error, freedom = _student(differences, first)
    return scipy.special.stdtr(freedom, (abs(mean) - margin) / error)


def apart_p(differences: ArrayLike, margin: float) -> Any:
    """The p value of a mean difference, along the last axis, of at most `margin` in either direction, by Student's
    two-sided t test.

    If it is below 0.05, the 95 % interval lies outside the margin. It is nan where that of `mean_interval` is.
    """
    mean, error, freedom = _student(differences, None)
    return np.minimum(1.0, 2 * scipy.special.stdtr(freedom, (margin - abs(mean)) / error))


def _student(values: ArrayLike, first: int | None) -> tuple[Any, Any, int]:
    """The means along the last axis, their standard errors from the `first` values (nan if unknown), and the freedom.

    Each is a number for values with one axis.
    """
    x = np.asarray(values, np.float64)
    measured = x[..., :first]
    mean = x.mean(-1) if x.shape[-1] else math.nan
    if measured.shape[-1] < FEWEST_SEEDS:
        return mean, mean * math.nan, 0
    deviation = np.where(np.ptp(measured, -1) < 1e-12, math.nan, measured.std(-1, ddof=1))
    return mean, deviation / math.sqrt(x.shape[-1]), measured.shape[-1] - 1


def holm(*tests: ArrayLike) -> list[NDArray[np.float64]]:
    """P values after Holm's step-down adjustment (1979) for all of them together, along the last axis.

    Each of the `tests` has a p value for each comparison, in the same order. Several must have hypotheses that can't be
    true of one comparison at the same time, such as a difference of 0 and one of at least the margin: a comparison then
    counts only once (Shaffer 1986, doi 10.1080/01621459.1986.10478341). A nan stays nan and is not counted.
    """
    p = np.concatenate(tests, -1, dtype=np.float64)
    order = p.argsort(-1)  # nan sorts last
    step = order.argsort(-1)
    last = np.max(np.split(np.where(np.isnan(p), -1, step), len(tests), -1), 0)  # the last step of each comparison
    left = (last[..., None, :] >= np.arange(p.shape[-1])[:, None]).sum(-1)  # comparisons at each step
    adjusted = np.maximum.accumulate(np.take_along_axis(p, order, -1) * left, -1).clip(max=1)
    return np.split(np.take_along_axis(adjusted, step, -1), len(tests), -1)
