"""Studies whose process is killed."""

from __future__ import annotations

import multiprocessing
import random
import signal
from collections import Counter
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from experiments.studies.execute import execute
from experiments.studies.plan import StudyPlan, plan_study
from experiments.studies.results import read_results
from experiments.tracking import Store
from simclr.progress import Observer
from tests.helpers import tiny

KILLS = 5
SEEDS = [0, 1]


def plan() -> StudyPlan:
    config = tiny(train={"epochs": 3, "checkpoint_minutes": 1e-4, "knn_every": 1}, data={"limit": 600})
    return plan_study(config, drop=["color_jitter"])


class Events(Observer):
    """Sends what happens to another process."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def say(self, text: str) -> None:
        self.connection.send(text)

    def began(self, run_id: str, steps: int) -> None:
        self.connection.send(("began", run_id, steps))

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.connection.send(("metrics", dict(metrics), step))

    def progress(self, what: str, done: int, total: int) -> None:
        self.connection.send((what, done, total))


def run_study(home: Path, connection: Connection) -> None:
    """What a process does until it is killed or done."""
    torch.set_num_threads(1)
    events = Events(connection)
    outcome = execute("study", plan(), Store(home), SEEDS, "simclr ablate", events)
    outcome.check()
    events.say("done")


def run_until(home: Path, count: int | None) -> bool:
    """Run the study in a process of its own and kill it after so many events. Returns whether it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.studies.execute"])  # imports take longer than the study
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_study, args=(home, theirs))
    process.start()
    theirs.close()
    seen = 0
    with ours:
        try:
            while ours.recv() != "done":
                seen += 1
                if seen == count:
                    process.kill()
        except EOFError:
            pass
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.slow
def test_a_study_killed_at_any_moment_resumes_to_the_same_results(tmp_path: Path) -> None:
    assert not run_until(tmp_path / "whole", None)
    draw, kills = random.Random(0), 0
    while kills < KILLS and run_until(tmp_path / "killed", draw.randint(1, 12)):
        kills += 1
    assert kills > 2
    assert not run_until(tmp_path / "killed", None)
    tables = []
    for home in ("whole", "killed"):
        store = Store(tmp_path / home)
        trained = Counter(run.tags["config_key"] for run in store.records(kind="pretrain") if run.finished)
        assert set(trained.values()) == {1}
        (study,) = store.records(kind="study")
        assert study.finished
        table = read_results(study, store).table
        assert len(table) == len(plan().cells) * len(SEEDS)
        tables.append(table[["cell", "seed", "status", "knn_top1", "linear_top1"]].sort_values(["cell", "seed"]))
    assert tables[0].to_numpy().tolist() == tables[1].to_numpy().tolist()
