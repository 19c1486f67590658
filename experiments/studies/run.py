"""Run the cells of a study. No run is repeated, and a cell that fails doesn't stop the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from experiments.runs.encoders import WeightsMissing, encoder_of, load_subject
from experiments.runs.evaluate import evaluate_encoder, prefix
from experiments.runs.expected import Expected
from experiments.runs.prepare import Prepared
from experiments.runs.train import train_or_resume
from experiments.studies.cell import Cell
from experiments.studies.opening import protocols_of
from experiments.studies.plan import STUDY_EVALUATIONS, StudyPlan
from experiments.tracking.claims import Busy, claim_config
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, copy_run, start_run
from experiments.workers.pool import HERE, Job, Pool
from experiments.workers.task import Unfit
from simclr.errors import BadSettings, RunFailed, UserError
from simclr.progress import SILENT, Observer
from simclr.train.loop import Interrupted


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
