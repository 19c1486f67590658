"""Tests of intervals and significance tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    accuracy_interval,
    apart_p,
    balanced_interval,
    equivalence_p,
    holm,
    images_interval,
    mcnemar,
    mean_interval,
    paired_difference,
)


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 50), (1873, 2000), (9999, 10_000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_accuracy_interval_is_scipys_exact_one(correct: int, n: int, level: float) -> None:
    expected = stats.binomtest(correct, n).proportion_ci(level, "exact")
    assert accuracy_interval(correct, n, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("n", [4, 20, 300])
def test_accuracy_interval_contains_the_truth_at_least_as_often_as_it_says(n: int) -> None:
    """The probability of each outcome is scipy's, so this is exact."""
    intervals = np.array([accuracy_interval(correct, n) for correct in range(n + 1)])
    for truth in np.linspace(0, 1, 101):
        inside = (intervals[:, 0] <= truth) & (truth <= intervals[:, 1])
        assert stats.binom.pmf(np.arange(n + 1), n, truth)[inside].sum() >= 0.95
    assert (np.diff(intervals) > 0).all()


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("agreement", [0.2, 2.0])
def test_interval_of_a_mean_over_seeds_contains_the_truth_often_enough(seeds: int, agreement: float) -> None:
    """Images are hard or easy: the share of classifiers that get one right follows a beta distribution."""
    draw, n = np.random.default_rng(0), 40
    for truth in (0.3, 0.9, 0.97):
        chances = draw.beta(agreement * truth, agreement * (1 - truth), (2000, n))
        correct = draw.binomial(seeds, chances).sum(1) / seeds
        counts, occurrences = np.unique(correct, return_counts=True)
        low, high = np.array([accuracy_interval(count, n) for count in counts]).T
        assert occurrences[(low <= truth) & (truth <= high)].sum() >= 0.95 * len(correct)


@pytest.mark.parametrize(("answers", "agreement"), [(3, 2.0), (30, 0.7)])
def test_interval_of_the_images_own_means_is_not_too_wide(answers: int, agreement: float) -> None:
    draw, n, truth, studies = np.random.default_rng(0), 300, 0.7, 1000
    chances = draw.beta(agreement * truth, agreement * (1 - truth), (studies, n))
    shares = draw.binomial(answers, chances) / answers

    def held(intervals: list[tuple[float, float]]) -> float:
        return float(np.mean([low <= truth <= high for low, high in intervals]))

    assert 0.93 < held([images_interval(each) for each in shares]) < 0.97
    assert held([accuracy_interval(each.sum(), n) for each in shares]) > 0.97


def test_interval_of_the_images_own_means_is_the_exact_one_for_one_answer_and_never_a_point() -> None:
    assert images_interval(np.repeat([0.0, 1.0], [7, 13])) == pytest.approx(accuracy_interval(13, 20))
    for value in (0.0, 1 / 3, 1.0):  # whose images tell nothing about how much they vary
        assert images_interval(np.full(20, value)) == pytest.approx(accuracy_interval(20 * value, 20))


def test_accuracy_interval_lies_around_the_accuracy_and_narrows_with_n() -> None:
    for n in (4, 100, 1000):
        for correct in np.linspace(0, n, 25):
            low, high = accuracy_interval(correct, n)
            assert low <= correct / n <= high
            assert high - low > 1 / n
    low, high = accuracy_interval(90, 100)
    assert low < accuracy_interval(900, 1000)[0] < 0.9 < accuracy_interval(900, 1000)[1] < high


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
    nan = math.nan
    p = [[0.04, nan, 0.01, 0.03], [0.9, 0.8, nan, 0.02]]
    expected = [[0.06, nan, 0.03, 0.06], [1, 1, nan, 0.06]]
    np.testing.assert_allclose(holm(p)[0], expected)  # along the last axis
    np.testing.assert_allclose(holm(p[0])[0], expected[0])
    assert holm([])[0].size == 0


def test_tests_that_exclude_each_other_count_once_until_both_are_rejected() -> None:
    """Against Shaffer's procedure: at each step, as many hypotheses as can still be true."""
    draw = np.random.default_rng(0)
    p = draw.random((200, 2, 4)) ** 6
    p[:, 1, 2] = math.nan
    for study, found in zip(p, np.stack(holm(p[:, 0], p[:, 1]), 1), strict=True):
        expected, largest = np.full((2, 4), math.nan), 0.0
        rejected: set[tuple[int, int]] = set()
        for place in np.argsort(study, axis=None)[:7]:
            test, cell = divmod(int(place), 4)
            possible = {each for kind in (0, 1) for each in range(4) if (kind, each) not in rejected | {(1, 2)}}
            largest = max(largest, len(possible) * study[test, cell])
            expected[test, cell] = min(largest, 1)
            rejected.add((test, cell))
        np.testing.assert_allclose(found, expected)


def test_a_balanced_accuracy_has_an_interval_that_holds_it_and_that_rare_classes_widen() -> None:
    draw, times = np.random.default_rng(0), 400
    for sizes, shares in (((200, 200), (0.7, 0.7)), ((300, 20), (0.9, 0.6)), ((300, 30, 15), (0.95, 0.8, 0.5))):
        labels, held = np.repeat(np.arange(len(sizes)), sizes), 0
        for _ in range(times):
            correct = draw.random(len(labels)) < np.repeat(shares, sizes)
            value = np.mean([correct[labels == label].mean() for label in range(len(sizes))])
            low, high = balanced_interval(value, correct, labels)
            held += low <= np.mean(shares) <= high
        assert 0.92 < held / times < 0.99
    even = balanced_interval(0.75, np.arange(100) % 4 > 0, np.repeat([0, 1], 50))
    assert even == pytest.approx(accuracy_interval(75, 100), abs=0.01)
    low, high = balanced_interval(1.0, np.ones(103, bool), np.repeat([0, 1], [100, 3]))
    assert low < 0.8
    assert high == 1


def test_an_interval_whose_first_values_decided_how_many_follow_has_their_spread() -> None:
    values = [0.91, 0.93, 0.92, 0.95, 0.2, 0.4]
    half = 3.182446 * np.std(values[:4], ddof=1) / math.sqrt(6)
    mean, low, high, p, n = mean_interval(values, first=4)
    assert (low, high, n) == pytest.approx((mean - half, mean + half, 6))
    assert p == pytest.approx(2 * stats.t.sf(mean / (half / 3.182446), 3))
    assert math.isnan(mean_interval(values, first=2).low)
    assert paired_difference(values, np.zeros(6), first=4) == mean_interval(values, first=4)


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.3, 2.0])
def test_equivalence_is_the_larger_of_two_one_sided_t_tests(mean: float) -> None:
    x = np.random.default_rng(0).normal(mean, 0.3, 6)
    one_sided = [stats.ttest_1samp(x, -1, alternative="greater"), stats.ttest_1samp(x, 1, alternative="less")]
    p = equivalence_p(x, 1.0)
    assert p == pytest.approx(max(test.pvalue for test in one_sided))
    _, low, high, _, _ = mean_interval(x, 0.9)
    assert (p < 0.05) == (low > -1 and high < 1)
    assert math.isnan(equivalence_p(x[:2], 1.0))


def test_many_samples_at_once_give_what_each_gives_by_itself() -> None:
    x = np.random.default_rng(0).normal(0.5, 1, (4, 3, 6))
    x[1, 2] = 0.3
    *many, n = mean_interval(x, first=4)
    found = np.stack([*many, equivalence_p(x, 1.0, 4), apart_p(x, 0.1)])
    for place in np.ndindex(4, 3):
        *alone, _ = mean_interval(x[place], first=4)
        alone += [equivalence_p(x[place], 1.0, 4), apart_p(x[place], 0.1)]
        assert found[:, *place] == pytest.approx(alone, nan_ok=True)
    assert n == 6
