"""`simclr ui` serves MLflow's pages, and ends together with all processes of the server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("stop", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_one_worker_serves_the_pages_until_ui_is_stopped(stop: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "cli.py"), "ui", "--port", str(port)],
        cwd=tmp_path,
        env=os.environ | {"SIMCLR_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        output = ""
        while f"MLflow: http://127.0.0.1:{port}" not in output:
            line = process.stdout.readline()
            assert line, f"the server ended: {output}"
            output += line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as page:
            assert page.read() == b"OK"
        (server,) = children_of(process.pid)
        (worker,) = children_of(server)
        assert children_of(worker) == []
    finally:
        process.send_signal(getattr(signal, stop))
        process.communicate()  # returns when every process that shares its output has ended
    assert process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return [child for child, parent in pairs if parent == pid]
