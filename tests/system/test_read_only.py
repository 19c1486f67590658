"""A home on a file system that can't be written, with and without the log of a writer that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr.errors import RunFailed
from tests.helpers import ROOT

WRITER = """
import os, signal, sys
from pathlib import Path
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
tracker = start_run(Store(Path(sys.argv[1])), "run", "pretrain", {})
tracker.artifact("note.txt", lambda path: path.write_text("here"))
tracker.finish("FINISHED")
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(params=["killed", "ended"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A home with one run, mounted for reading only."""
    source, place = tmp_path / "source", tmp_path / "home"
    place.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", WRITER, str(source), request.param], env=environment, check=False)
    assert done.returncode == (-signal.SIGKILL if request.param == "killed" else 0)
    assert (source / "mlflow.db-wal").exists() == (request.param == "killed")
    mount = ["mount", "-o", "bind,ro", str(source), str(place)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a folder for reading only needs Linux and the rights to do so")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # this process may keep its database open


def test_a_home_on_a_read_only_file_system_is_read(home: Path) -> None:
    store = Store(home)
    (record,) = store.records()
    assert (record.name, record.status) == ("run", "FINISHED")
    assert record.artifact("note.txt").read_text() == "here"
    with pytest.raises(RunFailed, match=r"attempt to write a readonly database\. Make the folder writable"):
        start_run(store, "new", "pretrain", {})
