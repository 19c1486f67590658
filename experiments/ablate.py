"""Run the cells of a study one after another: nothing twice, and what fails does not stop the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from simclr import device as devices
from simclr import memory
from simclr.data import Progress, open_dataset, silent
from simclr.errors import RunFailed, UserError
from simclr.evaluate import EVALUATIONS, check
from simclr.model import build_model, check_images
from simclr.protocol import Protocol, Subject, identity
from simclr.train import Interrupted
from simclr.train import plan as steps_of

from . import encoders, runner
from .evaluation import evaluate_encoder, predictions, prefix
from .plan import Cell, Plan
from .tracking import PROTOCOL_TAG, Run, Store, Tracker

EVALUATE = {"linear": "linear_top1", "knn": "knn_top1"}  # evaluations, and the figure of each that a report is about
PARENT = "mlflow.parentRunId"  # how MLflow nests runs


class Forecast(NamedTuple):
    """What a cell will take, before anything starts: seconds of training a seed, bytes, and the seeds that are done."""

    cell: Cell
    seconds: float
    memory: int
    done: list[int]


def forecast(plan: Plan, store: Store, seeds: Sequence[int], progress: Progress = silent) -> list[Forecast]:
    """Time each cell by a few steps. Raises UserError, naming all of them, where cells can't be run or judged."""
    found: list[Forecast] = []
    broken = []
    for count, cell in enumerate(plan.cells, 1):
        try:
            config, data = cell.config, open_dataset(cell.config.data, store.folder, progress)
            steps_of(config, data)
            check_images(config)
            device = devices.resolve(config.device)
            config, fitted = memory.fit(config, len(data.images), device)
            model = build_model(config, data, torch.device("cpu"))
            check(Subject(model, config, data, Protocol(layer=cell.layer)), list(EVALUATE))
            done = [
                seed
                for seed in seeds
                if any(run.info.status == "FINISHED" for run in store.of_key(cell.of_seed(seed).key(), data.digest))
            ]
            shared = any(config.key() == other.cell.config.key() for other in found)  # only judged at another layer
            seconds = 0.0 if shared or len(done) == len(seeds) else runner.estimate(config, store, progress)["seconds"]
            found.append(Forecast(cell, seconds, memory.peak(config, fitted, device), done))
        except (UserError, RunFailed) as error:
            broken.append(f"'{cell.name}': {error}")
        progress("timing", count, len(plan.cells))
    if broken:
        raise UserError(f"{len(broken)} of {len(plan.cells)} cells can't run: {'; '.join(broken)}")
    return found


def same_study(name: str, plan: Plan, store: Store, progress: Progress = silent) -> Run | None:
    """The parent run of the study of this name, if there is one. Raises UserError where it has another plan."""
    digest = plan.digest(open_dataset(plan.cells[0].config.data, store.folder, progress).digest)
    for run in store.studies():
        if run.info.run_name == name:
            if run.data.tags["plan"] != digest:
                raise UserError(
                    f"study '{name}' exists with another plan or other images: give this one another --name"
                )
            return run
    return None


def open_study(name: str, plan: Plan, store: Store, command: str) -> Tracker:
    """A study's parent run: the one of this name, if it has this plan on this data, else a new one.

    `command` is what the report says remakes it. Raises UserError where the name belongs to another plan.
    """
    data = open_dataset(plan.cells[0].config.data, store.folder)
    if (same := same_study(name, plan, store)) is not None:
        tracker = store.reopen(same)
    else:
        tags = {"kind": "study", "study": name, "plan": plan.digest(data.digest), "data_digest": data.digest}
        tracker = store.start(name, tags, plan.cells[0].config.flat())
    read = {metric: EVALUATIONS[name].sections for name, metric in EVALUATE.items()}
    cells = [
        {
            "cell": cell.name,
            "settings": cell.settings,
            "layer": cell.layer,
            "paper": cell.difference,
            "direction": cell.direction,
            "source": cell.source,
            "pair": cell.pair,
            "protocols": {
                metric: identity(protocol, data, cell.config.view_size() or data.side, sections, {})
                for metric, sections in read.items()
            },
        }
        for cell in plan.cells
        for protocol in [Protocol(layer=cell.layer)]
    ]
    document = {"x": plan.x, "log": plan.log, "lines": plan.lines, "command": command, "cells": cells}
    tracker.artifact("plan.json", lambda path: path.write_text(json.dumps(document, indent=2), encoding="utf-8"))
    return tracker


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
    """Run what is missing of a study; a sentence for each cell that failed, which its record says too.

    Killed at any point, it goes on where it was when it is called again.
    """
    failures = []
    for cell, seed in plan.jobs(seeds):
        began(cell.name, seed)
        try:
            run_cell(study, cell, seed, store, progress=progress, stop=stop)
        except Interrupted:
            raise
        except (UserError, RunFailed, RuntimeError) as error:  # the last are mostly torch's own
            text = str(error) if isinstance(error, UserError | RunFailed) else f"{type(error).__name__}: {error}"
            failures.append(f"'{cell.name}', seed {seed}: {text}")
            config, tags = cell.of_seed(seed), {**_place(study, cell, seed, store), "kind": "cell", "error": text}
            store.start(f"{config.name}-s{seed}", tags, config.flat()).finish("FAILED")
    return failures


def _place(study: str, cell: Cell, seed: int, store: Store) -> dict[str, str]:
    name = str(store.client.get_run(study).info.run_name)
    return {PARENT: study, "study": name, "cell": cell.name, "seed": str(seed)}


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

    A run of this config from elsewhere is taken over as a copy of its record; one that was cut short goes on, or begins
    anew where its checkpoint can't be used here.
    """
    config, tags = cell.of_seed(seed), _place(study, cell, seed, store)
    run_id = runner.train_or_go_on(config, store, tags=tags, progress=progress, stop=stop)
    judge(run_id, cell, store, progress)
    run = store.client.get_run(run_id)
    if (run.data.tags.get(PARENT), run.data.tags.get("cell")) == (study, cell.name):
        return
    copies = (
        child.data.tags["cell"]
        for child in children(study, store)
        if child.data.tags.get("copied_from") == run_id and child.info.status == "FINISHED"
    )
    if cell.name not in copies:
        store.copy(run, {**tags, "kind": "cell", "copied_from": run_id})


def judge(run_id: str, cell: Cell, store: Store, progress: Progress) -> None:
    """Evaluate a run by EVALUATE, unless its record holds those very figures under today's protocol."""
    found = encoders.find(run_id, store)
    config = cell.config
    subject = encoders.place(
        found,
        store,
        Protocol(layer=cell.layer),
        data_dir=config.data.dir,
        device=config.device,
        progress=progress,
    )
    tags = store.client.get_run(run_id).data.tags
    missing = [
        name
        for name, metric in EVALUATE.items()
        if tags.get(f"{PROTOCOL_TAG}{prefix(cell.layer)}{metric}") != subject.identity(EVALUATIONS[name].sections)
    ]
    if missing:
        evaluate_encoder(found, subject, store, missing)


def children(study: str, store: Store) -> list[Run]:
    """The runs under a study, newest first."""
    return store.search(f"tags.`{PARENT}` = '{study}'")


class Records(NamedTuple):
    """All that a report is made of: a row a cell and seed, and which test images each got right, by metric."""

    table: pd.DataFrame
    correct: dict[str, dict[tuple[str, int], Any]]
    runs: dict[tuple[str, int], Run]  # that were trained: of a copy, the run that it is of


def records(study: str, store: Store) -> Records:
    """Read a study's records: of the runs of one cell and seed the finished one that was judged, else the newest.

    A figure counts where it was found under the study's own protocol.
    """
    cells = {cell["cell"]: cell for cell in document_of(study, store)["cells"]}
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    correct: dict[str, dict[tuple[str, int], Any]] = {metric: {} for metric in EVALUATE.values()}
    runs: dict[tuple[str, int], Run] = {}
    for child in reversed(children(study, store)):  # the oldest first: what is newer stands over it
        cell, place = cells[child.data.tags["cell"]], (child.data.tags["cell"], int(child.data.tags["seed"]))
        source = child.data.tags.get("copied_from")
        run = child if source is None else store.client.get_run(source)
        before, figures = prefix(cell["layer"]), {}
        for metric, protocol in cell["protocols"].items():
            if run.data.tags.get(f"{PROTOCOL_TAG}{before}{metric}") == protocol:
                figures[metric] = run.data.metrics[f"eval/{before}{metric}"]
                predicted, labels = predictions(store, run.info.run_id, before + metric)
                correct[metric][place] = predicted == labels
        if place in rows and rows[place]["status"] == "FINISHED" and not figures:
            continue
        speed = store.history(run.info.run_id, "perf/images_per_second")["value"].median()
        steps = store.history(run.info.run_id, "train/loss")["step"].max()
        if run.data.tags["kind"] == "pretrain":
            runs[place] = run
        rows[place] = {
            "cell": place[0],
            "seed": place[1],
            "status": "NOT JUDGED" if child.info.status == "FINISHED" and not figures else child.info.status,
            "error": child.data.tags.get("error"),
            "images_per_second": speed,
            "seconds": steps * int(run.data.params["train.batch_size"]) / speed,
            **{metric: figures.get(metric, np.nan) for metric in EVALUATE.values()},
        }
    return Records(pd.DataFrame(rows.values()), correct, runs)
