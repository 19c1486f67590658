"""experiments/commands/records.py. tests/system/test_ui.py starts the server."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.commands import records
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from tests.experiments.commands.helpers import assert_one_line, invoke


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store that commands use."""
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path / "home"))
    return Store(tmp_path / "home")


def test_runs_shows_each_run_and_a_column_for_each_protocol(store: Store) -> None:
    for name, protocol in (("one", "3-aaaaaa"), ("two", "3-bbbbbb"), ("three", "3-aaaaaa")):
        tracker = start_run(store, name, "pretrain", {})
        tracker.log({"train/loss": 1.5, "val/knn_k54_top1": 0.5, "eval/knn_top1": 0.25, "eval/linear_top1": 0.75})
        tracker.tag_protocols({"knn_top1": protocol, "linear_top1": "3-cccccc"})
        tracker.finish("FINISHED")
    start_run(store, "four", "pretrain", {}).finish("FAILED")
    done = invoke("runs")
    assert done.exit_code == 0, done.output
    header, *rows = done.stdout.splitlines()
    kinds = ["test kNN (3-aaaaaa)", "test kNN (3-bbbbbb)", "test linear (3-cccccc)"]
    assert header.split() == f"id name kind status started loss val kNN (k = 54) {' '.join(kinds)}".split()
    assert [row.split()[1:4] for row in rows] == [
        ["four", "pretrain", "FAILED"],
        ["three", "pretrain", "FINISHED"],
        ["two", "pretrain", "FINISHED"],
        ["one", "pretrain", "FINISHED"],
    ]
    assert rows[0].rstrip().endswith(rows[0].split()[5])  # no metric
    assert rows[1].split()[6:] == ["1.5000", "0.5000", "0.2500", "0.7500"]
    ends = [header.index(title) + len(title) for title in kinds]
    assert [row[: ends[0]].endswith("0.2500") for row in rows] == [False, True, False, True]
    assert [row[: ends[1]].endswith("0.2500") for row in rows] == [False, False, True, False]


@pytest.mark.usefixtures("store")
def test_without_runs_the_first_command_is_named() -> None:
    assert invoke("runs").stdout == "no runs yet: start one with simclr pretrain --preset shapes\n"


@pytest.mark.usefixtures("store")
def test_a_taken_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_line(invoke("ui", "--port", port), 2, f"can't listen on port {port}: ")


def test_runs_on_a_server_are_opened_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tracking.store.Store", lambda folder: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    assert_one_line(invoke("ui"), 2, "the runs are on the server http://there:5000")


@pytest.mark.usefixtures("store")
def test_a_server_that_ends_by_itself_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen
    fails = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(records.subprocess, "Popen", lambda command, **options: popen(fails, **options))
    monkeypatch.setattr(records.signal, "signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = invoke("ui", "--port", port)
    assert_one_line(done, 1, "MLflow's server ended by itself, with exit code 3")
    assert done.stdout == ""
