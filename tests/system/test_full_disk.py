"""A first run on a disk that fills up, at many fill levels, and the same command after some space was freed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.tracking.store import Store
from simclr.config import to_toml
from tests.helpers import tiny
from tests.system.processes import start

LEVELS = int(os.environ.get("SIMCLR_TEST_DISK_LEVELS", "2"))  # the long version has 20
DISK = 64 << 20  # bytes; the run below needs far less

pytestmark = pytest.mark.slow


def pretrain(home: Path, *options: str) -> tuple[int, str]:
    """The exit code of the command, and what it printed. Its home is on a disk whose folder is beside tiny.toml."""
    output = home.parent.parent / "output.txt"
    process = start(home, " ".join(("pretrain --config ../tiny.toml", *options)), str(output))
    process.join()
    return process.exitcode, output.read_text()


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
    code, printed = pretrain(disk / "reference")
    assert code == 0, printed
    expected, need = weights(disk / "reference"), used(disk)
    shutil.rmtree(disk / "reference")
    ends = []
    for level in range(LEVELS):
        home = disk / f"home{level}"
        free = need * (level + 1) // (LEVELS + 1)
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - free))
        code, printed = pretrain(home)
        ends.append(code)
        where = f"with {free >> 10} of {need >> 10} KiB free: {printed}"
        assert code in (0, 1, 2), where
        assert "Traceback" not in printed, where
        assert len(printed.splitlines()) < 10, where
        (disk / "filler").unlink()
        code, printed = pretrain(home)
        if "add --resume" in printed:
            code, printed = pretrain(home, "--resume")
        assert code == 0, f"{where}\nafterwards: {printed}"
        found = weights(home)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)
        shutil.rmtree(home)
    assert any(ends), "at least one level must run out of space"
