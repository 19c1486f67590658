"""`simclr compare`: the formats of its tables."""

from __future__ import annotations

import re

import pandas as pd

from experiments.commands.compare import _tables
from experiments.runs.compare import Comparison


def test_each_latex_table_of_two_runs_has_a_caption_and_a_label_of_its_own() -> None:
    table = pd.DataFrame({"run": ["kNN top-1"], "a": ["50.00"], "b": ["60.00"]})
    tests = pd.DataFrame({"metric": ["kNN top-1"], "run A": ["a"], "run B": ["b"], "p (McNemar)": ["0.5"]})
    text = _tables(Comparison(table, tests, ["A note."], [{"name": "a"}, {"name": "b"}]), "latex")
    labels = re.findall(r"\\label\{(.*)\}", text)
    assert len(set(labels)) == text.count(r"\begin{table}") == 2
    assert [caption.endswith(".") for caption in re.findall(r"\\caption\{(.*)\}", text)] == [True, True]
