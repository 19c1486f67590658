"""How often intervals and verdicts are right in simulated studies; `python -m benchmarks.intervals` has more."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis.blocks import pooled_differences
from analysis.summary import summary
from benchmarks.intervals import (
    MARGIN,
    SEEDS,
    corrected,
    draw_studies,
    dunnett_limit,
    misses,
    noises_of,
    with_fixed_seeds,
    with_looks,
    with_until,
)

CELLS = 4
UNEQUAL = ("baseline three times as much", "one cell three times as much")


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("scenario", ["all alike", *UNEQUAL])
def test_intervals_cover_and_verdicts_keep_their_error(seeds: int, scenario: str) -> None:
    found = with_fixed_seeds(scenario, seeds, 20_000, CELLS)
    assert math.isnan(found["interval of the affected cell's difference"]) == (not scenario.startswith("one cell"))
    intervals = [share for name, share in found.items() if name.startswith("interval") and not math.isnan(share)]
    assert min(intervals) > 0.93
    assert max(intervals) < 0.97
    for claim in ("lower or higher", "the same", "half null, half at the margin"):
        assert found[f"wrong: {claim}"] <= 0.055, claim
    if scenario == "all alike":  # what pooling assumes; no verdict depends on it
        assert found["wrong: p (Dunnett)"] <= 0.055


@pytest.mark.parametrize(("first", "scenario"), [(3, "all alike"), (5, UNEQUAL[0]), (10, UNEQUAL[1])])
def test_steins_rule_keeps_both_and_its_promise(first: int, scenario: str) -> None:
    found = with_until(scenario, first, 10_000, CELLS)
    assert misses({name: share for name, share in found.items() if "Dunnett" not in name}) == []
    assert found["narrow enough"] == 1


def test_reading_a_report_again_with_more_seeds_does_not_keep_the_error() -> None:
    twice, four_times = (with_looks("all alike", numbers, 10_000, CELLS) for numbers in ((3, 5), (3, 5, 7, 10)))
    assert 0.07 < twice["wrong: lower or higher"] < 0.1 < four_times["wrong: lower or higher"]
    assert with_looks("all alike", (5,), 10_000, CELLS)["wrong: lower or higher"] <= 0.055


def test_the_interval_of_a_cell_that_collapses_is_not_hidden_among_those_of_others() -> None:
    found = with_fixed_seeds("one cell collapses in 1 of 20 runs", 10, 2000, CELLS)
    assert found["interval of the affected cell's difference"] < 0.85 < found["interval of a difference"]
    assert any("affected" in text for text in misses(found))


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_simulation_corrects_and_pools_as_the_summary_of_a_study_does(seeds: int) -> None:
    x = draw_studies(np.random.default_rng(0), noises_of("one cell three times as much", 3), 70, seeds)
    x[:, 2:] += MARGIN
    found = np.stack(corrected(x[:, 1:] - x[:, :1]), -1)
    held = pooled_differences(x)
    pooled = (np.abs(held.t) > dunnett_limit(3, held.freedom)) & held.holds()[:, None]
    runs = pd.MultiIndex.from_product([range(4), range(seeds)], names=["cell", "seed"]).to_frame(index=False)
    runs = runs.assign(status="FINISHED", seconds=1.0, images_per_second=1.0)
    plan = [
        {"cell": cell, "paper": None, "direction": None, "against": 0, "caveat": None, "source": None}
        for cell in range(4)
    ]
    for study, values in enumerate(x):
        own = summary(runs.assign(knn_top1=values.ravel() / 100), plan, "knn_top1", {}, MARGIN)
        assert own[["p_holm", "p_same"]].to_numpy()[1:] == pytest.approx(found[study])
        assert ((own["p_dunnett"] < 0.05) == pooled[study]).all()
