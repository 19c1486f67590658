"""After a search: report it, then train its best trials again with fresh seeds to see how much of the gain is real."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import nan
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.tables import write_csv
from experiments.configs.resolve import changed
from experiments.search.report import BEST, IMAGES, START, report
from experiments.search.trial_jobs import validation_accuracy
from experiments.search.trial_table import outcome, ranked
from experiments.search.trials import SETTINGS, Search
from experiments.studies.cell import BASELINE, Cell
from experiments.studies.execute import StudyOutcome, execute
from experiments.studies.plan import StudyPlan
from experiments.workers.pool import HERE, Pool
from simclr.config import to_toml
from simclr.errors import RunFailed
from simclr.progress import SILENT, Observer

SELECTION_COLUMNS = ["in the search", "fresh seeds"]


class SearchOutcome(NamedTuple):
    """What a search found."""

    summary: str  # how the trials ended, the start and the best one, and where the report is
    best: dict[str, Any]  # the best trial: its number, accuracy on validation in percent, and settings
    study: StudyOutcome | None = None  # of the best trials with fresh seeds
    selection: pd.DataFrame | None = None  # see `selection_table`, accuracies in percent
    notes: Sequence[str] = ()  # how to read it
    next: Sequence[str] = ()  # commands that train the best config


def confirm(
    search: Search,
    start: float,
    *,
    top: int,
    seeds: int,
    command: str,
    observer: Observer = SILENT,
    form: str = "terminal",
    pool: Pool = HERE,
) -> SearchOutcome:
    """Report a search, then its `top` best trials and its baseline in a study with fresh seeds (0: no study).

    `start` is the baseline's accuracy on validation, and `command` the command line that the report shows. The study is
    reported in the format `form`. Raises RunFailed if no trial but the baseline ran to the end.
    """
    summary = record_trials(search, start)
    if not (order := ranked(search.study)):
        raise RunFailed(f"no trial ran to the end: allow more --memory, --trials or --max-hours ({summary})")
    path, fresh_seed = search.tracker.record().artifact(BEST), search.full.config.seed + seeds + 1
    found = SearchOutcome(
        summary,
        {"trial": order[0].number, "accuracy": 100 * order[0].values[0], "settings": order[0].user_attrs[SETTINGS]},
        next=[f"simclr pretrain --config {shlex.quote(str(path))} --seed {fresh_seed}"],
    )
    if not seeds:
        return found
    observer.say(summary)
    plan, first = confirmation_plan(search, top), search.full.config.seed + 1
    fresh = range(first, first + seeds)
    name = "-".join([search.name, *(cell.name.replace(" ", "-") for cell in plan.cells[1:])])
    study = execute(name, plan, search.store, fresh, command, observer, form, pool)
    found = found._replace(study=study)
    if not study.report:
        return found
    table = selection_table(search, plan, start, fresh, observer)
    search.tracker.artifact("selection.csv", lambda path: write_csv(table, path))
    report(search.tracker.record(), search.store)  # which now says how much of the gain is real
    percent = table.assign(**{column: (100 * table[column]).round(2) for column in SELECTION_COLUMNS})
    return found._replace(selection=percent, notes=selection_notes(search, table))


def record_trials(search: Search, start: float) -> str:
    """Keep the best config and the report with the search's run. Returns a summary of a few lines."""
    tracker = search.tracker
    if best := ranked(search.study):
        config = changed(search.full.config, best[0].user_attrs[SETTINGS])
        config = config.model_copy(update={"name": f"{search.name}-best"})
        tracker.artifact(BEST, lambda path: path.write_text(to_toml(config), encoding="utf-8"))
    tracker.tag({START: start, IMAGES: len(search.baseline.data.parts["val"])})
    _, where = report(tracker.record(), search.store)
    return "\n".join([*outcome(search.study, start), *where])


def confirmation_plan(search: Search, top: int) -> StudyPlan:
    """A study of the best trials at full size, next to the config that the search started from.

    Raises RunFailed if no trial but that config ran to the end.
    """
    full = search.full.config
    cells: dict[str, Cell] = {}
    for trial in ranked(search.study):
        settings = trial.user_attrs[SETTINGS]
        config = changed(full, settings)
        if config.key() != full.key():
            cells.setdefault(config.key(), Cell(f"trial {trial.number}", config, settings))
    if not cells:
        raise RunFailed("no trial but the starting config ran to the end: allow more --memory, --trials or --max-hours")
    return StudyPlan([Cell(BASELINE, full), *list(cells.values())[:top]])


def selection_table(
    search: Search, plan: StudyPlan, start: float, seeds: Sequence[int], observer: Observer = SILENT
) -> pd.DataFrame:
    """Accuracy on validation of each cell: in the search, and the mean over the `n` fresh seeds that finished."""
    searched = {f"trial {trial.number}": trial.values[0] for trial in ranked(search.study)} | {BASELINE: start}
    data, device = search.full.data, search.full.device
    rows = []
    for cell in plan.cells:
        runs = [search.store.of_config(cell.of_seed(seed), data.identity) for seed in seeds]
        finished = [next((run for run in of_seed if run.finished), None) for of_seed in runs]
        fresh = [validation_accuracy(run, data, device, observer) for run in finished if run is not None]
        mean = float(np.mean(fresh)) if fresh else nan
        rows.append({"cell": cell.name, "in the search": searched[cell.name], "fresh seeds": mean, "n": len(fresh)})
    return pd.DataFrame(rows)


def selection_notes(search: Search, table: pd.DataFrame) -> list[str]:
    """How to read `selection_table`: how much of the best trial's gain came from selection, or, after a search with a
    proxy, how well the proxy ranks the trials."""
    chosen = table[table["cell"] != BASELINE]
    if search.baseline.config.key() == search.full.config.key():
        gain, kept = (100 * float(chosen.iloc[0][column] - table.iloc[0][column]) for column in SELECTION_COLUMNS)
        return [
            "accuracies on validation in percent; trials were chosen by their accuracy in the search, so only the "
            "fresh seeds are unbiased",
            f"{chosen.iloc[0]['cell']} against the baseline: {gain:+.2f} points in the search, {kept:+.2f} with fresh "
            f"seeds, so {gain - kept:+.2f} came from selection",
        ]
    searched, fresh = (chosen[column].to_numpy() for column in SELECTION_COLUMNS)
    ranks = f"{spearmanr(searched, fresh).statistic:.2f}" if len(chosen) > 2 else "needs --top 3"
    return [
        "accuracies on validation in percent: of the proxy in the search, and of the full size with fresh seeds",
        f"rank correlation (Spearman) between both over {len(chosen)} trials: {ranks}",
    ]
