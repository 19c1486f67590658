"""Ctrl-C and SIGTERM while `simclr pretrain` trains, in a process of its own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from experiments.tracking.store import Store
from simclr.config import to_toml
from simclr.weights.checkpoint import checkpoints
from tests.helpers import tiny
from tests.system.processes import start

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_ends_with_exit_code_130(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(to_toml(tiny(train={"epochs": 100, "knn_every": 1})))
    home, output = tmp_path / "home", tmp_path / "output.txt"
    process = start(home, "pretrain --config long.toml")
    while not (output.exists() and "\nepoch" in output.read_text()):
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join()
    printed = output.read_text()
    assert process.exitcode == 130, printed
    assert "\nstopping: saving a checkpoint (press Ctrl-C again to stop at once)\nstopped after step " in printed
    assert printed.endswith(": resume it with `simclr pretrain --config long.toml --resume`\n")
    (record,) = Store(home).records()
    assert record.status == "KILLED"
    assert len(checkpoints(record.folder)) > 0
