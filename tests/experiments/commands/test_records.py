"""experiments/commands/records.py. tests/system/test_ui.py starts the server."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.commands import records
from experiments.tracking.store import Store
from tests.experiments.commands.helpers import assert_one_line, invoke


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store that commands use."""
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path / "home"))
    return Store(tmp_path / "home")


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
