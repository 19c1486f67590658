"""What a study can show: the power of its tests, and how many seeds a wanted difference or interval takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from analysis.statistics import FEWEST_SEEDS

POWER = 0.8  # the usual probability of finding a difference that exists (Cohen 1988)


def power(effect: float, pairs: int, level: float) -> float:
    """The probability that a two-sided paired t test finds a difference.

    `effect` is that difference over the standard deviation of paired differences, and `level` the p value below which
    it counts as found. This is exact for normal differences, whose t has a noncentral t distribution.
    """
    freedom, shift = pairs - 1, effect * math.sqrt(pairs)
    critical = scipy.special.stdtrit(freedom, 1 - level / 2)
    below, above = scipy.special.nctdtr(freedom, shift, -critical), 1 - scipy.special.nctdtr(freedom, shift, critical)
    return float(np.nan_to_num(below) + above)  # it is nan where it is far too small to matter


def detectable(pairs: int, level: float) -> float:
    """The smallest effect that a test finds with the probability POWER; nan below FEWEST_SEEDS pairs."""
    if pairs < FEWEST_SEEDS:
        return math.nan
    most = 10.0
    while power(most, pairs, level) < POWER:
        most *= 2
    return float(scipy.optimize.brentq(lambda effect: power(effect, pairs, level) - POWER, 0, most))


def pairs_needed(effect: float, level: float, most: int) -> int | None:
    """The number of pairs from which on a test finds an effect with the probability POWER; None if over `most`."""
    return next((pairs for pairs in range(FEWEST_SEEDS, most + 1) if power(effect, pairs, level) >= POWER), None)


def pairs_for_width(deviation: float, first: int, half: float, level: float = 0.95) -> int:
    """The number of pairs for an interval of a mean difference that reaches at most `half` to each side.

    `deviation` is the standard deviation of the differences, estimated from the `first` pairs. This is the two-stage
    rule of Stein (1945, doi 10.1214/aoms/1177731088); `mean_interval` has the interval that goes with it.
    """
    return max(first, math.ceil((scipy.special.stdtrit(first - 1, (1 + level) / 2) * deviation / half) ** 2))


class Spread(NamedTuple):
    """How much paired differences vary."""

    deviation: float  # the standard deviation of a difference between two cells that have the same seed
    freedom: int  # degrees of freedom that it was measured with; 0 if it is assumed

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The interval of the standard deviation, from the chi-square distribution."""
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        low, high = self.deviation * np.sqrt(self.freedom / scipy.special.chdtri(self.freedom, tails))
        return float(low), float(high)


def measured_spread(values: ArrayLike, cells: Sequence[str], seeds: Sequence[str]) -> Spread | None:
    """The spread of paired differences among results, each of which has a value, a cell and a seed.

    It follows from the residuals of an additive model of cells and seeds. If that leaves fewer than two degrees of
    freedom, results of the same seed are assumed to differ as much as any others. None if this leaves too few as well,
    or if nothing varies.
    """
    x = np.asarray(values, np.float64)
    blocks = [np.equal.outer(list(names), sorted(set(names))).astype(float) for names in (cells, seeds)]
    for design in (np.hstack(blocks), blocks[0]):
        solution, _, rank, _ = np.linalg.lstsq(design, x)
        freedom, rest = x.size - int(rank), float(((x - design @ solution) ** 2).sum())
        if freedom >= FEWEST_SEEDS - 1 and rest > 1e-12:
            return Spread(math.sqrt(2 * rest / freedom), freedom)
    return None
