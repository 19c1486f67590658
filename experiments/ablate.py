"""Run the cells of a study one after another: nothing twice, and what fails does not stop the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simclr.data import Progress, open_dataset, silent
from simclr.errors import RunFailed, UserError
from simclr.evaluate import EVALUATIONS
from simclr.protocol import Protocol
from simclr.train import plan as steps_of

from . import encoders, runner
from .comparison import PROTOCOL_TAG
from .evaluation import evaluate_encoder
from .plan import Cell, Plan
from .tracking import Run, Store

EVALUATE = ("knn", "linear")
METRICS = ("linear_top1", "knn_top1")  # that a report is about
PARENT = "mlflow.parentRunId"  # how MLflow nests runs


class Forecast(NamedTuple):
    """What a cell will take, before anything starts: seconds a seed, and the seeds that are done."""

    cell: Cell
    seconds: float
    done: list[int]


def forecast(plan: Plan, store: Store, seeds: Sequence[int], progress: Progress = silent) -> list[Forecast]:
    """Time each cell by a few steps. Raises UserError, naming all of them, where cells can't run."""
    found, broken = [], []
    for count, cell in enumerate(plan.cells, 1):
        try:
            data = open_dataset(cell.config.data, store.folder, progress)
            steps_of(cell.config, data)
            runner.check(cell.config, data)
            done = [
                seed
                for seed in seeds
                if any(run.info.status == "FINISHED" for run in store.of_key(cell.of_seed(seed).key(), data.digest))
            ]
            seconds = 0.0 if len(done) == len(seeds) else runner.estimate(cell.config, store, progress)["seconds"]
            found.append(Forecast(cell, seconds, done))
        except (UserError, RunFailed) as error:
            broken.append(f"'{cell.name}': {error}")
        progress("timing", count, len(plan.cells))
    if broken:
        raise UserError(f"{len(broken)} of {len(plan.cells)} cells can't run: {'; '.join(broken)}")
    return found


def open_study(name: str, plan: Plan, store: Store, command: str) -> str:
    """The id of a study's parent run: the one of this name, if it has this plan, else a new one.

    `command` is what the report says remakes it. Raises UserError where the name belongs to another plan.
    """
    for run in store.studies():
        if run.info.run_name == name:
            if run.data.tags["plan"] != plan.digest():
                names = ", ".join(cell["cell"] for cell in document_of(run.info.run_id, store)["cells"])
                raise UserError(f"study '{name}' exists with another plan ({names}): give this one another --name")
            return str(run.info.run_id)
    tracker = store.start(name, {"kind": "study", "study": name, "plan": plan.digest()}, plan.cells[0].config.flat())
    cells = [
        {
            "cell": cell.name,
            "settings": cell.settings,
            "layer": cell.layer,
            "x": cell.config.flat().get(plan.x) if plan.x else None,
            "paper": cell.difference,
            "direction": cell.direction,
            "source": cell.source,
            "pair": cell.pair,
        }
        for cell in plan.cells
    ]
    document = {"x": plan.x, "log": plan.log, "command": command, "cells": cells}
    tracker.artifact("plan.json", lambda path: path.write_text(json.dumps(document, indent=2), encoding="utf-8"))
    return tracker.run_id


def document_of(study: str, store: Store) -> dict[str, Any]:
    """The plan in a study's record: its cells (the baseline first), numeric axis and command."""
    document: dict[str, Any] = json.loads(store.artifact(study, "plan.json").read_text(encoding="utf-8"))
    return document


def ablate(
    study: str,
    plan: Plan,
    store: Store,
    seeds: Sequence[int],
    *,
    progress: Progress = silent,
    began: Callable[[str, int], None] = lambda cell, seed: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Run what is missing of a study; a sentence for each cell that failed.

    Killed at any point, it goes on where it was when it is called again.
    """
    failures = []
    for cell, seed in plan.jobs(seeds):
        began(cell.name, seed)
        try:
            run_cell(study, cell, seed, store, progress=progress, stop=stop)
        except (UserError, RunFailed) as error:
            failures.append(f"'{cell.name}', seed {seed}: {error}")
    return failures


def run_cell(
    study: str,
    cell: Cell,
    seed: int,
    store: Store,
    *,
    progress: Progress = silent,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train and evaluate one cell with one seed, as far as that is not done, and put its record under the study.

    A run of this config from elsewhere is taken over as a copy of its record.
    """
    config, tags = cell.of_seed(seed), {PARENT: study, "cell": cell.name, "seed": str(seed)}
    data = open_dataset(config.data, store.folder, progress)
    resume = runner.furthest(store, store.of_key(config.key(), data.digest)) is not None
    run_id = runner.train(config, store, resume=resume, tags=tags, progress=progress, stop=stop)
    judge(run_id, cell.layer, store, progress)
    run = store.client.get_run(run_id)
    if (run.data.tags.get(PARENT), run.data.tags.get("cell")) == (study, cell.name):
        return
    known = [child for child in children(study, store) if child.data.tags.get("copied_from") == run_id]
    if not any(child.data.tags["cell"] == cell.name for child in known):
        store.copy(run, {**tags, "kind": "cell", "copied_from": run_id})


def judge(run_id: str, layer: str, store: Store, progress: Progress) -> None:
    """Evaluate a run by EVALUATE, unless its record holds that under today's protocol."""
    found = encoders.find(run_id, store)
    subject = encoders.place(found, store, Protocol(layer=layer), progress=progress)
    tags = store.client.get_run(run_id).data.tags
    known = {identity for tag, identity in tags.items() if tag.startswith(PROTOCOL_TAG)}
    missing = [name for name in EVALUATE if subject.identity(EVALUATIONS[name].sections) not in known]
    if missing:
        evaluate_encoder(found, subject, store, missing)


def children(study: str, store: Store) -> list[Run]:
    """The runs under a study, newest first."""
    return store.search(f"tags.`{PARENT}` = '{study}'")


class Records(NamedTuple):
    """All that a report is made of: a row a cell and seed, and which test images each got right, by metric."""

    table: pd.DataFrame
    correct: dict[str, dict[tuple[str, int], Any]]
    runs: dict[tuple[str, int], Run]


def records(study: str, store: Store) -> Records:
    """Read a study's records: of the runs of one cell and seed the finished one, else the newest."""
    cells = {cell["cell"]: cell for cell in document_of(study, store)["cells"]}
    runs: dict[tuple[str, int], Run] = {}
    for run in children(study, store):
        place = run.data.tags["cell"], int(run.data.tags["seed"])
        if place not in runs or (run.info.status == "FINISHED" and runs[place].info.status != "FINISHED"):
            runs[place] = run
    rows: list[dict[str, Any]] = []
    correct: dict[str, dict[tuple[str, int], Any]] = {metric: {} for metric in METRICS}
    for (cell, seed), run in runs.items():
        prefix = "" if cells[cell]["layer"] == "h" else f"{cells[cell]['layer']}/"
        source = run.data.tags.get("copied_from", run.info.run_id)
        speed = store.history(source, "perf/images_per_second")["value"].median()
        steps = store.history(source, "train/loss")["step"].max()
        row = {
            "cell": cell,
            "seed": seed,
            "status": run.info.status,
            "error": run.data.tags.get("error"),
            "images_per_second": speed,
            "seconds": steps * int(run.data.params["train.batch_size"]) / speed,
        }
        for metric in METRICS:
            row[metric] = run.data.metrics.get(f"eval/{prefix}{metric}", np.nan)
            try:
                path = store.artifact(source, f"{prefix.replace('/', '-')}{metric}-predictions.npz")
            except UserError:
                continue
            with np.load(path) as arrays:
                correct[metric][cell, seed] = arrays["predicted"] == arrays["labels"]
        rows.append(row)
    return Records(pd.DataFrame(rows), correct, runs)
