"""How often intervals and verdicts are right, in few simulated studies; `python -m benchmarks.intervals` takes many."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from benchmarks.intervals import rates

STUDIES, CELLS = 150, 4


def is_at_most(rate: float, share: float) -> bool:
    """Whether a share among the studies, which varies, doesn't speak against a true rate of at most `rate`."""
    return bool(stats.binomtest(round(share * STUDIES), STUDIES, rate, "greater").pvalue > 0.001)


@pytest.mark.parametrize(
    ("seeds", "scenario"), [(3, "all alike"), (3, "baseline three times as much"), (5, "one cell three times as much")]
)
def test_intervals_cover_and_verdicts_keep_their_error(seeds: int, scenario: str) -> None:
    for found in rates(seeds, scenario, STUDIES, CELLS):
        assert 0.91 < found["interval of a mean"] < 0.99
        assert 0.91 < found["interval of a difference"] < 0.99
        affected = found["interval of the affected cell's difference"]
        assert 0.91 < affected < 0.99 if scenario.startswith("one cell") else math.isnan(affected)
        for error in ("lower or higher", "the same", "p (Dunnett)"):
            assert is_at_most(0.055, found[f"wrong: {error}"]), error
    assert found["narrow enough"] == 1


def test_the_interval_of_a_cell_that_collapses_is_not_hidden_among_those_of_others() -> None:
    found, _ = rates(10, "one cell collapses in 1 of 20 runs", 60, CELLS)
    assert found["interval of the affected cell's difference"] < 0.85 < found["interval of a difference"]
