"""`simclr ui` serves MLflow's pages, and ends together with all processes of the server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_the_pages_are_served_until_ui_is_stopped(tmp_path: Path) -> None:
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
        while "Uvicorn running on" not in output:
            line = process.stdout.readline()
            assert line, f"the server ended: {output}"
            output += line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as page:
            assert page.read() == b"OK"
    finally:
        process.terminate()
        process.communicate()  # returns when every process that shares its output has ended
    assert process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
