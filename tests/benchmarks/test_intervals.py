"""How often intervals and verdicts are right, in few simulated studies; `python -m benchmarks.intervals` takes many."""

from __future__ import annotations

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
        for error in ("lower or higher", "the same", "p (Dunnett)"):
            assert is_at_most(0.055, found[f"wrong: {error}"]), error
    assert found["narrow enough"] == 1
