"""Kendall's tau against scipy and its definition, and the coverage of intervals."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import scipy

from analysis.agreement import kendall


def test_tau_is_scipys_and_the_share_of_pairs_in_order() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=12)
    y = x + draw.normal(size=12)
    found = kendall(x, y)
    signs = [np.sign((x[i] - x[j]) * (y[i] - y[j])) for i, j in combinations(range(12), 2)]
    assert found.tau == pytest.approx(np.mean(signs)) == pytest.approx(scipy.stats.kendalltau(x, y).statistic)
    assert (found.low, found.n) == (pytest.approx(-kendall(x, -y).high), 12)
    ties = np.round(x), np.round(y)
    assert kendall(*ties).tau == pytest.approx(scipy.stats.kendalltau(*ties).statistic)


@pytest.mark.parametrize(("n", "rho"), [(8, 0.0), (8, 0.8), (20, 0.5), (20, 0.95)])
def test_the_interval_holds_the_true_tau_95_times_in_100(n: int, rho: float) -> None:
    draw = np.random.default_rng(n)
    true, times, held = 2 / math.pi * math.asin(rho), 200, 0
    for _ in range(times):
        x = draw.normal(size=n)
        found = kendall(x, rho * x + math.sqrt(1 - rho**2) * draw.normal(size=n))
        held += found.low <= true <= found.high
    assert 0.91 < held / times < 0.995


def test_a_perfect_order_of_few_is_not_certain_and_too_few_say_nothing() -> None:
    found = kendall(range(6), range(6))
    assert found.tau == pytest.approx(1)
    assert found.high == pytest.approx(1)
    assert 0 < found.low < 0.9
    assert kendall(range(60), range(60)).low > found.low
    assert math.isnan(kendall(range(4), range(4)).tau)
    assert math.isnan(kendall([1, 1, 1, 1, 1], range(5)).tau)
