"""A study whose process is killed again and again."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.studies.execute import execute
from experiments.studies.plan import StudyPlan, plan_study
from experiments.studies.results import read_results
from experiments.tracking.store import Store
from experiments.tracking.writing import Tracker
from simclr.progress import Observer
from tests.experiments.studies.helpers import leave_out_figures, leave_out_pictures
from tests.helpers import tiny

# When each process dies: the n-th time that something is reported, or that a file is about to be kept.
MOMENTS = [
    ("plan.json", 1),
    ("step", 4),  # while the baseline trains
    ("model.safetensors", 1),  # when it is trained
    ("linear classifier", 30),  # while it is evaluated
    ("knn_top1-predictions.npz", 1),  # while the evaluations are recorded
    ("no color_jitter, seed 0", 1),  # between two cells
    ("step", 4),  # while the second cell trains
    ("report.html", 1),
]


class Killer(Observer):
    """Kills its process the n-th time that something happens."""

    def __init__(self, what: str, count: int) -> None:
        self.what, self.left = what, count

    def happens(self, what: str) -> None:
        self.left -= what == self.what
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def say(self, text: str) -> None:
        self.happens(text)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.happens("step" if "train/loss" in metrics else f"step {step}")

    def progress(self, what: str, done: int, total: int) -> None:
        self.happens(what if done < total else f"{what} done")


def plan() -> StudyPlan:
    config = tiny(train={"epochs": 3, "checkpoint_minutes": 1e-4, "knn_every": 1}, data={"limit": 600})
    return plan_study(config, drop=["color_jitter"])


def run_study(home: Path, what: str, count: int) -> None:
    """The work of one process."""
    torch.set_num_threads(1)
    killer, keep = Killer(what, count), Tracker.artifact

    def artifact(tracker: Tracker, name: str, write: Callable[[Path], object]) -> None:
        killer.happens(name)
        keep(tracker, name, write)

    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        leave_out_figures(patch)
        patch.setattr(Tracker, "artifact", artifact)
        execute("study", plan(), Store(home), [0], "simclr ablate", killer).check()


def exit_code(context: Any, home: Path, what: str = "nothing", count: int = 1) -> int:
    process = context.Process(target=run_study, args=(home, what, count))
    process.start()
    process.join()
    return int(process.exitcode)


@pytest.mark.long  # tests/experiments/studies/test_run.py has a short version
def test_a_study_that_is_killed_resumes_to_the_same_results(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.studies.execute"])  # importing takes longer than the study
    assert exit_code(context, tmp_path / "whole") == 0
    for what, count in MOMENTS:
        assert exit_code(context, tmp_path / "killed", what, count) == -signal.SIGKILL, what
    assert exit_code(context, tmp_path / "killed") == 0
    tables = []
    for home in ("whole", "killed"):
        store = Store(tmp_path / home)
        trained = Counter(run.tags["config_key"] for run in store.records(kind="pretrain") if run.finished)
        assert set(trained.values()) == {1}
        (study,) = store.records(kind="study")
        assert study.finished
        table = read_results(study, store).table
        tables.append(table[["cell", "seed", "status", "knn_top1", "linear_top1"]].sort_values(["cell", "seed"]))
        assert len(table) == len(plan().cells)
    assert tables[0].to_numpy().tolist() == tables[1].to_numpy().tolist()
