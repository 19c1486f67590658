"""Verdicts on published results, against scipy, all orders, and simulations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import scipy
from numpy.typing import NDArray

from analysis.statistics import apart_p, equivalence_p, holm, mean_interval
from analysis.summary import CANT_TELL, MARGIN, SIGNIFICANT
from analysis.verdicts import Comparison, apply_rule, rank_correlation, tally

COLUMNS = ["a", "b", "c", "d", "e"]


def table(*rows: list[float], columns: list[str] = COLUMNS) -> pd.DataFrame:
    """Values with a line for each seed."""
    return pd.DataFrame(rows, columns=columns[: len(rows[0])])


def compare(row: str, side: float, **more: object) -> Comparison:
    return Comparison({row: 1.0, "a": -1.0}, "m", side * 3.0, side, **more)  # type: ignore[arg-type]


def test_verdicts_need_the_sign_and_a_corrected_p() -> None:
    draw = np.random.default_rng(0)
    a = 50 + draw.normal(0, 0.3, 5)
    values = pd.DataFrame({"a": a, "b": a - 4, "c": a + 4, "d": a, "e": a + 0.1}) + draw.normal(0, 0.2, (5, 5))
    wanted = [compare("b", -1.0), compare("c", -1.0), compare("d", -1.0), compare("e", 0.0)]
    found = apply_rule({"m": values}, [*wanted, compare("b", 1.0, caveat="another loss")])
    assert [each.verdict for each in found] == ["agrees", "differs", CANT_TELL, "agrees", "not comparable"]
    assert found[-1].why == "another loss"
    raw = [scipy.stats.ttest_rel(values[row], values["a"]).pvalue for row in "bcd"]
    gap = values["e"] - values["a"]
    raw.append(max(scipy.stats.ttest_1samp(gap, b, alternative=s).pvalue for b, s in ((-1, "greater"), (1, "less"))))
    order = np.argsort(raw)
    corrected = np.maximum.accumulate(np.array(raw)[order] * [5, 4, 3, 2]).clip(max=1)
    assert [found[place].p for place in order] == pytest.approx(
        corrected
    )  # two tests of e, and the caveat takes no part


def test_weights_make_differences_of_differences() -> None:
    values = table([1, 5, 2, 9], [1, 5, 3, 9], [2, 6, 2, 9.5])
    weights = {"d": 1.0, "c": -1.0, "b": -1.0, "a": 1.0}
    (found,) = apply_rule({"m": values}, [Comparison(weights, "m", None, 1.0, says="it grows")])
    assert found.found.mean == pytest.approx(np.mean([9 - 2 - 4, 9 - 3 - 4, 9.5 - 2 - 4]))


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_fewer_than_three_seeds_tell_nothing(seeds: int) -> None:
    values = table(*([50.0, 10.0, 20.0, 30.0, 40.0] for _ in range(3)))[:seeds]
    (found,) = apply_rule({"m": values}, [compare("b", -1.0)])
    assert found.verdict == CANT_TELL
    assert f"{seeds} seed" in found.why
    if seeds:
        rank = rank_correlation(values, dict.fromkeys(COLUMNS, 0.0) | {"a": 1.0})
        assert rank is not None
        assert rank.verdict == CANT_TELL


def test_seeds_that_lack_a_row_are_left_out() -> None:
    values = table([50, 40], [51, 41.5], [52, 41.8], [53, np.nan])
    (found,) = apply_rule({"m": values}, [compare("b", -1.0)])
    assert found.found.n == 3
    assert found.found.mean == pytest.approx(-9.9)


def test_what_is_neither_the_same_nor_different_cannot_be_told() -> None:
    spread, apart = table([50, 50], [50, 53], [50, 48], [50, 51]), table([50, 53], [50, 53.1], [50, 52.9], [50, 53])
    for values, verdict in ((spread, CANT_TELL), (apart, "differs")):
        (found,) = apply_rule({"m": values}, [compare("b", 0.0)])
        assert found.verdict == verdict


def test_that_rows_are_not_the_same_needs_a_corrected_p() -> None:
    gaps = np.array([1.4, 1.8, 2.0, 2.4])
    raw = 2 * scipy.stats.ttest_1samp(gaps, 1.0, alternative="greater").pvalue  # 1 is the margin
    assert 0.0125 < raw < 0.025
    values = pd.DataFrame({"a": 50.0, "b": 50 + gaps, "c": 50 - gaps})
    found = apply_rule({"m": values}, [compare("b", 0.0), compare("c", 0.0)])
    assert [each.verdict for each in found] == [CANT_TELL, CANT_TELL]
    assert found[0].p == pytest.approx(4 * raw)  # two rows, two tests of each
    (alone,) = apply_rule({"m": values}, [compare("b", 0.0)])
    assert alone.verdict == "differs"


def wrong_verdicts(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which tables (tables x rows x seeds) have a verdict, by the rule: on b, c or d, or on whether e is the same."""
    gaps = values[:, 1:] - values[:, :1]
    alike = gaps[:, -1:]
    tests = mean_interval(gaps[:, :-1]).p, equivalence_p(alike, MARGIN), apart_p(alike, MARGIN)
    return (holm(np.concatenate(tests, 1))[0] < SIGNIFICANT).any(1)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("spread", [(1, 1, 1, 1, 1), (0.2, 0.5, 1, 2, 4), (3, 1, 1, 1, 1)])
def test_the_error_of_a_table_is_at_most_5_percent(seeds: int, spread: tuple[float, ...]) -> None:
    """Of tables in which three rows don't differ from the first and one does by the margin, as many have a verdict."""
    draw, deviations = np.random.default_rng(seeds), 0.1 * np.array(spread)[:, None]
    values = 50 + draw.normal(size=(40_000, 5, seeds)) * deviations + draw.normal(size=(40_000, 1, seeds))
    values[:, -1] += MARGIN
    wrong = wrong_verdicts(values)
    wanted = [*(compare(row, 1.0) for row in "bcd"), compare("e", 0.0)]
    for number in [*range(20), *np.flatnonzero(wrong)[:10]]:  # those of the simulation are those of the product
        found = apply_rule({"m": pd.DataFrame(values[number].T, columns=COLUMNS)}, wanted)
        assert wrong[number] == any(each.verdict != CANT_TELL for each in found)
    assert wrong.mean() <= 0.055


def test_rank_correlation_is_kendalls_with_the_p_of_all_orders() -> None:
    published = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}
    values = table([10, 20, 30, 40, 50], [10, 30, 20, 40, 50], [20, 10, 30, 50, 40])
    found = rank_correlation(values, published)
    assert found is not None
    taus = [scipy.stats.kendalltau(list(published.values()), row).statistic for row in values.to_numpy()]
    assert found.tau.mean == pytest.approx(np.mean(taus))
    assert -1 <= found.tau.low <= found.tau.mean <= found.tau.high <= 1
    numbers = np.array([1.0, 2, 3, 4, 5])
    scores = [
        np.mean([scipy.stats.kendalltau(numbers[list(order)], row).statistic for row in values.to_numpy()])
        for order in permutations(range(5))
    ]
    assert found.p == pytest.approx(np.mean(np.abs(scores) >= np.mean(taus) - 1e-9))
    assert found.verdict == "agrees"
    backwards = rank_correlation(-values, published)
    assert backwards is not None
    assert (backwards.verdict, backwards.p) == ("differs", found.p)
    assert rank_correlation(values, {"a": 1.0, "b": 2.0, "c": 3.0}) is None


def test_a_tally_has_every_verdict() -> None:
    assert list(tally(["agrees", "agrees", CANT_TELL]).values()) == [2, 0, 1, 0]
