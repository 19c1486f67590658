"""A study that the suite recorded before its code was reorganised, and how to leave out what takes long."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import plots
from experiments.runs import train
from experiments.studies.plan import StudyPlan, plan_study
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, start_run
from tests.helpers import tiny

PREVIOUS_FILE = Path(__file__).parent / "previous_study.json"
PREVIOUS_RUNS: dict[str, dict[str, Any]] = json.loads(PREVIOUS_FILE.read_text())
PREVIOUS_SGD = {"name": "sgd", "lr": 0.1, "weight_decay": 0}


def leave_out_pictures(patch: pytest.MonkeyPatch) -> None:
    """Replace the pictures of a run by empty files, because they take longer than its training."""
    for name in ("draw_view_grid", "draw_view_strip"):
        patch.setattr(train, name, lambda config, data, path: path.touch())
    patch.setattr(plots, "confusion_matrix", lambda matrix, classes, path: path.touch())


def leave_out_figures(patch: pytest.MonkeyPatch) -> None:
    """Replace the figures of a report by empty files."""

    def draw(*arguments: object, **_: object) -> None:
        next(each for each in arguments if isinstance(each, Path)).touch()

    for name in ("differences", "against", "curves"):
        patch.setattr(plots, name, draw)


def leave_out_timing(patch: pytest.MonkeyPatch) -> None:
    """Replace the times that a forecast measures by fixed ones."""
    patch.setattr("experiments.runs.estimate.timed_steps", lambda *_, **__: 0.01)
    for name in ("studies.forecast", "search.forecast"):
        patch.setattr(f"experiments.{name}.evaluation_seconds", lambda *_: 1.0)


def previous_plan() -> StudyPlan:
    """The plan of the recorded study: a baseline, a cell that diverged, and one whose run was copied from elsewhere."""
    return plan_study(tiny(train={"epochs": 1}, optim=PREVIOUS_SGD), vary=["optim.lr=1e30,0.01"])


def write_previous_study(store: Store, runs: Mapping[str, dict[str, Any]] = PREVIOUS_RUNS) -> Record:
    """Add the recorded study to a store, or one whose runs are made from those of the recorded one."""
    trackers: dict[str, Tracker] = {}
    for name, run in runs.items():
        tags = dict(run["tags"])
        if "copied_from" in tags:
            tags["copied_from"] = trackers[tags["copied_from"]].run_id
        parent = trackers[run["parent"]].run_id if run["parent"] else None
        trackers[name] = write_run(store, run, tags, parent)
    return trackers["study"].record()


def write_run(store: Store, run: Mapping[str, Any], tags: Mapping[str, str], parent: str | None) -> Tracker:
    """Add a recorded run to a store, with these tags."""
    tracker = start_run(store, run["name"], run["kind"], run["params"], tags, parent=parent)
    for metric, points in run["metrics"].items():
        for step, value in points:
            tracker.log({metric: value}, step)
    if run["protocols"]:
        tracker.tag_protocols(run["protocols"])
    for file, text in run["files"].items():
        tracker.artifact(file, lambda path, text=text: path.write_text(text))  # type: ignore[misc]
    for metric, classes in run["predictions"].items():
        tracker.artifact(f"{metric}-predictions.npz", lambda path, classes=classes: _write_classes(path, classes))  # type: ignore[misc]
    tracker.finish(run["status"])
    return tracker


def like_the_baseline(cell: str, seed: int, accuracy: float) -> dict[str, Any]:
    """The recorded run of the baseline as that of another cell and seed."""
    run = copy.deepcopy(PREVIOUS_RUNS["baseline"])
    run["name"] = f"{cell}-s{seed}"[:200]
    run["tags"] |= {"cell": cell, "seed": str(seed)}
    run["metrics"]["eval/linear_top1"] = [[0, accuracy]]
    return run


def _write_classes(path: Path, classes: Mapping[str, str]) -> None:
    """Write predicted and true classes, each given as a string of digits."""
    np.savez_compressed(path, **{name: np.array(list(digits), np.int64) for name, digits in classes.items()})  # type: ignore[arg-type]
