"""What the cells of a study will take, from a few training steps of each and one evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from experiments.runs.estimate import estimate
from experiments.runs.prepare import Prepared, check_labels, prepare
from experiments.studies.cell import Cell
from experiments.studies.plan import STUDY_EVALUATIONS, StudyPlan
from experiments.tracking.store import Store
from simclr.build import build_model
from simclr.data.dataset import Dataset, open_dataset
from simclr.errors import RunFailed, UserError, first_few
from simclr.evaluate.evaluations import check, evaluate
from simclr.evaluate.protocol import evaluated_on
from simclr.evaluate.subject import Subject
from simclr.progress import SILENT, Observer


class Forecast(NamedTuple):
    """What a cell will take."""

    cell: Cell
    seconds: float  # of training, for each seed
    memory: int  # predicted bytes at the peak
    done: list[int]  # the seeds whose training has finished
    evaluation: float = 0.0  # seconds of evaluating, for each seed


def forecast(plan: StudyPlan, store: Store, seeds: Sequence[int], observer: Observer = SILENT) -> list[Forecast]:
    """Predict the time and memory of each cell. Raises UserError, naming all of them, if cells can't run."""
    baseline = plan.cells[0]
    data = open_dataset(baseline.config.data, store.folder, observer)
    check_labels(baseline.config, evaluated_on(data, baseline.on), "ablate")
    if baseline.resplit:
        _check_resplit([open_dataset(baseline.of_seed(seed).data, store.folder, observer) for seed in seeds[:2]])
    names = [cell.name for cell in plan.cells]
    observer.say(f"timing {len(names)} cells: {first_few(names)}" if len(names) > 1 else "timing the baseline")
    found: list[Forecast] = []
    broken: dict[str, list[str]] = defaultdict(list)  # the names of the cells that have each error
    for count, cell in enumerate(plan.cells, 1):
        try:
            prepared = prepare(cell.of_seed(seeds[0]), store.folder, observer)
            memory, done = prepared.peak, _seeds_done(cell, prepared, store, seeds)
            model = build_model(cell.config, prepared.data, torch.device("cpu"))
            check(Subject(model, cell.config, evaluated_on(prepared.data, cell.on), cell.protocol()), STUDY_EVALUATIONS)
            trained_before = any(cell.config.key() == other.cell.config.key() for other in found)
            timed = len(done) < len(seeds) and not trained_before
            found.append(Forecast(cell, estimate(prepared).seconds if timed else 0.0, memory, done))
        except (UserError, RunFailed) as error:
            broken[str(error)].append(f"'{cell.name}'")
        observer.progress("timing", count, len(plan.cells))
    if broken:
        count = sum(map(len, broken.values()))
        reasons = first_few([f"{first_few(names)}: {error}" for error, names in broken.items()], "; ")
        raise UserError(f"{count} of {len(plan.cells)} cells can't run: {reasons}")
    if any(each.seconds for each in found):
        seconds = evaluation_seconds(baseline, prepare(baseline.of_seed(seeds[0]), store.folder, observer), observer)
        found = [each._replace(evaluation=seconds) for each in found]
    return found


def evaluation_seconds(cell: Cell, prepared: Prepared, observer: Observer) -> float:
    """How long the evaluations of a run take, measured on an untrained network."""
    model = build_model(prepared.config, prepared.data, prepared.device)
    subject = Subject(model, prepared.config, evaluated_on(prepared.data, cell.on), cell.protocol(), observer)
    start = perf_counter()
    for name in STUDY_EVALUATIONS:
        evaluate(subject, name)
    return perf_counter() - start


def _check_resplit(divisions: Sequence[Dataset]) -> None:
    """Raise UserError if --resplit does nothing, given the images as the first two seeds divide them."""
    if len(divisions) < 2:
        raise UserError("--resplit draws a new split for each seed: use two or more --seeds, or leave it out")
    first, second = (data.parts for data in divisions)
    if all(np.array_equal(first[part], second[part]) for part in first):
        raise UserError(
            "--resplit has nothing to divide, because the images come with their own validation and test images: "
            "leave it out"
        )


def _seeds_done(cell: Cell, first: Prepared, store: Store, seeds: Sequence[int]) -> list[int]:
    """The seeds whose training has finished. `first` is one of them, ready to train."""
    return [
        seed
        for seed in seeds
        for prepared in [with_seed(first, cell, seed, store)]
        if any(run.finished for run in store.of_config(prepared.config, prepared.data.identity))
    ]


def with_seed(prepared: Prepared, cell: Cell, seed: int, store: Store, observer: Observer = SILENT) -> Prepared:
    """A seed of a cell, given another one that is ready to train. They share the data, unless each seed divides it."""
    config = cell.of_seed(seed)
    if config.data == prepared.config.data:
        return prepared.with_config(config)
    return prepare(config, store.folder, observer)
