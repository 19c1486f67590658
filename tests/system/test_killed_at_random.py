"""Commands on an empty home that are killed at a random moment and run again.

SIMCLR_TEST_KILLS is the number of runs that are killed; there are 0.3 times as many studies and 0.2 times as many
searches. `SIMCLR_TEST_KILLS=100 python -m pytest -m long tests/system/test_killed_at_random.py` is the long version.
SIMCLR_TEST_SEED draws other moments, so that a long series can be run in parts.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from experiments.tracking.store import Record, Store
from simclr.weights.checkpoint import checkpoints
from tests.system.processes import COMMANDS, finish, runs_of, start, write_config

KILLS = int(os.environ.get("SIMCLR_TEST_KILLS", "5"))
SEED = int(os.environ.get("SIMCLR_TEST_SEED", "0"))
SHARES = {"pretrain": 1.0, "ablate": 0.3, "search": 0.2}

pytestmark = [pytest.mark.long, pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")]


def figures(record: Record) -> dict[str, float]:
    """All figures but those of time and of the machine's load."""
    return {name: value for name, value in record.metrics.items() if not name.startswith(("perf/", "system/"))}


def missing_points(record: Record, whole: Record) -> int:
    """How many points of a run's curves another one doesn't have. Those that it has are equal."""
    missing = 0
    for metric in figures(whole):
        one, other = (each.history(metric).set_index("step")["value"] for each in (record, whole))
        pd.testing.assert_series_equal(one, other[other.index.isin(one.index)])
        missing += len(other) - len(one)
    return missing


@pytest.mark.parametrize("name", SHARES)
def test_a_command_killed_at_any_moment_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    command, kills = COMMANDS[name], max(1, round(SHARES[name] * KILLS))
    write_config(tmp_path)
    finish(tmp_path / "first", command)  # starts the server of processes
    began = time.perf_counter()
    finish(tmp_path / "whole", command)
    seconds = time.perf_counter() - began
    whole, drawn = runs_of(tmp_path / "whole"), random.Random(SEED)
    missing, moments = 0, Counter[str]()
    for count in range(kills):
        home = tmp_path / f"home{count}"
        moment = drawn.uniform(0, seconds)
        process = start(home, command)
        process.join(moment)
        process.kill()
        process.join()
        moments["killed" if process.exitcode == -signal.SIGKILL else "ended before"] += 1
        where = f"kill {count}, after {moment:.2f} of {seconds:.2f} s"
        try:
            resumable = any(not record.finished and checkpoints(record.folder) for record in Store(home).records())
            finish(home, command + " --resume" * (resumable and name == "pretrain"))
            for key, record in runs_of(home).items():
                reference = whole.setdefault(key, record)  # a resumed search may choose another trial
                weights, expected = (load_file(each.artifact("model.safetensors")) for each in (record, reference))
                for entry, tensor in expected.items():
                    np.testing.assert_array_equal(weights[entry], tensor, err_msg=entry)
                assert figures(record) == figures(reference)
                missing += missing_points(record, reference)
        except BaseException as error:
            error.add_note(f"{where}; its home is {home}")
            raise
        shutil.rmtree(home)
    print(f"{name}: {dict(moments)}, {missing} points missing")
    assert moments["killed"] >= kills // 2
    assert missing == 0
