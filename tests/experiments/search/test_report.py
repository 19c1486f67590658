"""The tables of a search's report."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.findings import of_search
from experiments.search.report import shown


@pytest.mark.parametrize("gain", [0.0175, 0.01749999999999996])
def test_the_sentence_and_the_table_round_a_gain_to_the_same_number(gain: float) -> None:
    """The sentence is made from a file, whose numbers have twelve digits, and the table from all digits."""
    rows = [
        {"cell": "baseline", "fresh seeds": 0.5, "n": 3},
        {"cell": "trial 0", "fresh seeds": 0.5175, "n": 3, "gain": gain, "gain_low": 0.01, "gain_high": 0.02},
    ]
    trials = pd.DataFrame({"trial": [0], "accuracy": [0.6]}, dtype=object)
    assert "trial 0 is 1.8 points above" in of_search(trials, 0.5, pd.DataFrame(rows))[1]
    assert shown(pd.DataFrame(rows))["gain on validation (points)"].iloc[1].startswith("+1.8\n")
