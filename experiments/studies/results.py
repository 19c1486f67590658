"""What the record of a study holds: its plan, as plan.json, and the results of its runs."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel

from experiments.runs.evaluate import predictions, prefix
from experiments.studies.cell import BASELINE, baseline_label
from experiments.studies.design import Design
from experiments.tracking.store import Record, Store

PLAN_FILE = "plan.json"
NOT_EVALUATED = "NOT EVALUATED"  # trained, but without a result under the study's protocols
UNENDED = ("RUNNING", "KILLED", "SCHEDULED", NOT_EVALUATED)  # states of a run that the study is still to finish
Job = tuple[str, int]  # the name of a cell, and a seed


class CellDocument(BaseModel):
    """A cell as plan.json describes it. Field names are the keys of the file."""

    cell: str  # its name
    settings: dict[str, Any]  # that differ from the baseline
    layer: str
    paper: float | None  # the expected difference to the baseline in points
    direction: str | None  # "lower" or "higher"
    against: str | None = None  # the cell with which these compare this one, unless that is the baseline
    caveat: str | None = None  # why the paper leads to expect nothing
    source: str | None
    pair: tuple[str, str] | None
    rates: tuple[float, ...] = ()  # learning rates, of which the study chose one for it
    chosen: dict[str, Any] = {}  # settings that the study chose for it
    cost: float | None = None  # of its training, as a share of the baseline's, if cells cost the same
    protocols: dict[str, str]  # the identity of the protocol under which each metric counts
    by_seed: dict[int, dict[str, str]] = {}  # the same for each seed, if each has its own division of the images

    def protocols_of(self, seed: int) -> dict[str, str]:
        """The identity of the protocol under which each metric counts for a seed."""
        return self.by_seed.get(seed, self.protocols)


class StudyDocument(BaseModel):
    """The content of plan.json: what a report needs in addition to the runs of a study. The baseline comes first."""

    x: str | None
    log: bool
    on: str = "test"  # the images to evaluate on: test, or val
    lines: dict[str, dict[str, float]]
    equal: str | None = None  # what all cells cost alike: time or flops
    command: str  # that runs the study
    seeds: tuple[int, ...] = ()  # that it was last run with; empty in records of earlier versions
    earlier: tuple[int, ...] = ()  # the numbers of seeds that it was run with before
    cells: list[CellDocument]
    design: Design = Design()
    test_by_seed: bool = False  # whether seeds hold out different test images

    def metrics(self) -> list[str]:
        """The metrics that the study reports."""
        return list(self.cells[0].protocols)

    def continuing(self, before: StudyDocument) -> Self:
        """The same document with the numbers of seeds of the one before, and with its splits by seed, if both are
        evaluated on the same images."""
        earlier = {*before.earlier, len(before.seeds)} - {0}  # for a record of an earlier version, it isn't known
        found = self.model_copy(update={"earlier": tuple(sorted(earlier))})
        if self.on != before.on:
            return found
        splits = {cell.cell: cell.by_seed for cell in before.cells}
        cells = [cell.model_copy(update={"by_seed": splits[cell.cell] | cell.by_seed}) for cell in self.cells]
        return found.model_copy(update={"cells": cells})

    @classmethod
    def read(cls, study: Record) -> Self:
        """The document of a study. Raises UserError if it is missing."""
        return cls.model_validate_json(study.artifact(PLAN_FILE).read_text(encoding="utf-8"))

    def write(self, path: Path) -> None:
        """Write plan.json."""
        path.write_text(self.model_dump_json(indent=2, exclude_defaults=True), encoding="utf-8")


class Results(NamedTuple):
    """All that a report is made of."""

    document: StudyDocument
    table: pd.DataFrame  # one row per cell and seed: status, error, images_per_second, seconds and the metrics
    correct: dict[str, dict[Job, NDArray[np.bool_]]]  # by metric: which images were classified correctly
    runs: dict[Job, Record]  # the runs that trained; for a copy, the original
    baseline: str  # what readers see as its name, which says its values of the settings that are varied

    def seeds(self) -> list[int]:
        """The seeds that have figures."""
        known = self.table[self.document.metrics()].notna().any(axis=1)
        return sorted(set(self.table["seed"][known].tolist()))

    def label(self, cell: str) -> str:
        """The name of a cell for readers."""
        return self.baseline if cell == BASELINE else cell

    def progress(self) -> tuple[int, int]:
        """How many runs have ended, and how many there will be. Earlier versions did not record the number of seeds."""
        seeds = self.document.seeds or tuple(set(self.table.get("seed", [])))
        jobs = {(cell.cell, seed) for cell in self.document.cells for seed in seeds}
        ended = {(row["cell"], row["seed"]) for row in self.table.to_dict("records") if row["status"] not in UNENDED}
        return len(jobs & ended), len(jobs)

    def images(self) -> list[int]:
        """How many images the runs were evaluated on: one number, unless it differs between seeds."""
        return sorted({len(right) for by_job in self.correct.values() for right in by_job.values()})

    def seeds_wanted(self) -> int:
        """How many seeds the study's design asks for, by its first metric."""
        document = self.document
        return document.design.seeds_wanted(self.table, document.metrics()[0], document.cells[0].cell)


def read_results(study: Record, store: Store) -> Results:
    """Read the runs of a study.

    If there are several for a cell and seed, the newest one with results counts, or else the newest. A metric counts
    if it was measured under the study's own protocol.
    """
    document = StudyDocument.read(study)
    cells = {cell.cell: cell for cell in document.cells}
    rows: dict[Job, dict[str, Any]] = {}
    correct: dict[str, dict[Job, NDArray[np.bool_]]] = {metric: {} for metric in document.metrics()}
    runs: dict[Job, Record] = {}
    for child in reversed(store.records(parent=study.id)):  # the oldest first, so that newer ones replace it
        job = child.tags["cell"], int(child.tags["seed"])
        run = store.get(child.tags["copied_from"]) if "copied_from" in child.tags else child
        metrics = {}
        for metric, name in _measured(run, cells[job[0]], job[1]).items():
            metrics[metric] = run.metrics[f"eval/{name}"]
            predicted, labels = predictions(run, name)
            correct[metric][job] = predicted == labels
        if job in rows and rows[job]["status"] == "FINISHED" and not metrics:
            continue
        if run.kind == "pretrain":
            runs[job] = run
        status = NOT_EVALUATED if child.finished and not metrics else child.status
        rows[job] = {"cell": job[0], "seed": job[1], "status": status, "error": child.tags.get("error")}
        rows[job] |= _speed(run) | {metric: metrics.get(metric, np.nan) for metric in document.metrics()}
    settings = [(cell.cell, cell.settings) for cell in document.cells]
    label = baseline_label(settings, study.params, document.x)
    return Results(document, pd.DataFrame(rows.values()), correct, runs, label)


def settings_by_cell(document: StudyDocument, own: Mapping[str, str]) -> dict[str, list[Any]]:
    """The value of every setting that varies in a study, for each of its cells; and of `layer`, if that varies.

    `own` are the parameters of the study's record, which are the baseline's.
    """
    cells = [{**cell.settings, **cell.chosen, "layer": cell.layer} for cell in document.cells]
    names = dict.fromkeys(name for cell in cells for name in cell)
    values = {name: [cell.get(name, _value(own.get(name, "None"))) for cell in cells] for name in names}
    if len(set(values["layer"])) == 1:
        del values["layer"]
    return values


def _value(text: str) -> Any:
    """The value of a setting in a record, which holds it as Python prints it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a word


def _measured(run: Record, cell: CellDocument, seed: int) -> dict[str, str]:
    """The metrics that a run has under the protocols of its cell and seed, and their names in its record."""
    protocols = cell.protocols_of(seed)
    names = {metric: prefix(cell.layer) + metric for metric in protocols}
    return {metric: name for metric, name in names.items() if run.protocols.get(name) == protocols[metric]}


def _speed(run: Record) -> dict[str, float]:
    """The images per second of a run and the seconds that its training took; nan if it logged nothing."""
    speed = run.history("perf/images_per_second")["value"].median()
    steps = run.history("train/loss")["step"].max()
    return {"images_per_second": speed, "seconds": steps * int(run.params["train.batch_size"]) / speed}
