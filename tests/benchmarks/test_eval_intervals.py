"""How often intervals cover, in few simulations; `python -m benchmarks.eval_intervals` takes many."""

from __future__ import annotations

import numpy as np

from benchmarks.eval_intervals import measured, of_accuracy


def test_intervals_that_are_printed_cover_and_that_of_the_best_of_several_would_not() -> None:
    assert of_accuracy(20, 0.7) > 0.95
    assert of_accuracy(200, 0.7) > of_accuracy(200, 0.7, trials=10) > of_accuracy(200, 0.7, trials=30)
    rows = [*measured(60)]
    for interval, case, shares in rows:
        if interval == "not used: best of a search":
            assert max(shares) < 0.9, case
        else:
            assert np.mean(shares) > 0.85, (interval, case)
    assert len(rows) == len({row[:2] for row in rows})
