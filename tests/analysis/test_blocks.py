"""Pooled comparisons with seeds as blocks: against scipy, and how often they are right in simulated studies."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from analysis.blocks import UNEQUAL, dunnett_p, pooled_differences, sign_flip_p
from analysis.statistics import paired_difference


def study(seeds: int, deviations: tuple[float, ...]) -> NDArray[np.float64]:
    """A study (cells x seeds) without effects, in which the seed matters more than the noise."""
    draw = np.random.default_rng(seeds)
    return draw.normal(size=(len(deviations), seeds)) * np.array(deviations)[:, None] + draw.normal(0, 3, seeds)


@pytest.mark.parametrize("first", [None, 4])
def test_two_cells_give_the_paired_t_test(first: int | None) -> None:
    x = study(6, (1, 1))
    found, paired = pooled_differences(x, first), paired_difference(x[1], x[0], first=first)
    assert found.p_dunnett()[1] == pytest.approx(paired.p, abs=1e-5)
    assert np.isnan(found.p_dunnett()[0])
    assert found.excess == pytest.approx(1)


def test_the_error_is_that_of_a_two_way_analysis_of_variance() -> None:
    x = study(3, (1, 1, 1, 1, 1))
    cells, seeds = np.eye(5), np.eye(3)
    design = [[*cells[cell], *seeds[seed][1:]] for cell, seed in product(range(5), range(3))]
    fit = np.linalg.lstsq(np.array(design), x.reshape(-1))
    error = np.sqrt(2 * fit[1][0] / 8 / 3)
    found = pooled_differences(x)
    assert found.p_dunnett()[1:] == pytest.approx(dunnett_p((fit[0][1:5] - fit[0][0]) / error, 4, 8))
    assert found.excess == pytest.approx(np.mean([np.var(cell - x[0], ddof=1) for cell in x[1:]]) / (3 * error**2))


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
    assert np.isnan(pooled_differences(np.tile(np.arange(4.0), (3, 1))).p_dunnett()).all()


@pytest.mark.parametrize("deviations", [(1, 1, 1, 1, 5), (5, 1, 1, 1, 1)])
def test_with_ten_seeds_the_checks_notice_cells_and_baselines_that_vary_more(deviations: tuple[float, ...]) -> None:
    found = pooled_differences(study(10, deviations))
    assert found.p_equal < UNEQUAL
    assert (found.excess > 1) == (deviations[0] == 5)
    assert not found.holds()
    assert not found._replace(p_equal=1.0).holds() or deviations[0] == 1


def test_several_studies_at_once_give_what_each_gives_by_itself() -> None:
    x = np.random.default_rng(0).normal(size=(5, 4, 6))
    x[3] = np.arange(6)
    found = pooled_differences(x, 4)
    for study, each in enumerate(x):
        alone = pooled_differences(each, 4)
        assert found.t[study] == pytest.approx(alone.t, nan_ok=True)
        assert (found.p_equal[study], found.excess[study]) == pytest.approx((alone.p_equal, alone.excess), nan_ok=True)
        assert found.holds()[study] == alone.holds()
