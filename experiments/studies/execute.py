"""Run a study from beginning to end: open it, run its cells, close it and report it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from typing import NamedTuple

from analysis.findings import count
from experiments.configs.resolve import changed
from experiments.studies.cell import Cell
from experiments.studies.opening import open_study, with_recorded_choices
from experiments.studies.plan import RATE, StudyPlan
from experiments.studies.report import report
from experiments.studies.results import read_results
from experiments.studies.run import run_study
from experiments.tracking.claims import claim_name
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from experiments.workers.pool import HERE, Pool
from simclr.errors import BadSettings, RunFailed, first_few
from simclr.progress import SILENT, Observer
from simclr.train.loop import Interrupted

RATES_SEED = 1000  # far above the seeds of a study, which has 100 at most


class StudyOutcome(NamedTuple):
    """A study that was run."""

    study: Record
    report: str  # its tables; empty if every cell failed
    failures: list[RunFailed]  # one for each run that failed

    def check(self) -> None:
        """Raise RunFailed if a cell failed."""
        if self.failures:
            raise RunFailed(_sentence(self.failures))


def execute(
    name: str,
    plan: StudyPlan,
    store: Store,
    seeds: Sequence[int],
    command: str,
    observer: Observer = SILENT,
    form: str = "terminal",
    pool: Pool = HERE,
) -> StudyOutcome:
    """Run a study, or what is missing of it, and report it. Its status is FAILED if a cell failed.

    If its cells have learning rates to try, a study of these comes first: see `tuned`. The plan's design may add seeds,
    by the spread of the given ones. `command` is the command line that runs it, for the report, whose tables are
    returned in the format `form`. `pool` does the runs. Raises UserError if the name belongs to another plan, and
    Interrupted if the observer asks to stop; run it again to resume. Raises Busy if another process is running it.
    """
    failed: RunFailed | None = None
    with claim_name(store, "study", name, observer):
        plan = with_recorded_choices(name, plan, store)
        tracker = open_study(name, plan, store, command, seeds)  # before anything is trained with epochs it has chosen
        try:
            with tracker.finishing(Interrupted):
                if plan.must_choose_rates():
                    plan = tuned(name, plan, store, seeds[0], command, observer, pool)
                    open_study(name, plan, store, command, seeds)
                failures = run_study(tracker, plan, store, seeds, observer, pool)
                text = ""
                if len(failures) < len(plan.cells) * len(seeds):
                    if more := _more_seeds(tracker, plan, store):
                        observer.say(
                            f"{count(len(more), 'more seed')} {'is' if len(more) == 1 else 'are'} trained to make the "
                            f"intervals as narrow as --until asks"
                        )
                        open_study(name, plan, store, command, sorted({*seeds, *more}))
                        failures += run_study(tracker, plan, store, more, observer, pool)
                    tables, others = report(tracker.record(), store, form)
                    text = "\n".join([tables, *others])
                if failures:  # raised inside, so that the study never looks finished
                    failed = RunFailed(_sentence(failures))
                    raise failed
        except RunFailed as error:
            if error is not failed:
                raise
    return StudyOutcome(tracker.record(), text, failures)


def _sentence(failures: Sequence[RunFailed]) -> str:
    return first_few([str(failure) for failure in failures], "; ")


def _more_seeds(study: Tracker, plan: StudyPlan, store: Store) -> range:
    """The seeds that follow the first ones of a plan's design. The same each time, so that the study can be resumed."""
    design = plan.design
    if design.until is None:
        return range(0)
    wanted, start = read_results(study.record(), store).seeds_wanted(), design.first[0]
    return range(start + len(design.first), start + min(wanted, design.most))


# --- learning rates ---------------------------------------------------------------------------------------------------


def rates_plan(name: str, plan: StudyPlan) -> StudyPlan:
    """A study of all learning rates that the cells of a plan try, evaluated on validation images.

    Raises UserError if a name becomes too long.
    """
    cells = [
        Cell(f"{cell.name}, lr={rate:g}", changed(cell.config, {RATE: rate}), cell.settings | {RATE: rate}, cell.layer)
        for cell in plan.cells
        for rate in cell.rates
    ]
    for cell in cells:
        changed(cell.config, {"name": cell.of_seed(0).name})
    lines = {cell.name: {f"{cell.name}, lr={rate:g}": rate for rate in cell.rates} for cell in plan.cells}
    return StudyPlan(cells, RATE, log=True, lines=lines, name=f"{name}-rates").evaluated_on("val")


def rates_seed(first: int) -> int:
    """The seed of the runs that choose learning rates, which is none of the study's own: those count up from `first`.

    With one of those, the chosen rate would be the best for that run partly by luck, and so favour it.
    """
    return first + RATES_SEED


def tuned(
    name: str,
    plan: StudyPlan,
    store: Store,
    first: int,
    command: str,
    observer: Observer = SILENT,
    pool: Pool = HERE,
) -> StudyPlan:
    """The plan in which each cell has the learning rate that is best for it on validation, by one run each.

    These runs form a separate study, with a report, and are resumed and reused like others. If rates are equally good,
    the first is chosen. A rate that makes training diverge isn't chosen. Raises RunFailed if no rate of a cell ran to
    the end, or if a run failed for another reason, which says nothing about its rate.
    """
    grid = rates_plan(name, plan)
    outcome = execute(grid.name, grid, store, [rates_seed(first)], command, observer, pool=pool)
    if unknown := [failure for failure in outcome.failures if not isinstance(failure, BadSettings)]:
        raise RunFailed(
            f"learning rates can't be compared, because a run failed for another reason: {_sentence(unknown)}. Remove "
            f"the cause, and run the same command again"
        )
    results = read_results(outcome.study, store)
    accuracy = results.table.set_index("cell")[results.document.metrics()[0]]
    cells = []
    for cell in plan.cells:
        tried = {rate: accuracy.get(f"{cell.name}, lr={rate:g}", nan) for rate in cell.rates}
        if all(map(isnan, tried.values())):
            raise RunFailed(f"no learning rate of '{cell.name}' ran to the end: see `simclr report {grid.name}`")
        cells.append(cell.with_chosen({RATE: max(tried, key=lambda rate: (not isnan(tried[rate]), tried[rate]))}))
    return plan.with_cells(cells)
