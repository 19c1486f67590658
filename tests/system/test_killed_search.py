"""A search whose process is killed in the middle of a trial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from experiments.configs.resolve import resolve
from experiments.search.space import load_space
from experiments.search.trials import open_search, run_trials
from experiments.tracking.store import Store
from simclr.progress import Observer
from tests.helpers import ROOT

CONFIG = """
device = "cpu"
data = {dataset = "digits", limit = 300}
model = {stem = "stride2", width = 0.125}
optim = {name = "adamw", lr = 1e-3}
train = {epochs = 4, batch_size = 128, knn_every = 0, precision = "fp32", checkpoint_minutes = 1e-9}
"""
SPACE = "[[parameter]]\nsetting = 'optim.lr'\nlow = 1e-4\nhigh = 1e-2\n"

# The command line, which kills itself after the third checkpoint of the second run: trial 1, as trial 0 is the start.
KILLED = """
import os, signal, sys
from cli import app
from simclr.weights import checkpoint

save, saved = checkpoint.save, []

def save_and_die(folder, step, state):
    save(folder, step, state)
    saved.append(folder)
    if folder != saved[0] and saved.count(folder) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save = save_and_die
app(sys.argv[1:])
"""


class Metrics(Observer):
    """Keeps the metrics of each step."""

    def __init__(self) -> None:
        self.by_step: dict[int, Mapping[str, float]] = {}

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.by_step[step] = metrics


@pytest.mark.slow
def test_a_killed_search_resumes_its_trial_from_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    (tmp_path / "space.toml").write_text(SPACE)
    arguments = "search --config c.toml --space space.toml --trials 2 --seeds 0 --name s"
    environment = {"SIMCLR_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments.split()],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = Store(tmp_path)
    (interrupted,) = store.records(trial="1")
    assert interrupted.status == "KILLED"  # opening the store marks it
    observer = Metrics()
    config, space = resolve(config=tmp_path / "c.toml"), load_space(tmp_path / "space.toml")
    with open_search("s", config, space, store) as search:
        run_trials(search, 2, observer=observer)
    assert store.get(interrupted.id).finished
    assert len(store.records(kind="pretrain")) == 2
    assert min(observer.by_step) > 3
