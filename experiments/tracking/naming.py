"""What a name of a run means, and what to say if it means nothing. Imports neither torch nor MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol, TypeVar

from simclr.errors import UserError

SHORTEST_ID = 4  # characters of an id that can stand for a run
MOST_SUGGESTED = 3
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")  # suffixes of files with weights
STATES = {  # of a run, as people read them: in a table, and in a sentence
    "RUNNING": ("running", "is still running"),
    "FINISHED": ("done", "has finished"),
    "FAILED": ("failed", "failed"),
    "KILLED": ("stopped", "was stopped before it finished"),
}


class Named(Protocol):
    """What has a name and an id, as runs do."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


def is_called(run: Named, name: str) -> bool:
    """Whether `name` is the run's name, or the start of its id (SHORTEST_ID characters or more)."""
    return name == run.name or (len(name) >= SHORTEST_ID and run.id.startswith(name))


def all_called(name: str, runs: Sequence[T], folder: Path, what: str = "run") -> list[T]:
    """The runs, newest first, that a name or the start of an id refers to.

    Raises UserError, which suggests others, if there is none. `folder` is where the runs are.
    """
    if found := [run for run in runs if is_called(run, name)]:
        return found
    if not runs:
        raise no_runs(folder)
    if len(name) < SHORTEST_ID and any(run.id.startswith(name) for run in runs):
        raise UserError(f"'{name}' is too short for an id: give at least {SHORTEST_ID} characters")
    raise UserError(f"no {what} has the name '{name}' or an id that starts with it: {_suggestion(name, runs)}")


def no_runs(folder: Path) -> UserError:
    """What to say where a folder has no runs: why that may be, and what to do."""
    if os.environ.get("SIMCLR_HOME") and not folder.exists():
        return UserError(f"SIMCLR_HOME names the folder {folder}, which doesn't exist: correct it, or unset it")
    none = f"there is no run in {folder}"
    if os.environ.get("SIMCLR_HOME"):
        return UserError(f"{none}, which SIMCLR_HOME names: train one with `simclr pretrain`, or name another folder")
    return UserError(
        f"{none}: train one with `simclr pretrain --preset shapes`. Runs are kept in simclr-runs "
        f"in the current folder: to use those of another folder, change to that folder, or set SIMCLR_HOME to its "
        f"simclr-runs"
    )


def _suggestion(name: str, runs: Sequence[Named]) -> str:
    """A question that suggests the names that were probably meant, with the ids that stand for them."""
    ids = {run.name: run.id[:8] for run in reversed(runs)}  # of runs of the same name, that of the newest
    names = {each.lower(): each for each in reversed(ids)}
    given = name.lower()
    near = [each for each in names if each.startswith(given)] or get_close_matches(given, names, n=1)
    for length in range(len(name) - 1, max(SHORTEST_ID, len(name) // 2) - 1, -1):
        near = near or [each for each in names if each.startswith(given[:length])]
    question = " or ".join(f"'{each}' ({ids[each]})" for each in map(names.__getitem__, near[:MOST_SUGGESTED]))
    return f"did you mean {question}? `simclr runs` lists all" if near else "`simclr runs` lists all"


def state(status: str) -> str:
    """A status of MLflow as people read it in a table: running, done, failed or stopped."""
    return STATES[status][0] if status in STATES else status.lower()


def ended(status: str) -> str:
    """The same as the end of a sentence about a run."""
    return STATES[status][1] if status in STATES else f"has the status {status}"


def may_be_file(name: str) -> bool:
    """Whether a name could be that of a file of weights: it is one, or looks like the path of one."""
    if os.path.isfile(name):  # noqa: PTH113 (Path raises for a name that is too long for a file)
        return True
    return Path(name).suffix in WEIGHTS or len(Path(name).parts) > 1
