"""Run the cells of a study one after another: nothing twice, and what fails does not stop the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from experiments.runs import encoders, estimate, train
from experiments.runs.evaluate import evaluate_encoder, prefix
from experiments.studies.plan import EVALUATE, PARENT, Cell, StudyPlan
from experiments.studies.results import children
from experiments.tracking import PROTOCOL_TAG, Run, Store, Tracker
from simclr import device as devices
from simclr.build import build_model, check_images
from simclr.data.dataset import open_dataset
from simclr.errors import RunFailed, UserError
from simclr.evaluate.evaluations import EVALUATIONS, check
from simclr.evaluate.protocol import Protocol, identity
from simclr.evaluate.subject import Subject
from simclr.progress import SILENT, Observer
from simclr.train import budget
from simclr.train.loop import Interrupted
from simclr.train.loop import count_steps


class Forecast(NamedTuple):
    """What a cell will take, before anything starts: seconds of training a seed, bytes, and the seeds that are done."""

    cell: Cell
    seconds: float
    memory: int
    done: list[int]


def forecast(plan: StudyPlan, store: Store, seeds: Sequence[int], observer: Observer = SILENT) -> list[Forecast]:
    """Time each cell by a few steps. Raises UserError, naming all of them, where cells can't be run or judged."""
    found: list[Forecast] = []
    broken = []
    for count, cell in enumerate(plan.cells, 1):
        try:
            config, data = cell.config, open_dataset(cell.config.data, store.folder, observer)
            count_steps(config, data)
            check_images(config)
            device = devices.resolve(config.device)
            config, fitted = budget.fit(config, len(data.images), device)
            model = build_model(config, data, torch.device("cpu"))
            check(Subject(model, config, data, Protocol(layer=cell.layer)), list(EVALUATE))
            done = [
                seed
                for seed in seeds
                if any(run.info.status == "FINISHED" for run in store.of_key(cell.of_seed(seed).key(), data.digest))
            ]
            shared = any(config.key() == other.cell.config.key() for other in found)  # only judged at another layer
            seconds = (
                0.0 if shared or len(done) == len(seeds) else estimate.estimate(config, store, observer)["seconds"]
            )
            found.append(Forecast(cell, seconds, budget.peak(config, fitted, device), done))
        except (UserError, RunFailed) as error:
            broken.append(f"'{cell.name}': {error}")
        observer.progress("timing", count, len(plan.cells))
    if broken:
        raise UserError(f"{len(broken)} of {len(plan.cells)} cells can't run: {'; '.join(broken)}")
    return found


def same_study(name: str, plan: StudyPlan, store: Store, observer: Observer = SILENT) -> Run | None:
    """The parent run of the study of this name, if there is one. Raises UserError where it has another plan."""
    digest = plan.digest(open_dataset(plan.cells[0].config.data, store.folder, observer).digest)
    for run in store.studies():
        if run.info.run_name == name:
            if run.data.tags["plan"] != digest:
                raise UserError(
                    f"study '{name}' exists with another plan or other images: give this one another --name"
                )
            return run
    return None


def open_study(name: str, plan: StudyPlan, store: Store, command: str) -> Tracker:
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


def ablate(
    study: str,
    plan: StudyPlan,
    store: Store,
    seeds: Sequence[int],
    *,
    observer: Observer = SILENT,
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
            run_cell(study, cell, seed, store, observer=observer, stop=stop)
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
    observer: Observer = SILENT,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train and evaluate one cell with one seed, as far as that is not done, and put its record under the study.

    A run of this config from elsewhere is taken over as a copy of its record; one that was cut short goes on, or begins
    anew where its checkpoint can't be used here.
    """
    config, tags = cell.of_seed(seed), _place(study, cell, seed, store)
    run_id = train.train_or_go_on(config, store, tags=tags, observer=observer, stop=stop)
    judge(run_id, cell, store, observer)
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


def judge(run_id: str, cell: Cell, store: Store, observer: Observer) -> None:
    """Evaluate a run by EVALUATE, unless its record holds those very figures under today's protocol."""
    found = encoders.find(run_id, store)
    config = cell.config
    subject = encoders.place(
        found,
        store,
        Protocol(layer=cell.layer),
        data_dir=config.data.dir,
        device=config.device,
        observer=observer,
    )
    tags = store.client.get_run(run_id).data.tags
    missing = [
        name
        for name, metric in EVALUATE.items()
        if tags.get(f"{PROTOCOL_TAG}{prefix(cell.layer)}{metric}") != subject.identity(EVALUATIONS[name].sections)
    ]
    if missing:
        evaluate_encoder(found, subject, store, missing)
