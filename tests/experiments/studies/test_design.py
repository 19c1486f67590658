"""How many seeds a design asks for, and what it says of them."""

from __future__ import annotations

from math import nan

import pandas as pd
import pytest

from experiments.studies.design import Design
from simclr.errors import UserError

DESIGN = Design(until=0.5, first=(0, 1, 2), most=20)


def records(**cells: list[float]) -> pd.DataFrame:
    rows = [(cell, seed, value) for cell, values in cells.items() for seed, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["cell", "seed", "acc_top1"]).assign(status="FINISHED")


def test_the_cell_that_varies_most_among_the_first_seeds_decides() -> None:
    base = [0.5, 0.6, 0.7]
    alike, noisy = [0.5, 0.601, 0.699], [0.5, 0.604, 0.696]  # 0.1 and 0.4 points
    table = records(base=[*base, 0.1], alike=[*alike, 0.9], noisy=[*noisy, 0.2])
    assert DESIGN.seeds_wanted(table, "acc_top1", "base") == 12  # (4.303 x 0.4 / 0.5)^2 = 11.8
    assert DESIGN.seeds_wanted(table[table["cell"] != "noisy"], "acc_top1", "base") == 3
    assert DESIGN.seeds_wanted(table[table["cell"] != "base"], "acc_top1", "base") == 3  # nothing to compare with
    table.loc[table["cell"] == "noisy", "status"] = "FAILED"
    assert DESIGN.seeds_wanted(table, "acc_top1", "base") == 3


@pytest.mark.parametrize(
    ("half", "wanted", "text"),
    [
        (0.5, 12, "The widest interval reaches 0.5, as asked for."),
        (0.7, 30, "The widest interval reaches 0.7, because --max-seeds allowed 20."),
        (0.7, 12, "The widest interval reaches 0.7, because runs are missing."),
        (nan, 3, "There are no intervals yet."),
    ],
)
def test_the_note_says_whether_the_intervals_are_as_narrow_as_asked(half: float, wanted: int, text: str) -> None:
    table = pd.DataFrame({"difference_low": [nan, 1 - half, 2.0], "difference_high": [nan, 1 + half, 2.0 + half]})
    note = DESIGN.note(table, "linear_top1", wanted)
    assert f"{wanted} are needed for" in note
    assert text in note


def test_a_study_goes_on_by_the_rule_that_it_began_with() -> None:
    DESIGN.check_continues(Design(), "a")
    Design(until=0.2, first=(0, 1, 2), most=50).check_continues(DESIGN, "a")
    for other in (Design(), Design(until=0.5, first=(0, 1, 2, 3), most=20)):
        with pytest.raises(UserError, match=r"first 3 seeds of study 'a' decide .* --until 0\.5, or choose"):
            other.check_continues(DESIGN, "a")
