"""The tables of the paper: what paper.toml says, what is trained, and what the report finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.summary import CANT_TELL
from analysis.verdicts import VERDICTS
from experiments.runs import train
from experiments.runs.prepare import prepare
from experiments.studies import paper
from experiments.studies.axes import axes
from experiments.studies.forecast import Forecast, _seeds_done
from experiments.studies.paper import Claim, Part, Row, Table, plan_paper, predict, run_part, tables
from experiments.studies.paper_report import find, numbers, overview, report
from experiments.studies.plan import StudyPlan
from experiments.tracking.store import Store
from experiments.tracking.writing import Tracker
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.progress import Observer
from simclr.train.loop import Interrupted
from tests.experiments.studies.helpers import leave_out_figures
from tests.helpers import tiny

LINEAR, ENTROPY = "linear_top1", "softmax_entropy"
COLD, WARM = {"loss.temperature": 0.1}, {"loss.temperature": 0.5}
SMALL = {  # two tables that share the baseline (a temperature of 0.2) and a temperature of 0.1
    "one": Table(
        title="Table 1",
        about="temperatures",
        passage="It matters.",
        seeds=1,
        against="0.1",
        rows=(Row(name="0.1", set=COLD, paper={LINEAR: 64.4}), Row(name="0.5", set=WARM, paper={LINEAR: 60.7})),
    ),
    "two": Table(
        title="Table 2",
        about="entropy",
        passage="It rises.",
        seeds=1,
        against="0.1",
        evaluate="no-labels",
        columns={LINEAR: "linear top-1 (%)", ENTROPY: "entropy"},
        compared=(ENTROPY,),
        rows=(
            Row(name="0.1", set=COLD, paper={ENTROPY: 4.5}),
            Row(name="0.2", set={"loss.temperature": 0.2}, paper={ENTROPY: 6.2}),
        ),
    ),
}


def wide(**sections: object) -> Config:
    """The tiny config with a network of which one of half the width can be made."""
    return tiny(model={"width": 0.25}, **sections)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The small tables. Nothing is timed: a run takes 10 s to train and 2 s to evaluate."""

    def forecast(plan: StudyPlan, store: Store, seeds: Sequence[int], observer: Observer) -> list[Forecast]:
        first = [prepare(cell.of_seed(seeds[0]), store.folder) for cell in plan.cells]
        done = [_seeds_done(cell, each, store, seeds) for cell, each in zip(plan.cells, first, strict=True)]
        return [Forecast(cell, 10.0, 1, seeds, 2.0) for cell, seeds in zip(plan.cells, done, strict=True)]

    leave_out_figures(monkeypatch)
    monkeypatch.setattr(paper, "tables", lambda: SMALL)
    monkeypatch.setattr(paper, "forecast", forecast)
    return plan_paper(tiny(train={"epochs": 1}), "paper-tiny")


def test_the_tables_are_consistent() -> None:
    for table, part in zip(tables().values(), plan_paper(wide(), "p"), strict=True):
        names = [row.name for row in part.rows]
        assert len(set(names)) == len(names) > 1
        assert set(part.cells) == set(names)
        assert {cell.name for cell in part.plan.cells} >= set(part.cells.values())
        for row in part.rows:
            assert set(row.paper) <= set(table.columns)
            assert (row.against or table.against or names[0]) in names
        for claim in table.claims:
            assert set(claim.weights) <= set(names)
            assert sum(claim.weights.values()) == 0
        assert set(table.compared) <= set(table.columns)
        assert all(set(order) <= set(names) for order in table.orders or ())
        assert sum(1 for _ in find(part, _Empty()).tested) > 0  # type: ignore[arg-type]


class _Empty:
    def records(self, **_: object) -> list[object]:
        return []


def test_the_papers_figures_are_those_of_the_axes() -> None:
    """Both files have them, so neither can be changed alone."""
    known = {
        (name, frozenset((path, str(value)) for path, value in cell.set.items())): cell.paper
        for name, axis in axes().items()
        for cell in axis.cells
        if cell.paper is not None
    }
    found = Counter()
    for key, axis in (("table1", "color-strength"), ("table4", "losses"), ("table5", "temperature")):
        for row in tables()[key].rows:
            figure = known.get((axis, frozenset((path, str(value)) for path, value in row.set.items())))
            if figure is not None:
                assert row.paper[LINEAR] == figure, row.name
                found[key] += 1
    assert found == {"table1": 5, "table4": 5, "table5": 6}


def test_rows_follow_the_preset() -> None:
    parts = {part.study: part for part in plan_paper(wide(train={"epochs": 3, "batch_size": 256}), "p")}
    by_name = {cell.name: cell.config for cell in parts["p-fig9"].plan.cells}
    assert by_name["batch x 4, epochs x 1/2"].train.batch_size == 1024
    assert by_name["batch x 4, epochs x 1/2"].train.epochs == 2
    assert {config.optim.lr_scaling for config in by_name.values()} == {"linear"}
    assert parts["p-fig9"].caveat is None
    assert len(parts["p-table1"].seeds) == 5
    (fig9,) = (each for each in plan_paper(wide(train={"batch_size": 128}), "p") if each.study == "p-fig9")
    assert fig9.caveat == "the paper has train.batch_size from 256 up"
    quick = plan_paper(wide(seed=4), "p", quick=True)
    assert {tuple(part.seeds) for part in quick} == {(4,)}
    assert len(quick) < len(parts)
    with pytest.raises(UserError, match=r"Figure 7 can't be made around tiny: model\.width = 0\.0625"):
        plan_paper(tiny(), "p")


class Stops(Observer):
    """Asks to stop when the second run has begun."""

    def __init__(self) -> None:
        self.runs = 0

    def began(self, run_id: str, total: int) -> None:
        self.runs += 1

    def stop(self) -> bool:
        return self.runs == 2


def test_a_paper_that_was_stopped_is_resumed_and_nothing_is_trained_twice(
    small: list[Part], shared_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = predict(small, shared_store)
    assert [cost[1:] for cost in costs] == [(3, 0, 36.0), (0, 0, 0.0)]  # the second needs no run of its own
    with pytest.raises(Interrupted):
        run_part(small[0], shared_store, "simclr paper", Stops())
    report(small, shared_store, "simclr paper", tmp_path / "out")
    page = (tmp_path / "out" / "paper.md").read_text()
    assert ("Not started yet: Table 2." in page, "## Table 1" in page, "## Table 2" in page) == (True, True, False)
    for part in small:
        assert run_part(part, shared_store, "simclr paper") == []
    finished = [run for run in shared_store.records(kind="pretrain") if run.finished]
    assert len(finished) == 3
    assert [cost[1:] for cost in predict(small, shared_store)] == [(3, 3, 0.0), (0, 0, 0.0)]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this must not run again")

    monkeypatch.setattr(train, "pretrain", refuse)
    monkeypatch.setattr(paper, "evaluate_encoder", refuse)
    assert run_part(small[1], shared_store, "simclr paper") == []
    found = report(small, shared_store, "simclr paper", tmp_path / "out", quick=True)
    table = pd.read_csv(tmp_path / "out" / "paper.csv", dtype={"row": str}).set_index(["table", "row", "metric"])
    line = table.loc[("Table 2", "0.2", ENTROPY)]
    assert ",1," in (tmp_path / "out" / "paper.csv").read_text().splitlines()[1]  # a whole number of seeds
    assert isinstance(numbers(found)["n"][0], int)
    assert line["paper_difference"] == pytest.approx(6.2 - 4.5)
    assert line["difference"] == pytest.approx(line["here"] - table.loc[("Table 2", "0.1", ENTROPY), "here"])
    run = shared_store.records(kind="pretrain", cell="0.1")[0]
    assert table.loc[("Table 2", "0.1", ENTROPY), "here"] == pytest.approx(run.metrics[f"eval/{ENTROPY}"])
    assert table.loc[("Table 1", "0.1", LINEAR), "here"] == pytest.approx(100 * run.metrics[f"eval/{LINEAR}"])
    assert (line["verdict"], table.loc[("Table 1", "0.5", LINEAR), "verdict"]) == (CANT_TELL, CANT_TELL)
    assert overview(found)[CANT_TELL].tolist() == [1, 1]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("Table 1: temperatures") < page.index("Table 2: entropy")
    assert "quick look" in page
    assert "The test set of this data has been used for" in page
    assert "64.4" in page
    Tracker(shared_store, run.id).tag_protocols({ENTROPY: "3-other"})  # measured again, with other settings
    assert find(small[1], shared_store).values[ENTROPY]["0.1"].isna().all()
    assert overview([find(part, _Empty()) for part in small])[CANT_TELL].tolist() == [0, 0]  # type: ignore[arg-type]
    assert r"\begin{table}" in (tmp_path / "out" / "paper.tex").read_text()


def test_images_without_labels_are_refused(
    small: list[Part], store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper, "open_dataset", lambda *_: replace(digits, classes=("one",)))
    with pytest.raises(UserError, match="paper compares accuracies, so it needs labels"):
        predict(small, store)


def test_what_the_paper_says_becomes_a_sign() -> None:
    rows = (Row(name="a", set=COLD, paper={LINEAR: 3.0}), Row(name="b", set=WARM, paper={LINEAR: 1.0}, against="a"))
    claims = (
        Claim(says="a is better", weights={"a": 1.0, "b": -1.0}),
        Claim(says="a is as good", weights={"a": 1.0, "b": -1.0}, metric="transformation_turn", direction="same"),
    )
    columns = {LINEAR: "linear", "transformation_turn": "rotation"}
    table = Table(title="T", about="", passage="", rows=rows, claims=claims, columns=columns)
    (part,) = [paper._part("t", "s", table, tiny(), 3)]
    found = find(part, _Empty())  # type: ignore[arg-type]
    assert [(each.expected, each.side) for each, _ in found.tested] == [
        (-2.0, -1.0),
        (2.0, 1.0),
        (None, 0.0),
    ]
    assert {tested.verdict for _, tested in found.tested} <= set(VERDICTS)
    assert set(numbers([found])["verdict"].dropna()) == {CANT_TELL}
