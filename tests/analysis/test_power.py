"""What a study can show: against published numbers of pairs, scipy's distributions and an analysis of variance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.power import Spread, detectable, measured_spread, pairs_for_width, pairs_needed, power


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])  # G*Power 3.1, two-sided, 5 %, 80 %
def test_the_pairs_that_an_effect_needs_are_those_of_gpower(effect: float, pairs: int) -> None:
    assert pairs_needed(effect, 0.05, 300) == pairs
    assert pairs_needed(effect, 0.05, pairs - 1) is None


def test_power_is_the_share_of_significant_tests() -> None:
    x = np.random.default_rng(0).normal(1.5, 1, (20_000, 5))
    found = (stats.ttest_1samp(x, 0, axis=1).pvalue < 0.0125).mean()
    assert power(1.5, 5, 0.0125) == pytest.approx(found, abs=0.01)
    assert power(0.0, 5, 0.0125) == pytest.approx(0.0125)


@pytest.mark.parametrize("pairs", [3, 5, 20])
@pytest.mark.parametrize("level", [0.05, 0.05 / 400])
def test_the_detectable_effect_is_found_four_times_in_five(pairs: int, level: float) -> None:
    assert power(detectable(pairs, level), pairs, level) == pytest.approx(0.8)
    assert math.isnan(detectable(2, level))


def test_steins_rule_takes_as_many_pairs_as_the_width_needs_and_never_fewer_than_the_first() -> None:
    assert pairs_for_width(1.0, 5, 1.0) == math.ceil(2.776445**2)
    assert pairs_for_width(0.1, 5, 1.0) == 5


def test_the_spread_is_the_error_of_a_two_way_analysis_of_variance() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(3, 4)) + draw.normal(0, 5, 4) + np.array([[0], [3], [9]])
    cells, seeds = np.repeat(["a", "b", "c"], 4), np.tile(["0", "1", "2", "3"], 3)
    residuals = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    expected = Spread(math.sqrt(2 * (residuals**2).sum() / 6), 6)
    assert measured_spread(x.ravel(), cells, seeds) == pytest.approx(expected)
    found = measured_spread(x.ravel()[1:], cells[1:], seeds[1:])
    assert found is not None
    assert found.freedom == 5  # a run may be missing
    low, high = expected.interval()
    assert stats.chi2.cdf(6 * (expected.deviation / np.array([low, high])) ** 2, 6) == pytest.approx([0.975, 0.025])


def test_runs_that_share_no_seeds_are_taken_to_be_independent_and_too_few_show_nothing() -> None:
    one = measured_spread([60.0, 61.0, 63.0], ["a"] * 3, ["0", "1", "2"])
    assert one == pytest.approx(Spread(math.sqrt(2) * np.std([60, 61, 63], ddof=1), 2))
    assert measured_spread([60.0, 61.0], ["a"] * 2, ["0", "1"]) is None
    assert measured_spread([60.0] * 4, ["a"] * 4, ["0", "1", "2", "3"]) is None
