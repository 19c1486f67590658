"""Find a study in the record, check that it has the same plan, and open it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from experiments.runs.evaluate import prefix
from experiments.runs.train import record_images
from experiments.studies.cell import Cell
from experiments.studies.differences import differences
from experiments.studies.plan import STUDY_EVALUATIONS, StudyPlan
from experiments.studies.results import PLAN_FILE, CellDocument, StudyDocument
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, start_run
from simclr.data.dataset import Dataset, open_dataset, short_identity
from simclr.device import PRECISIONS
from simclr.device import resolve as resolve_device
from simclr.errors import UserError, first_few
from simclr.evaluate.protocol import evaluated_on, identity
from simclr.progress import SILENT, Observer


def check_study_name(name: str, plan: StudyPlan, store: Store, observer: Observer = SILENT) -> None:
    """Raise UserError if a study with this name has another plan or other images."""
    find_study(name, plan, open_dataset(plan.cells[0].config.data, store.folder, observer), store)


def part_to_evaluate_on(name: str, on: str | None, store: Store) -> str:
    """The images to evaluate a study on: what the user says, or else what the study used before, or validation if it is
    new."""
    document = document_of(name, store)
    return on or (document.on if document is not None else "val")


def document_of(name: str, store: Store) -> StudyDocument | None:
    """What the study with this name was, if there is one."""
    study = study_named(name, store)
    return None if study is None or study.find_artifact(PLAN_FILE) is None else StudyDocument.read(study)


def with_recorded_choices(name: str, plan: StudyPlan, store: Store) -> StudyPlan:
    """The plan with the settings that the study with this name has chosen for its cells before, if there is one."""
    document = document_of(name, store)
    before = {cell.cell: cell for cell in document.cells if cell.chosen} if document is not None else {}
    if document is None or document.equal != plan.equal or before.keys() != {cell.name for cell in plan.cells}:
        return plan
    cells = [cell.with_chosen(before[cell.name].chosen, before[cell.name].cost) for cell in plan.cells]
    return plan.with_cells(cells)


def study_named(name: str, store: Store) -> Record | None:
    """The newest study with this name, if there is one."""
    return next((record for record in store.records(kind="study") if record.name == name), None)


def find_study(name: str, plan: StudyPlan, data: Dataset, store: Store) -> Record | None:
    """The study with this name, or None. `data` is the baseline's. Raises UserError if the study has another plan."""
    if (study := study_named(name, store)) is None:
        return None
    digest, images = study.tags["plan"], study.tags["data_digest"]
    own = plan.cells[0].config.in_precision("auto").precision()
    theirs = next((auto for auto in (own, *PRECISIONS, "auto") if digest == plan.digest(images, auto)), None)
    if theirs is None:
        found = differences(study, plan)
        different = f" ({first_few(found, '; ')})" if found else ""
        raise UserError(
            f"study '{name}' exists with another plan{different}: to continue it, run the command that started it, or "
            f"choose another --name"
        )
    if images != data.identity:
        raise UserError(
            f"the images have changed since study '{name}' started (their digest is {short_identity(data.identity)}, "
            f"and was {short_identity(images)}): restore them, or choose another --name"
        )
    if theirs == "auto":  # an earlier version began it: its runs say what that stood for
        theirs = _precision_of(study, plan, store) or own
    if theirs != own:
        raise UserError(
            f"study '{name}' was trained in {theirs}, and auto stands for {own} here: add --set "
            f"train.precision={theirs}, or choose another --name"
        )
    if study.find_artifact(PLAN_FILE) is not None:
        plan.design.check_continues(StudyDocument.read(study).design, name)
    return study


def _precision_of(study: Record, plan: StudyPlan, store: Store) -> str | None:
    """The precision of a run of a study's cells that name none, if there is a run."""
    cells = [cell.name for cell in plan.cells if cell.config.train.precision == "auto"]
    names = {str(dtype).removeprefix("torch."): name for name, dtype in PRECISIONS.items()}
    tags = [run.tags for run in store.records(parent=study.id)]
    return next((names.get(each["precision"]) for each in tags if each["cell"] in cells and "precision" in each), None)


def open_study(name: str, plan: StudyPlan, store: Store, command: str, seeds: Sequence[int] = ()) -> Tracker:
    """Resume the study with this name, or start it. `command` is the command line that runs it, for the report.

    The seeds tell its report how many runs there will be. Raises UserError if the study exists with another plan.
    """
    baseline = plan.cells[0].config
    data = open_dataset(baseline.data, store.folder)
    own = seeds if plan.cells[0].resplit else ()
    divided = {seed: open_dataset(plan.cells[0].of_seed(seed).data, store.folder) for seed in own}
    document = _document(plan, data, divided, command).model_copy(update={"seeds": tuple(seeds)})
    if (study := find_study(name, plan, data, store)) is not None:
        tracker = Tracker(store, study.id)
        if (earlier := document_of(name, store)) is not None:
            document = document.continuing(earlier)
    else:
        tags = {"study": name, "plan": plan.digest(data.identity), "data_digest": data.identity}
        tracker = start_run(store, name, "study", baseline.flat(), tags)
        record_images(tracker, baseline, data)
    tracker.artifact(PLAN_FILE, document.write)
    return tracker


def _document(plan: StudyPlan, data: Dataset, divided: Mapping[int, Dataset], command: str) -> StudyDocument:
    """What a study's record holds. `data` is the baseline's, and `divided` the same as each seed divides it."""
    device = resolve_device(plan.cells[0].config.device)
    cells = [
        CellDocument(
            cell=cell.name,
            settings=cell.settings,
            layer=cell.layer,
            paper=cell.difference,
            direction=cell.direction,
            against=cell.against,
            caveat=cell.caveat,
            source=cell.source,
            pair=cell.pair,
            rates=cell.rates,
            chosen=cell.chosen,
            cost=cell.cost,
            protocols=protocols_of(cell, data, device),
            by_seed={seed: protocols_of(cell, own, device) for seed, own in divided.items()},
        )
        for cell in plan.cells
    ]
    if any(own.keys() != cell.protocols.keys() for cell in cells for own in cell.by_seed.values()):
        raise UserError(
            "the seeds leave different numbers of images for kNN, fewer than its k, so its accuracies can't be "
            "compared: leave --resplit out, or add images"
        )
    on = plan.cells[0].on
    return StudyDocument(
        x=plan.x,
        log=plan.log,
        on=on,
        lines=plan.lines,
        equal=plan.equal,
        command=command,
        cells=cells,
        design=plan.design,
        test_by_seed=any(not np.array_equal(own.parts["test"], data.parts["test"]) for own in divided.values()),
    )


def protocols_of(cell: Cell, data: Dataset, device: torch.device) -> dict[str, str]:
    """The metric that each of STUDY_EVALUATIONS gives a cell, and the identity of the protocol that it needs.

    The metric of kNN is named after k if there are few images.
    """
    protocol, images = cell.protocol(), evaluated_on(data, cell.on)
    (knn,) = protocol.knn.metric_names(images).values()
    return {
        prefix("h", on=cell.on) + metric: identity(name, protocol, cell.config, images, device)
        for name, metric in zip(STUDY_EVALUATIONS, ("linear_top1", knn), strict=True)
    }
