"""What a process left in its journal, and who sends it when."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from experiments.tracking import sending
from experiments.tracking.claims import claim_config
from experiments.tracking.faults import Refused
from experiments.tracking.sending import BEGAN
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, start_run
from simclr.errors import RunFailed
from tests.experiments.tracking.test_sending import DELETED, Blocked, die, left_in, locked, open_sender, point

RESTORABLE = MlflowException("The run must be active. Current state is deleted.", INVALID_PARAMETER_VALUE)
DENIED = PermissionError(13, "Permission denied", "/artifacts/run")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sending, "COLLECT_SECONDS", 0.0)


def test_the_journal_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    blocked = Blocked()
    sender, client = open_sender(tmp_path, blocked)
    sender.put("run", metrics=[point(1.0)])
    assert blocked.reached.wait(60)
    other, store = open_sender(tmp_path)
    other.flush("run")
    assert store.stored == []
    blocked.released.set()
    sender.flush("run")
    assert client.stored == [("run", "loss", 1.0)]


def test_a_line_cut_off_when_the_machine_died_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1-2-3.jsonl").write_text('{"run": "run", "metrics": [["loss", 1.0, 1000, 1]]}\n{"run": "run", "met')
    sender, client = open_sender(tmp_path)
    sender.flush("run")
    assert client.stored == [("run", "loss", 1.0)]
    assert "line 2 is damaged" in caplog.text
    assert left_in(tmp_path) == []


def test_nothing_describes_a_run_of_which_an_entry_was_refused(tmp_path: Path) -> None:
    """Otherwise an evaluation whose table was refused would count as complete."""
    blocked = Blocked(DELETED)
    sender, client = open_sender(tmp_path, blocked)
    sender.put_file("run", "table.csv", lambda path: path.write_text("table"))  # refused after the rest is in line
    sender.put("run", tags={"protocol/eval/knn": "3"})
    sender.put("run", status="FINISHED", ended=0)
    blocked.released.set()
    with pytest.raises(Refused):
        sender.flush("run")
    assert client.stored == [("run", "status", "FAILED")]
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("error", [RESTORABLE, DENIED])
def test_what_is_refused_until_somebody_mends_it_is_kept_and_hinders_no_other_run(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = Blocked()

    def obstacle(run_id: str) -> None:
        blocked(run_id)
        if run_id == "run":
            raise error

    sender, _ = open_sender(tmp_path, obstacle)
    sender.put("run", metrics=[point(1.0)])
    sender.put_file("run", "table.csv", lambda path: path.write_text("table"))
    sender.put("run", tags={"protocol/eval/knn": "3"})
    sender.put("run", status="FINISHED", ended=0)
    sender.put("other", metrics=[point(2.0)])
    blocked.released.set()
    with pytest.raises(Refused, match=r"refuses .* of run run: .* It is kept in .*, and the next command"):
        sender.flush("run")
    with pytest.raises(Refused):  # so that no checkpoint passes what is not in the store
        sender.sync("run")

    again, client = open_sender(tmp_path, obstacle)
    again.put("other", metrics=[point(3.0)])
    again.flush("other")
    assert client.stored == [("other", "loss", 3.0)]
    assert "refuses what was recorded of run run" in caplog.text

    mended, client = open_sender(tmp_path)
    mended.flush("run")
    assert client.stored == [
        ("run", "loss", 1.0),
        ("run", "table.csv", "table"),
        ("run", "protocol/eval/knn", "3"),
        ("run", "status", "FINISHED"),
    ]
    assert left_in(tmp_path) == []


def test_a_journal_from_before_a_run_began_anew_changes_neither_its_tags_nor_its_status(tmp_path: Path) -> None:
    old, new = (
        f'{{"run": "run", "time": {time}, "tags": {{"error": "{time}"}}}}\n'
        f'{{"run": "run", "time": {time}, "metrics": [["loss", {time}, 1000, 1]]}}\n'
        f'{{"run": "run", "time": {time}, "status": "KILLED", "ended": {time}}}\n'
        for time in (1000, 3000)
    )
    sender, client = open_sender(tmp_path)
    client.tags[BEGAN] = "2000"
    (tmp_path / "1-2-3.jsonl").write_text(old + new)
    sender.adopt()
    sender.flush("run")
    assert client.stored == [
        ("run", "loss", 1000),
        ("run", "error", "3000"),
        ("run", "loss", 3000),
        ("run", "status", "KILLED"),
    ]


# --- with MLflow ------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_completed_by_the_next_store_that_opens(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = start_run(store, "run", "pretrain", {})
    tracker.flush()
    monkeypatch.setattr(sending, "PATIENCE_SECONDS", 0.0)

    def finish() -> None:
        with tracker.finishing(KeyboardInterrupt):
            monkeypatch.setattr(store.client, "log_batch", lambda *_, **__: locked(""))
            tracker.log({"train/loss": 1.0}, 1)
            tracker.artifact("note.txt", lambda path: path.write_text("here"))

    with pytest.raises(RunFailed, match="3 entries were not sent"):
        finish()
    die(store.sender)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'another.db'}")
    assert Store(store.folder).records() == []  # the entries are for another store
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    record: Record = Store(store.folder).get(tracker.run_id)
    assert record.finished
    assert record.metrics == {"train/loss": 1.0}
    assert record.artifact("note.txt").read_text() == "here"


def killed_without_the_store(store: Store, run_id: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of a process that trained a run until Ctrl-C while the database was locked."""
    other = Store(store.folder)
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(sending, "PATIENCE_SECONDS", 0.0)
        with Tracker(other, run_id).finishing(KeyboardInterrupt) as tracker:
            patch.setattr(other.client, "log_batch", lambda *_, **__: locked(""))
            tracker.log({"train/loss": 2.0}, 1)
            tracker.tag({"error": "an old one"})
            raise KeyboardInterrupt
    return other


def test_whoever_claims_a_config_reads_what_the_process_before_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start_run(store, "run", "pretrain", {}, {"config_key": "k", "data_digest": "d"}).run_id
    die(killed_without_the_store(store, run_id, monkeypatch).sender)
    with claim_config(store, "k", "d"):
        (record,) = store.of_key("k", "d")
        assert (record.status, record.metrics) == ("KILLED", {"train/loss": 2.0})


def test_a_run_that_finished_stays_so_whatever_an_earlier_process_of_it_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count(time.time_ns())
    monkeypatch.setattr(time, "time_ns", lambda: next(ticks))  # all of it happens within a millisecond
    run_id = start_run(store, "run", "pretrain", {}).run_id
    other = killed_without_the_store(store, run_id, monkeypatch)
    with Tracker(store, run_id).finishing(KeyboardInterrupt) as tracker:
        tracker.log({"train/loss": 1.0}, 2)
    die(other.sender)
    record = Store(store.folder).get(run_id)
    assert record.finished
    assert "error" not in record.tags
    assert list(record.history("train/loss")["value"]) == [2.0, 1.0]
