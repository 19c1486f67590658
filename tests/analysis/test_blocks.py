"""Pooled comparisons with seeds as blocks: against scipy, and how often they are right in simulated studies."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from analysis.blocks import UNEQUAL, dunnett_p, pooled_differences, sign_flip_p
from analysis.statistics import holm, paired_difference

EQUAL, NOISY_BASELINE, NOISY_CELL = (1, 1, 1, 1, 1), (3, 1, 1, 1, 1), (1, 1, 1, 1, 3)


def studies(seeds: int, deviations: tuple[float, ...], runs: int) -> NDArray[np.float64]:
    """Studies (runs x cells x seeds) without effects, in which the seed matters more than the noise."""
    draw = np.random.default_rng(seeds)
    noise = draw.normal(size=(runs, len(deviations), seeds)) * np.array(deviations)[:, None]
    return noise + draw.normal(0, 3, (runs, 1, seeds))


def is_at_most(rate: float, errors: list[bool]) -> bool:
    """Whether the share of errors in simulated studies, which varies, speaks against a true rate of at most `rate`."""
    return bool(stats.binomtest(sum(errors), len(errors), rate, "greater").pvalue > 0.01)


def test_two_cells_give_the_paired_t_test() -> None:
    x = studies(4, (1, 1), 1)[0]
    found, paired = pooled_differences(x), paired_difference(x[1], x[0])
    assert (found.low[1], found.high[1]) == pytest.approx((paired.low, paired.high))
    assert found.p_dunnett[1] == pytest.approx(paired.p, abs=1e-5)
    assert np.isnan([found.low[0], found.high[0], found.p_dunnett[0]]).all()


def test_the_error_is_that_of_a_two_way_analysis_of_variance() -> None:
    x = studies(3, EQUAL, 1)[0]
    cells, seeds = np.eye(5), np.eye(3)
    design = [[*cells[cell], *seeds[seed][1:]] for cell, seed in product(range(5), range(3))]
    fit = np.linalg.lstsq(np.array(design), x.reshape(-1))
    error = np.sqrt(2 * fit[1][0] / 8 / 3)
    found = pooled_differences(x)
    np.testing.assert_allclose((found.low + found.high)[1:] / 2, (fit[0][:5] - fit[0][0])[1:])
    np.testing.assert_allclose((found.high - found.low)[1:], 2 * stats.t.ppf(0.975, 8) * error)
    assert found.p_dunnett[1:] == pytest.approx(dunnett_p((fit[0][1:5] - fit[0][0]) / error, 4, 8))


def test_dunnetts_distribution_is_that_of_scipy() -> None:
    draw = np.random.default_rng(0)
    control, *groups = draw.normal(size=(6, 7)) + np.array([[0], [0.5], [1], [1.5], [2], [0]])
    reference = stats.dunnett(*groups, control=control, rng=draw)
    found = dunnett_p(reference.statistic, 5, 6 * 6)
    assert found == pytest.approx(reference.pvalue, abs=1e-3)  # scipy integrates with random points
    assert dunnett_p([2.0], 1, 4) == pytest.approx(2 * stats.t.sf(2, 4), abs=1e-5)


@pytest.mark.parametrize(("seeds", "smallest"), [(3, 0.25), (5, 0.0625)])
def test_sign_flips_count_all_signs(seeds: int, smallest: float) -> None:
    x = np.random.default_rng(seeds).normal(0.5, 1, seeds)
    means = [np.mean(x * signs) for signs in product([1, -1], repeat=seeds)]
    expected = 2 * min(np.mean(means >= x.mean() - 1e-12), np.mean(means <= x.mean() + 1e-12))
    assert sign_flip_p(x) == pytest.approx(min(1, expected))
    assert sign_flip_p(np.abs(x)) == pytest.approx(smallest)
    assert np.isnan(sign_flip_p(x[:2]))


def test_too_few_cells_or_seeds_are_an_error_and_no_spread_is_unknown() -> None:
    for shape in ((1, 5), (3, 2)):
        with pytest.raises(ValueError, match="expected at least 2 and 3"):
            pooled_differences(np.zeros(shape))
    assert np.isnan(pooled_differences(np.tile(np.arange(4.0), (3, 1))).p_dunnett).all()


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_pooled_intervals_cover_and_dunnett_keeps_its_error_if_cells_vary_alike(seeds: int) -> None:
    found = [pooled_differences(study) for study in studies(seeds, EQUAL, 400)]
    assert 0.93 < np.mean([(each.low[1:] <= 0) & (each.high[1:] >= 0) for each in found]) < 0.97
    assert is_at_most(0.055, [each.p_dunnett[1:].min() < 0.05 for each in found])
    assert np.mean([each.p_equal < UNEQUAL for each in found]) == pytest.approx(UNEQUAL, abs=0.08)


@pytest.mark.parametrize("deviations", [EQUAL, NOISY_BASELINE, NOISY_CELL])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_paired_intervals_cover_and_verdicts_keep_their_error_however_cells_vary(
    seeds: int, deviations: tuple[float, ...]
) -> None:
    covered, wrong = [], []
    for base, *cells in studies(seeds, deviations, 300):
        found = [paired_difference(cell, base) for cell in cells]
        covered += [each.low <= 0 <= each.high for each in found]
        wrong.append(min(holm([each.p for each in found])) < 0.05)
    assert 0.93 < np.mean(covered) < 0.97
    assert is_at_most(0.055, wrong)


def test_with_ten_seeds_the_check_notices_cells_that_vary_three_times_as_much() -> None:
    noticed = [pooled_differences(study).p_equal < UNEQUAL for study in studies(10, NOISY_CELL, 200)]
    assert np.mean(noticed) > 0.9
