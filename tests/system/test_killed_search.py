"""A search whose process is killed in the middle of a trial."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import app
from experiments.configs.resolve import resolve
from experiments.search.space import load_space
from experiments.search.trials import open_search, run_trials
from experiments.tracking.store import Store
from simclr.progress import Observer
from simclr.weights import checkpoint
from tests.experiments.studies.helpers import leave_out_pictures, leave_out_timing
from tests.system.processes import fork

CONFIG = """
device = "cpu"
data = {dataset = "digits", limit = 300}
model = {stem = "stride2", width = 0.125}
optim = {name = "adamw", lr = 1e-3}
train = {epochs = 4, batch_size = 128, knn_every = 0, precision = "fp32", checkpoint_minutes = 1e-9}
"""
SPACE = "[[parameter]]\nsetting = 'optim.lr'\nlow = 1e-4\nhigh = 1e-2\n"

ARGUMENTS = "search --config c.toml --space space.toml --trials 2 --seeds 0 --name s"


def search_and_die(folder: Path) -> None:
    """Search, and kill this process after the third checkpoint of the second run: trial 1, as trial 0 is the start."""
    os.environ["SIMCLR_HOME"] = str(folder)
    os.chdir(folder)
    torch.set_num_threads(1)
    save, saved = checkpoint.save, list[Path]()

    def save_and_die(folder: Path, step: int, state: dict[str, Any]) -> None:
        save(folder, step, state)
        saved.append(folder)
        if folder != saved[0] and saved.count(folder) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        leave_out_pictures(patch)
        leave_out_timing(patch)
        app(ARGUMENTS.split())


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
    killed = fork(search_and_die, tmp_path)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
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
