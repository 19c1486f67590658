from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from experiments import tracking
from experiments.tracking import Store, ui_command
from simclr.errors import RunFailed, UserError
from simclr.train.loop import Interrupted
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def start(store: Store, name: str = "run", key: str = "k") -> str:
    tags = {"kind": "pretrain", "config_key": key, "data_digest": "d", "seed": "0"}
    with store.start(name, tags, {"optim.lr": 0.1}).finishing(Interrupted) as tracker:
        tracker.log({"train/loss": 2.0}, 1)
        tracker.log({"train/loss": 1.0}, 2)
    return tracker.run_id


def test_a_run_keeps_its_points_params_and_artifacts(store: Store) -> None:
    run_id = start(store)
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optim.lr": "0.1"}
    assert store.history(run_id, "train/loss").to_dict("list") == {"step": [1, 2], "value": [2.0, 1.0]}
    tracker = store.reopen(run)
    tracker.artifact("note.txt", lambda path: path.write_text("here"))
    assert store.artifact(run_id, "note.txt").read_text() == "here"
    assert store.artifact(run_id, "note.txt").is_relative_to(store.folder)
    with pytest.raises(UserError, match=r"has no artifact 'gone\.txt'"):
        store.artifact(run_id, "gone.txt")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted(3), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (ValueError("boom"), "FAILED"),
        (SystemExit(1), "FAILED"),
    ],
)
def test_a_run_that_ends_early_says_how(store: Store, error: BaseException, status: str) -> None:
    tracker = store.start("early", {"kind": "pretrain"}, {})
    tracker.log({"train/loss": 3.0}, 1)
    with pytest.raises(type(error)), tracker.finishing(Interrupted):
        raise error
    run = store.client.get_run(tracker.run_id)
    assert run.info.status == status
    assert run.data.metrics == {"train/loss": 3.0}
    assert ("boom" in run.data.tags.get("error", "")) == isinstance(error, ValueError)


def test_a_run_is_trained_by_one_process_at_a_time(store: Store) -> None:
    tracker = store.start("locked", {"kind": "pretrain"}, {})
    with (
        tracker.finishing(Interrupted),
        pytest.raises(UserError, match="another process"),
        tracker.finishing(Interrupted),
    ):
        pass
    assert store.client.get_run(tracker.run_id).info.status == "FINISHED"


def test_runs_are_found_by_key_name_and_id(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UserError, match="no run in"):
        store.find(None)
    first, second = start(store, "a", "k1"), start(store, "b", "k2")
    assert [run.info.run_id for run in store.of_key("k1", "d")] == [first]
    assert store.of_key("k1", "other data") == []
    assert store.find(None).info.run_id == second
    assert store.find("a").info.run_id == first
    assert store.find(first[:8]).info.run_id == first
    with pytest.raises(UserError, match="no run is called 'c'"):
        store.find("c")
    assert list(store.table()["name"]) == ["b", "a"]


OPEN = """
import sys, time
from pathlib import Path
from experiments import tracking
from experiments.tracking import Store
from simclr.train import Interrupted
while time.time() < float(sys.argv[2]): pass
store = Store(Path(sys.argv[1]))
with store.start("together", {"kind": "pretrain"}, {}).finishing(Interrupted) as tracker:
    for step in range(20):
        tracker.log({"train/loss": 1.0}, step)
        tracker.flush()
"""


@pytest.mark.slow
def test_four_processes_that_start_at_once_on_a_fresh_store_all_succeed(tmp_path: Path) -> None:
    import time

    command = [sys.executable, "-c", OPEN, str(tmp_path / "fresh"), str(time.time() + 20)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    store = Store(tmp_path / "fresh")
    assert [run.info.status for run in store.search()] == ["FINISHED"] * 4
    assert all(len(store.history(run.info.run_id, "train/loss")) == 20 for run in store.search())


def test_a_store_elsewhere_is_used_and_one_that_cannot_be_opened_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    start(Store(tmp_path / "home"))
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "home" / "mlflow.db").exists()
    (tmp_path / "garbage.db").write_text("not a database, but long enough to look like one" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'garbage.db'}")
    with pytest.raises(UserError, match="can't open the tracking store"):
        Store(tmp_path / "home")


def test_the_page_is_served_on_loopback_without_telemetry_or_jobs(tmp_path: Path) -> None:
    command, environment = ui_command(tmp_path, 5005)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_a_store_that_refuses_is_waited_for_in_training_but_nothing_is_lost_unsaid(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = store.start("refused", {"kind": "pretrain"}, {})
    send = store.client.log_batch

    def refuse(*arguments: object, **entries: object) -> None:
        raise MlflowException("database is locked")

    monkeypatch.setattr(tracking, "FLUSH_SECONDS", -1.0)
    monkeypatch.setattr(store.client, "log_batch", refuse)
    tracker.log({"train/loss": 1.0}, 1)
    with pytest.raises(RunFailed, match="database is locked"):
        tracker.flush()
    with pytest.raises(ValueError, match="why it failed"), tracker.finishing(Interrupted):
        raise ValueError("why it failed")
    assert store.client.get_run(tracker.run_id).info.status == "FAILED"
    monkeypatch.setattr(store.client, "log_batch", send)
    tracker.flush()
    assert len(store.history(tracker.run_id, "train/loss")) == 1
    monkeypatch.setattr(store.client, "log_batch", refuse)
    clock = SimpleNamespace(time=time.time, monotonic=lambda: tracker.tried + 2 * tracking.PATIENCE_SECONDS)
    monkeypatch.setattr(tracking, "time", clock)
    tracker.log({"train/loss": 1.0}, 2)  # the last figures were sent long ago: patience begins now
    with pytest.raises(RunFailed, match="can't write to the tracking store"):
        tracker.log({"train/loss": 1.0}, 3)
