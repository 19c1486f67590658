"""A first run on a disk that fills up, at many fill levels, and the same command after some space was freed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.tracking.store import Store
from simclr.config import to_toml
from tests.helpers import ROOT, tiny

LEVELS = int(os.environ.get("SIMCLR_TEST_DISK_LEVELS", "2"))  # the long version has 20
DISK = 64 << 20  # bytes; the run below needs far less

pytestmark = pytest.mark.slow


def pretrain(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cli.py"), "pretrain", "--config", str(home.parent.parent / "tiny.toml")]
    environment = os.environ | {"SIMCLR_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)


def weights(home: Path) -> dict[str, np.ndarray]:
    (record,) = [record for record in Store(home).records() if record.finished]
    return load_file(record.artifact("model.safetensors"))


def used(folder: Path) -> int:
    return shutil.disk_usage(folder).used


def test_a_full_disk_is_reported_and_the_run_can_be_made_afterwards(
    small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    disk = small_disk(DISK)
    (tmp_path / "tiny.toml").write_text(to_toml(tiny(train={"epochs": 3, "knn_every": 1, "checkpoint_minutes": 1e-9})))
    assert pretrain(disk / "reference").returncode == 0
    expected, need = weights(disk / "reference"), used(disk)
    shutil.rmtree(disk / "reference")
    ends = []
    for level in range(LEVELS):
        home = disk / f"home{level}"
        free = need * (level + 1) // (LEVELS + 1)
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - free))
        full = pretrain(home)
        ends.append(full.returncode)
        where = f"with {free >> 10} of {need >> 10} KiB free: {full.stderr}"
        assert full.returncode in (0, 1, 2), where
        assert "Traceback" not in full.stderr, where
        assert len(full.stderr.splitlines()) < 10, where
        (disk / "filler").unlink()
        again = pretrain(home)
        if "add --resume" in again.stderr:
            again = pretrain(home, "--resume")
        assert again.returncode == 0, f"{where}\nafterwards: {again.stderr}"
        found = weights(home)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)
        shutil.rmtree(home)
    assert any(ends), "at least one level must run out of space"
