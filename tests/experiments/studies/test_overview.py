"""Tests of experiments/studies/overview.py."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.summary import summary
from experiments.studies.overview import metric_names, show_results
from experiments.tracking.store import Store
from experiments.tracking.writing import DESCRIPTION, LONGEST_TAG, Tracker, start_run


def summary_of(cells: list[str]) -> pd.DataFrame:
    """A summary of cells whose accuracies are 0.5, 0.51, ... with two seeds; the last cell has not finished."""
    rows = [
        {"cell": cell, "seed": seed, "status": "FINISHED", "seconds": 1.0, "images_per_second": 1.0}
        | {"linear_top1": 0.5 + number / 100}
        for number, cell in enumerate(cells[:-1])
        for seed in (0, 1)
    ]
    expected = [
        {"cell": cell, "paper": None, "direction": None, "against": cells[0], "caveat": None, "source": None}
        for cell in cells
    ]
    return summary(pd.DataFrame(rows), expected, "linear_top1", {})


@pytest.fixture
def study(store: Store) -> Tracker:
    return start_run(store, "study", "study", {})


def description(study: Tracker) -> str:
    study.flush()
    return str(study.store.client.get_run(study.run_id).data.tags[DESCRIPTION])


def test_the_page_of_a_study_shows_its_finding_its_table_and_the_mean_of_each_cell(study: Tracker) -> None:
    cells = ["baseline", "no crop", "<b>bold</b> | x", "unfinished"]
    found = "Without crop, it is higher. Also higher: '<b>bold</b> | x'."
    show_results(study, {"linear_top1": summary_of(cells), "knn_top1": summary_of(cells)}, found)
    finding, _, *lines = description(study).splitlines()
    assert finding == r"Without crop, it is higher. Also higher: '&lt;b\>bold&lt;/b\> | x'."
    assert lines[0].split("|")[1:4] == [" cell".ljust(len(lines[0].split("|")[1])), *lines[0].split("|")[2:4]]
    assert "linear top-1 (%)" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["baseline", "no crop"]
    assert "50.00" in lines[2]
    assert "+1.00" in lines[3]
    assert r"&lt;b\>bold&lt;/b\> \| x" in lines[4]
    assert study.record().metrics == pytest.approx(
        {"linear_top1/baseline": 0.5, "linear_top1/no crop": 0.51, "linear_top1/b bold b x": 0.52}
    )


def test_a_description_that_would_be_too_long_says_how_many_rows_are_missing(study: Tracker) -> None:
    show_results(study, {"linear_top1": summary_of([f"cell {number}" for number in range(200)])}, "It is found.")
    text = description(study)
    assert len(text) <= LONGEST_TAG
    shown = text.count("\n| cell ") - 1  # without the header
    assert f"{200 - shown} more rows are in the file linear_top1.md" in text


def test_metrics_of_cells_have_names_that_the_store_accepts_and_that_differ(study: Tracker) -> None:
    cells = ["a+b", "a,b", "../x", "..", "", "temperature=0.1, loss.normalize=False", "déjà vu", "x" * 900]
    names = metric_names(cells, "linear_top1")
    assert len(set(names)) == len(cells)
    study.log(dict.fromkeys(names, 0.5))
    assert np.array_equal(sorted(study.record().metrics), sorted(names))
    assert names[:2] == ["linear_top1/a b", "linear_top1/a b_"]
    assert names[5] == "linear_top1/temperature 0.1 loss.normalize False"
