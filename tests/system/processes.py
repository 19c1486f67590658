"""Commands in processes of their own, without the pictures, and what their home must hold afterwards."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import app
from experiments.tracking.store import Record, Store
from simclr.config import to_toml
from tests.experiments.studies.helpers import leave_out_figures, leave_out_pictures
from tests.helpers import tiny

SPACE = "[[parameter]]\nsetting = 'optim.lr'\nchoices = [1e-3, 3e-3]\n"
COMMANDS = {
    "pretrain": "pretrain --config c.toml",
    "ablate": "ablate --config c.toml --drop color_jitter --seeds 1 --name study",
    "search": "search --config c.toml --space space.toml --trials 3 --seeds 0 --name search",
}
IMPORTED = [f"experiments.{name}" for name in ("studies.execute", "search.confirm", "configs.resolve", "runs.train")]
IMPORTED += ["mlflow.store.tracking.sqlalchemy_store", "alembic.command", "safetensors.torch"]


def write_config(folder: Path) -> None:
    """Write c.toml, which takes two seconds to train and saves a checkpoint at each step, and a space to search."""
    options: dict[str, Any] = {"epochs": 4, "batch_size": 64, "knn_every": 1, "checkpoint_minutes": 1e-9}
    (folder / "c.toml").write_text(to_toml(tiny(train=options, data={"limit": 300})))
    (folder / "space.toml").write_text(SPACE)


def _work(home: Path, command: str, output: Path, variables: dict[str, str]) -> None:
    home.mkdir(exist_ok=True)
    os.environ.update(variables, SIMCLR_HOME=str(home))
    os.chdir(home.parent)
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = output.open("w", buffering=1)
    sys.argv = ["simclr", *command.split()]
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        leave_out_figures(patch)
        app(command.split())


def start(home: Path, command: str, output: str = "output.txt", **variables: str) -> Any:
    """Start a process that runs a command in a home, with these variables. Its output goes to a file next to that."""
    return fork(_work, home, command, home.parent / output, variables)


def fork(work: Callable[..., None], *arguments: object) -> Any:
    """Start a process that calls a function. It has imported the suite already, which takes longer than the work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def finish(home: Path, command: str) -> None:
    """Run a command to its end."""
    process = start(home, command)
    process.join()
    assert process.exitcode == 0, (home.parent / "output.txt").read_text()


def has_begun(home: Path) -> bool:
    """Whether a run has saved some of its checkpoints."""
    return any(int(path.stem.removeprefix("step-")) >= 3 for path in home.glob("runs/*/step-*.pt"))


def runs_of(home: Path) -> dict[str, Record]:
    """The finished runs by the key of their config. Each was trained once, and nothing looks as if it still ran."""
    records = Store(home).records()
    assert "RUNNING" not in {record.status for record in records}
    finished = [record for record in records if record.kind == "pretrain" and record.finished]
    assert set(Counter(record.tags["config_key"] for record in finished).values()) == {1}
    assert {record.status for record in records if record.kind in ("study", "search")} <= {"FINISHED"}
    return {record.tags["config_key"]: record for record in finished}
