"""experiments/commands/ui.py. tests/system/test_ui.py starts the server."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

import pytest

from experiments.commands import ui
from experiments.tracking import pages
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
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
        assert_one_line(
            invoke("ui", "--port", port), 2, f"can't listen on port {port}: {os.strerror(errno.EADDRINUSE)}. Ch"
        )


def test_a_server_that_shows_these_runs_already_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tracking.pages.ANSWER_SECONDS", 600)  # other tests may keep this machine busy
    places = [store.client.get_experiment(store.experiment).artifact_location, "file:///another/home"]

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"experiment": {"artifact_location": places.pop(0)}}).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        done = invoke("ui", "--port", port, "--no-browser")
        assert done.exit_code == 0, done.output
        address = f"http://127.0.0.1:{port}/#/experiments/{store.experiment}/runs?workflowType=machine_learning"
        assert done.stdout == f"all runs: {address}\nthese runs are already served there\n"
        assert_one_line(invoke("ui", "--port", port), 2, f"can't listen on port {port}")
        server.shutdown()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Queue[str]:
    """The addresses that are opened in the browser."""
    addresses: Queue[str] = Queue()
    monkeypatch.setattr(ui.webbrowser, "open", addresses.put)
    monkeypatch.setattr(ui.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return addresses


def test_the_runs_are_opened_in_model_training(
    store: Store, opened: Queue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = start_run(store, "abc", "study", {})
    study.finish("FINISHED")
    monkeypatch.setattr(pages, "serve", lambda store, listening: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    runs = f"http://127.0.0.1:{port}/#/experiments/{store.experiment}/runs"
    done = invoke("ui", "--port", port)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"all runs: {runs}?workflowType=machine_learning",
        f"study abc: {runs}/{study.run_id}?workflowType=machine_learning",
        "links in reports lead to port 5000, not here",
        "Ctrl-C stops the server",
    ]
    assert opened.get(timeout=60) == f"{runs}?workflowType=machine_learning"
    for options, screen in ((["--no-browser"], ":0"), ([], "")):
        monkeypatch.setenv("DISPLAY", screen)
        assert invoke("ui", "--port", port, *options).stdout == done.stdout
    assert opened.empty()


def test_runs_on_a_server_are_opened_there(store: Store, opened: Queue[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tracking.store.Store", lambda folder: store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@there:5000/")
    runs = f"http://there:5000/#/experiments/{store.experiment}/runs?workflowType=machine_learning"
    assert invoke("ui").stdout == f"all runs: {runs}\n"
    assert opened.get(timeout=60) == runs
