"""Run a study from beginning to end: open it, run its cells, close it and report it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from experiments.studies.plan import StudyPlan
from experiments.studies.report import report
from experiments.studies.run import open_study, run_study
from experiments.tracking.claims import claim_name
from experiments.tracking.store import Record, Store
from simclr.errors import RunFailed, first_few
from simclr.progress import SILENT, Observer
from simclr.train.loop import Interrupted


class StudyOutcome(NamedTuple):
    """A study that was run."""

    study: Record
    report: str  # its tables; empty if every cell failed
    failures: list[str]  # a sentence for each cell that failed

    def check(self) -> None:
        """Raise RunFailed if a cell failed."""
        if self.failures:
            raise RunFailed(first_few(self.failures, "; "))


def execute(
    name: str,
    plan: StudyPlan,
    store: Store,
    seeds: Sequence[int],
    command: str,
    observer: Observer = SILENT,
    form: str = "terminal",
) -> StudyOutcome:
    """Run a study, or what is missing of it, and report it. Its status is FAILED if a cell failed.

    `command` is the command line that runs it, for the report, whose tables are returned in the format `form`. Raises
    UserError if the name belongs to another plan, and Interrupted if the observer asks to stop; run it again to resume.
    Raises Busy if another process is running it.
    """
    failed: RunFailed | None = None
    with claim_name(store, "study", name):
        tracker = open_study(name, plan, store, command)
        try:
            with tracker.finishing(Interrupted):
                failures = run_study(tracker, plan, store, seeds, observer)
                text = ""
                if len(failures) < len(plan.cells) * len(seeds):
                    tables, others = report(tracker.record(), store, form)
                    text = "\n".join([tables, *others])
                if failures:  # raised inside, so that the study never looks finished
                    failed = RunFailed(first_few(failures, "; "))
                    raise failed
        except RunFailed as error:
            if error is not failed:
                raise
    return StudyOutcome(tracker.record(), text, failures)
