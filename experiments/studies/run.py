"""Run the cells of a study. No run is repeated, and a cell that fails doesn't stop the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from experiments.runs.encoders import WeightsMissing, encoder_of, load_subject
from experiments.runs.estimate import estimate
from experiments.runs.evaluate import evaluate_encoder, prefix
from experiments.runs.expected import Expected
from experiments.runs.prepare import Prepared, check_labels, prepare
from experiments.runs.train import record_images, train_or_resume
from experiments.studies.cell import Cell
from experiments.studies.differences import differences
from experiments.studies.plan import STUDY_EVALUATIONS, StudyPlan
from experiments.studies.results import PLAN_FILE, CellDocument, StudyDocument
from experiments.tracking.claims import Busy, claim_config
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, copy_run, start_run
from experiments.workers.pool import HERE, Job, Pool
from experiments.workers.task import Unfit
from simclr.build import build_model
from simclr.data.dataset import Dataset, open_dataset, short_identity
from simclr.device import PRECISIONS
from simclr.device import resolve as resolve_device
from simclr.errors import BadSettings, RunFailed, UserError, first_few
from simclr.evaluate.evaluations import check, evaluate
from simclr.evaluate.protocol import evaluated_on, identity
from simclr.evaluate.subject import Subject
from simclr.progress import SILENT, Observer
from simclr.train.loop import Interrupted


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
            document = document.with_seeds_of(earlier)
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


def run_study(
    study: Tracker,
    plan: StudyPlan,
    store: Store,
    seeds: Sequence[int],
    observer: Observer = SILENT,
    pool: Pool = HERE,
) -> list[RunFailed]:
    """Run what is missing of a study. Returns the error of each run that failed, which its record has too.

    An error is a BadSettings if the settings of the cell are to blame. A cell that another process is training comes
    last. If the process is killed, calling this again resumes the study. Raises Interrupted if the observer asks to
    stop, and KeyboardInterrupt if it does while this waits for another process.
    """
    parent = study.record()
    failures: list[RunFailed] = []
    missing = list(plan.jobs(seeds))
    done, total = 0, len(missing)
    observer.overall("run", done, total, "")
    for wait in (False, True):
        jobs, missing = _cell_jobs(parent, plan, missing, observer, wait), []
        for ended in pool.run(jobs, store, observer):
            cell, seed = ended.job.arguments[:2]
            try:
                ended.result()
            except Busy as error:
                observer.say(f"{error}: the other cells come first")
                missing.append((cell, seed))
                continue
            except Unfit:
                raise
            except Interrupted as stopped:
                where = f" of '{ended.job.name}', with {done} of {total} runs done"
                raise Interrupted(stopped.step, where) from None
            except (UserError, RunFailed, RuntimeError) as error:  # torch raises RuntimeError for most of its failures
                text = str(error) if isinstance(error, UserError | RunFailed) else f"{type(error).__name__}: {error}"
                kind = BadSettings if isinstance(error, BadSettings) else RunFailed
                failures.append(kind(f"'{cell.name}', seed {seed}: {text}"))
                config, tags = cell.of_seed(seed), _tags(parent, cell, seed) | {"error": text}
                failed = start_run(store, config.run_name(), "cell", config.flat(), tags, parent=parent.id)
                failed.finish("FAILED")
            done += 1
            observer.overall("run", done, total, "")  # not the best one: that would be chosen by its luck, too
    return failures


def _cell_jobs(
    study: Record, plan: StudyPlan, cells: Sequence[tuple[Cell, int]], observer: Observer, wait: bool
) -> Iterator[Job]:
    """The jobs of cells, each with a seed."""
    expected = Expected.of(plan.cells[0].config, study.tags["data_digest"])
    for cell, seed in cells:
        name, key = f"{cell.name}, seed {seed}", cell.of_seed(seed).key()
        observer.say(name)
        yield Job(name, key, train_cell, (cell, seed, study.id, expected, wait), observer)


def train_cell(
    store: Store, observer: Observer, cell: Cell, seed: int, study: str, expected: Expected, wait: bool
) -> float:
    """Run one cell with one seed, as a job. Returns its accuracy, as `run_cell` does.

    Raises Unfit if this machine has other images than the study (given by its id) or can't compute as it does, and,
    without `wait`, Busy if another process is training the same config.
    """
    prepared = expected.prepare(cell.of_seed(seed), store.folder, observer)
    with claim_config(store, prepared.config.key(), prepared.data.identity, wait=wait, observer=observer):
        return run_cell(store.get(study), cell, prepared, store, observer)


def run_cell(study: Record, cell: Cell, prepared: Prepared, store: Store, observer: Observer = SILENT) -> float:
    """Train and evaluate one cell with one seed, as far as that is missing, and add it to the study.

    Returns its accuracy under the first of STUDY_EVALUATIONS.

    A run of the same config that belongs elsewhere is copied into the study. An unfinished one is resumed, or started
    over if its checkpoint can't be used here. One whose weights are needed and were deleted is trained again.
    """
    tags = _tags(study, cell, prepared.config.seed)
    run = train_or_resume(prepared, store, tags=tags, parent=study.id, observer=observer)
    try:
        _evaluate(run, cell, prepared, store, observer)
    except WeightsMissing as error:
        observer.say(f"{error.fact}. It is trained again")
        run = train_or_resume(prepared, store, again=True, tags=tags, parent=study.id, observer=observer)
        _evaluate(run, cell, prepared, store, observer)
    run = store.get(run.id)
    if run.parent != study.id or run.tags.get("cell") != cell.name:
        copies = [child for child in store.records(parent=study.id, copied_from=run.id) if child.finished]
        if not any(copy.tags["cell"] == cell.name for copy in copies):
            copy_run(store, run, "cell", tags, parent=study.id)
    metric, *_ = protocols_of(cell, prepared.data, prepared.device)
    return run.metrics[f"eval/{prefix(cell.layer)}{metric}"]


def _tags(study: Record, cell: Cell, seed: int) -> dict[str, str]:
    return {"study": study.name, "cell": cell.name, "seed": str(seed)}


def _evaluate(run: Record, cell: Cell, prepared: Prepared, store: Store, observer: Observer) -> None:
    """Run STUDY_EVALUATIONS, except for those that the run's record has under the current protocol."""
    protocols = protocols_of(cell, prepared.data, prepared.device)
    missing = [
        name
        for name, (metric, protocol) in zip(STUDY_EVALUATIONS, protocols.items(), strict=True)
        if run.protocols.get(prefix(cell.layer) + metric) != protocol
    ]
    if missing:
        encoder = encoder_of(run)
        subject = load_subject(encoder, prepared.data, cell.protocol(), prepared.device, observer)
        evaluate_encoder(encoder, subject, store, missing)
