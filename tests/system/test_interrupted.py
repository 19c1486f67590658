"""Ctrl-C and SIGTERM while `simclr pretrain` trains, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.tracking.store import Store
from simclr.config import to_toml
from simclr.weights.checkpoint import checkpoints
from tests.helpers import ROOT, tiny

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_ends_with_exit_code_130(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(to_toml(tiny(train={"epochs": 2000, "knn_every": 1})))
    process = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "cli.py"), "pretrain", "--config", "long.toml"],
        cwd=tmp_path,
        env=os.environ | {"SIMCLR_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch"):
            break
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "\nstopping: saving a checkpoint (press Ctrl-C again to stop at once)\nstopped after step " in errors
    assert errors.endswith(": to resume, run the same command with --resume\n")
    (record,) = Store(tmp_path / "home").records()
    assert record.status == "KILLED"
    assert len(checkpoints(record.folder)) > 0
