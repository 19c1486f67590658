"""Tests of intervals and significance tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import accuracy_interval, holm, mcnemar, mean_interval, paired_difference, share_interval


@pytest.mark.parametrize(("correct", "n", "level"), [(91, 100, 0.95), (3, 400, 0.95), (1873, 2000, 0.9)])
def test_accuracy_interval_equals_that_of_resampled_images(correct: int, n: int, level: float) -> None:
    outcomes = np.arange(n) < correct
    draw = np.random.default_rng(0)
    resampled = [outcomes[draw.integers(0, n, n)].mean() for _ in range(4000)]
    expected = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    spread = math.sqrt(correct / n * (1 - correct / n) / n)
    np.testing.assert_allclose(accuracy_interval(correct, n, level), expected, atol=0.1 * spread + 1 / n)


def test_accuracy_interval_narrows_with_n_and_can_be_a_point() -> None:
    assert accuracy_interval(0, 50) == (0, 0)
    assert accuracy_interval(50, 50) == (1, 1)
    low, high = accuracy_interval(90, 100)
    assert low < accuracy_interval(900, 1000)[0] < 0.9 < accuracy_interval(900, 1000)[1] < high


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_share_interval_equals_that_of_resampled_images(level: float) -> None:
    draw = np.random.default_rng(1)
    shares = draw.choice([0, 1 / 3, 2 / 3, 1], 600, p=[0.2, 0.1, 0.3, 0.4])
    resampled = [shares[draw.integers(0, 600, 600)].mean() for _ in range(4000)]
    expected = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    np.testing.assert_allclose(share_interval(shares, level), expected, atol=0.1 * shares.std() / math.sqrt(600))


def test_share_interval_of_one_classifier_equals_the_accuracy_interval() -> None:
    np.testing.assert_allclose(share_interval(np.arange(500.0) < 400), accuracy_interval(400, 500), atol=0.004)


@pytest.mark.parametrize(("correct", "n"), [(5, 4), (-1, 4), (0, 0)])
def test_impossible_counts_are_rejected(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} of {n} images"):
        accuracy_interval(correct, n)


def answers(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_first, only_second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (1, 0), (9, 2), (3, 17), (60, 80)])
def test_mcnemar_p_is_the_tail_of_a_fair_coin(first: int, second: int) -> None:
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1)) / 2**n
    assert mcnemar(*answers(40, first, second, 7)) == (first, second, pytest.approx(min(1, 2 * tail)))


def test_mcnemar_approaches_the_chi_square_test() -> None:
    b, c = 5200, 5000
    chi2 = (abs(b - c) - 1) ** 2 / (b + c)
    assert mcnemar(*answers(10**5, b, c, 10**4)).p == pytest.approx(stats.chi2.sf(chi2, 1), rel=0.01)


@pytest.mark.parametrize("test", [mcnemar, paired_difference])
@pytest.mark.parametrize("other", [1, 4])
def test_different_images_or_seeds_are_not_compared(test, other: int) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=f"got 3 and {other} values: .* same test images or the same seeds"):
        test(np.ones(3, bool), np.ones(other, bool))


def test_paired_difference_equals_the_paired_t_test() -> None:
    values, baseline = np.random.default_rng(1).normal([[0.9], [0.88]], 0.01, (2, 5))
    result, expected = paired_difference(values, baseline), stats.ttest_rel(values, baseline)
    interval = expected.confidence_interval(0.95)
    assert result == pytest.approx((np.mean(values - baseline), interval.low, interval.high, expected.pvalue, 5))


def test_mean_interval_is_students() -> None:
    values, t = [0.91, 0.93, 0.92, 0.95], 3.182446  # the tabulated 97.5 % quantile for 3 degrees of freedom
    half = t * np.std(values, ddof=1) / 2
    mean, low, high, _, n = mean_interval(values)
    assert (mean, low, high, n) == pytest.approx((0.9275, 0.9275 - half, 0.9275 + half, 4))


@pytest.mark.parametrize("values", [[0.9], [0.9, 0.9], [0.1 + 0.2, 0.3, 0.3]])
def test_values_without_spread_have_only_a_mean(values: list[float]) -> None:
    mean, *rest, n = mean_interval(values)
    assert (mean, n) == (pytest.approx(values[0]), len(values))
    assert np.isnan(rest).all()
    assert math.isnan(mean_interval([]).mean)


def test_holm_multiplies_by_the_remaining_tests_and_skips_nan() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.04, math.nan, 0.01, 0.03]) == pytest.approx([0.06, math.nan, 0.03, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
