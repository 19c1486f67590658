"""Comparisons of all cells of a study with its baseline at once, with seeds as blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from numpy.typing import ArrayLike, NDArray

from analysis.statistics import FEWEST_SEEDS

UNEQUAL = 0.2  # p of Bartlett's test below which cells are taken to vary unequally; high, because few seeds show little
NODES = 80  # of each quadrature, which is then exact to five digits


class Pooled(NamedTuple):
    """What one error for all cells says of each cell's difference to the first cell."""

    t: NDArray[np.float64]  # each difference in standard errors (C, the first nan)
    freedom: int  # of the common error
    p_equal: Any  # Bartlett's test of equal variances
    excess: Any  # of the variance of the paired differences, over the one that the common error leads to expect

    def holds(self) -> Any:
        """Whether neither check contradicts a common error of all cells. The excess is above 1 if the first cell varies
        more, which invalidates all comparisons at once."""
        return (self.p_equal >= UNEQUAL) & (self.excess <= 1)

    def p_dunnett(self) -> NDArray[np.float64]:
        """The p values of no difference (C, the first nan), corrected for the number of cells."""
        return dunnett_p(self.t, self.t.shape[-1] - 1, self.freedom)


def pooled_differences(values: ArrayLike, first: int | None = None) -> Pooled:
    """Compare cells with the first one, in a randomised block design (values: C cells x S seeds, all known).

    The error of all cells together has (C - 1)(S - 1) degrees of freedom, where a paired t test has S - 1. If the
    spread of the `first` seeds decided how many follow, only these estimate it. All is nan if the differences are the
    same in all of these. Axes before these two are other studies. Raises ValueError for fewer than two cells or
    FEWEST_SEEDS seeds.
    """
    x = np.asarray(values, np.float64)
    measured = x[..., :first]
    cells, seeds = measured.shape[-2:]
    if cells < 2 or seeds < FEWEST_SEEDS:
        raise ValueError(f"got {cells} cells and {seeds} seeds: expected at least 2 and {FEWEST_SEEDS}")
    residuals = measured - measured.mean(-1, keepdims=True) - measured.mean(-2, keepdims=True)
    residuals += measured.mean((-2, -1), keepdims=True)
    freedom = (cells - 1) * (seeds - 1)
    unknown = np.ptp(residuals, (-2, -1)) < 1e-12
    variance = np.where(unknown, np.nan, 2 * (residuals**2).sum((-2, -1)) / freedom)  # of a difference
    difference = x.mean(-1) - x[..., :1, :].mean(-1)
    difference[..., 0] = np.nan
    t = difference / np.sqrt(variance / x.shape[-1])[..., None]
    excess = (measured[..., 1:, :] - measured[..., :1, :]).var(-1, ddof=1).mean(-1) / variance
    with np.errstate(all="ignore"):  # of what is unknown
        p_equal = scipy.stats.bartlett(*np.moveaxis(residuals, -2, 0), axis=-1).pvalue
    return Pooled(t, freedom, np.where(unknown, np.nan, p_equal)[()], excess)


def dunnett_p(t: ArrayLike, comparisons: int, freedom: int) -> NDArray[np.float64]:
    """The probability that the largest of some |t| exceeds each given one (Dunnett 1955, doi 10.2307/2281208).

    The t are those of `comparisons` equally large groups with one control, so any two correlate by one half. scipy's
    `dunnett` has the same distribution, but only the degrees of freedom of independent groups.
    """
    (control, control_weights), (u, u_weights) = _quadratures()
    deviation = np.sqrt(scipy.special.chdtri(freedom, (1 - u) / 2) / freedom)  # of the error from the true one
    reach = np.sqrt(2) * np.abs(np.asarray(t, np.float64))[..., None, None] * deviation[:, None]
    within = scipy.special.ndtr(control + reach) - scipy.special.ndtr(control - reach)
    inside = within**comparisons @ (control_weights / control_weights.sum()) @ (u_weights / 2)
    return np.clip(1 - inside, 0, 1)  # type: ignore[no-any-return]


@cache
def _quadratures() -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    return [hermegauss(NODES), leggauss(NODES)]


def sign_flip_p(differences: Sequence[float] | NDArray[np.float64]) -> float:
    """The p value of a mean difference of 0 if each difference is as likely as its negative: the sign-flip test.

    It assumes no distribution, but with S seeds it can't be below 2 / 2^S. It is exact for up to 13 seeds, and drawn at
    random for more. nan below FEWEST_SEEDS differences.
    """
    x = np.asarray(differences, np.float64)
    if x.size < FEWEST_SEEDS:
        return float("nan")
    test = scipy.stats.permutation_test((x,), np.mean, permutation_type="samples", vectorized=True, rng=0)
    return float(test.pvalue)
