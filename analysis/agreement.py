"""How well one figure orders things as another does."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy  # loads scipy.stats, which takes a second, when it is first used
from numpy.typing import ArrayLike

FEWEST_PAIRS = 5  # pairs of values that an interval is made of; the variance below is infinite for four


class Agreement(NamedTuple):
    """Kendall's tau of n pairs of values, from -1 (opposite order) to 1 (the same order), and its interval."""

    tau: float
    low: float
    high: float
    n: int


def kendall(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Agreement:
    """Kendall's tau-b, with the interval of Fieller, Hartley and Pearson (1957, doi 10.1093/biomet/44.3-4.470).

    Atanh(tau) is about normal with variance 0.437 / (n - 4). At tau = 1, where the interval would be a point, half a
    pair is counted as out of order. All is nan for fewer than FEWEST_PAIRS values, or if all of one kind are equal.
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    n = len(x)
    if n < FEWEST_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Agreement(math.nan, math.nan, math.nan, n)
    tau = float(scipy.stats.kendalltau(x, y).statistic)
    most = 1 - 2 / (n * (n - 1))
    reach = scipy.stats.norm.ppf((1 + level) / 2) * math.sqrt(0.437 / (n - 4))
    middle = math.atanh(max(-most, min(most, tau)))
    low, high = math.tanh(middle - reach), math.tanh(middle + reach)
    return Agreement(tau, min(low, tau), max(high, tau), n)
