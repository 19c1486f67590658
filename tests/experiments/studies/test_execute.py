"""A study from beginning to end. The cells do no work."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.studies import execute as workflow
from experiments.studies import run as runner
from experiments.studies.cell import BASELINE
from experiments.studies.execute import StudyOutcome, execute
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from simclr.errors import RunFailed, UserError
from simclr.progress import Observer
from simclr.train.loop import Interrupted
from tests.experiments.studies.helpers import leave_out_figures, previous_plan

COMMAND = "simclr ablate --vary optim.lr=1e30,0.01"


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_figures(monkeypatch)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the work on a cell by nothing. The list holds the names of the cells."""
    cells: list[str] = []

    def skip(study: Record, cell: Any, *arguments: object) -> float:
        cells.append(cell.name)
        return 0.5

    monkeypatch.setattr(runner, "run_cell", skip)
    return cells


def run_previous(store: Store, observer: Observer | None = None) -> StudyOutcome:
    return execute("old", previous_plan(), store, [0], COMMAND, observer or Observer())


def test_a_study_is_run_closed_and_reported(previous: Record, store: Store, ran: list[str]) -> None:
    said: list[str] = []

    class Watch(Observer):
        def say(self, text: str) -> None:
            said.append(text)

    outcome = run_previous(store, Watch())
    assert ran == [BASELINE, "lr=1e+30", "lr=0.01"]
    assert said == [f"{name}, seed 0" for name in ran]
    assert (outcome.study.id, outcome.study.status, outcome.failures) == (previous.id, "FINISHED", [])
    assert "72.14" in outcome.report  # the baseline's accuracy
    assert COMMAND in outcome.report
    outcome.check()


def test_a_failed_cell_is_in_the_outcome_and_the_record(
    previous: Record, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(study: Record, cell: Any, *arguments: object) -> float:
        if cell.name == "lr=1e+30":
            raise RunFailed("training diverged")
        return 0.5

    monkeypatch.setattr(runner, "run_cell", fail)
    statuses: list[str] = []
    finish = Tracker.finish

    def watched(self: Tracker, status: str) -> None:
        statuses.extend([status] * (self.run_id == previous.id))
        finish(self, status)

    monkeypatch.setattr(Tracker, "finish", watched)
    outcome = run_previous(store)
    assert statuses == ["FAILED"]  # it never looks finished
    assert outcome.failures == ["'lr=1e+30', seed 0: training diverged"]
    assert "72.14" in outcome.report
    assert outcome.study.status == "FAILED"
    assert outcome.study.tags["error"] == "RunFailed: 'lr=1e+30', seed 0: training diverged"
    with pytest.raises(RunFailed, match=r"^'lr=1e\+30', seed 0: training diverged$"):
        outcome.check()


def test_a_study_whose_cells_all_fail_has_no_report(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RunFailed("the disk is full")

    monkeypatch.setattr(runner, "run_cell", fail)
    outcome = run_previous(store)
    assert (outcome.report, outcome.study.status, len(outcome.failures)) == ("", "FAILED", 3)


def test_an_interrupted_study_is_marked_and_resumed(
    previous: Record, store: Store, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise Interrupted(3)

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "run_study", stop)
        with pytest.raises(Interrupted):
            run_previous(store)
    assert store.get(previous.id).status == "KILLED"
    assert run_previous(store).study.status == "FINISHED"


@pytest.mark.usefixtures("previous", "ran")
def test_two_processes_cannot_run_a_study_at_the_same_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[str] = []

    def run_again(*arguments: object) -> list[str]:
        with pytest.raises(UserError, match="another process is running the study 'old'") as caught:
            run_previous(store)
        inner.append(str(caught.value))
        return []

    monkeypatch.setattr(workflow, "run_study", run_again)
    run_previous(store)
    assert len(inner) == 1
