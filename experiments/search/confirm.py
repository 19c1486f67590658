"""After a search: report it, then train its best trials again with fresh seeds to see how much of the gain holds."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import nan
from typing import Any, NamedTuple

import pandas as pd
from scipy.stats import spearmanr

from analysis.findings import count
from analysis.statistics import paired_difference
from analysis.tables import write_csv
from analysis.text import percent
from experiments.configs.resolve import changed
from experiments.runs.pages import where
from experiments.search.report import BEST, IMAGES, SELECTION, START_ACCURACY, finding, report, settings_text
from experiments.search.space import start_trial
from experiments.search.trial_jobs import validation_accuracy
from experiments.search.trial_table import ended, ranked, trial_table
from experiments.search.trials import DRAWN, SETTINGS, Search
from experiments.studies.cell import BASELINE, Cell
from experiments.studies.execute import StudyOutcome, execute
from experiments.studies.opening import part_to_evaluate_on, study_named
from experiments.studies.plan import StudyPlan
from experiments.studies.report import finding as study_finding
from experiments.studies.results import read_results
from experiments.tracking.deleting import CONFIRMS
from experiments.tracking.writing import Tracker
from experiments.workers.pool import HERE, Pool
from simclr.config import to_toml
from simclr.errors import RunFailed
from simclr.progress import SILENT, Observer


class SearchOutcome(NamedTuple):
    """What a search found."""

    summary: str  # how the trials ended, the best one, its settings, and whether its gain is real
    best: dict[str, Any]  # the best trial: its number, accuracy on validation in percent, and settings
    report: str  # where its page is, in one line
    study: StudyOutcome | None = None  # of the best trials with fresh seeds
    selection: pd.DataFrame | None = None  # see `selection_table`
    notes: Sequence[str] = ()  # how to read it
    next: Sequence[str] = ()  # commands that train the best config, unless no trial beat the start
    remark: str = ""  # on these commands


def confirm(
    search: Search,
    start: float,
    *,
    top: int,
    seeds: int,
    command: str,
    on: str | None = None,
    observer: Observer = SILENT,
    form: str = "terminal",
    pool: Pool = HERE,
) -> SearchOutcome:
    """Report a search, then its `top` best trials and its baseline in a study with fresh seeds (0: no study).

    `start` is the baseline's accuracy on validation, and `command` the command line that the report shows. The study is
    reported in the format `form`, and evaluated `on` test or val (default: what it used before, or val if it is new).
    Raises RunFailed if no trial but the baseline ran to the end.
    """
    record_trials(search, start)
    if not (order := ranked(search.study)):
        counted = "; ".join(ended(search.study))
        raise RunFailed(f"no trial ran to the end: allow more --memory, --trials or --max-hours ({counted})")
    beaten = order[0].values[0] > start
    record, fresh_seed = search.tracker.record(), search.full.config.seed + seeds + 1
    found = SearchOutcome(
        summary(search),
        {"trial": order[0].number, "accuracy": percent(order[0].values[0]), "settings": order[0].user_attrs[SETTINGS]},
        where(record, search.store),
        next=[f"simclr pretrain --config {shlex.quote(str(record.artifact(BEST)))} --seed {fresh_seed}"] * beaten,
        remark=_limited(search.full.config.data.limit) * beaten,
    )
    if not seeds:
        return found
    plan, first = confirmation_plan(search, top), search.full.config.seed + 1
    fresh = range(first, first + seeds)
    chosen = [cell.name for cell in plan.cells[1:]]
    name = "-".join([search.name, *(each.replace(" ", "-") for each in chosen)])
    plan = plan.evaluated_on(on := part_to_evaluate_on(name, on, search.store))
    observer.say(
        f"your config and {', '.join(chosen)} are trained again with {count(seeds, 'fresh seed')}, and evaluated on "
        f"{'validation' if on == 'val' else on} images"
    )
    with _belonging(name, search):
        study = execute(name, plan, search.store, fresh, command, observer, form, pool)
    found = found._replace(study=study)
    if not study.report:
        return found
    table = selection_table(search, plan, start, fresh, observer)
    on_test = ""
    if on == "test":
        results = read_results(study.study, search.store)
        own = results.table[results.table["seed"].isin(fresh)]  # it may have more seeds, from an earlier command
        means = own.groupby("cell")[results.document.metrics()[0]].mean()
        table = table.assign(test=table["cell"].map(means))
        on_test = f"\nOn test images: {study_finding(study.study, search.store)}"
    search.tracker.artifact(SELECTION, lambda path: write_csv(table, path))
    report(search.tracker.record(), search.store)  # which now says how much of the gain holds
    found = found._replace(summary=summary(search) + on_test, selection=table, notes=selection_notes(search, table))
    lost = table["gain"].iloc[1] < 0  # so the best config of the search is not the one to train
    return found._replace(next=(), remark="") if lost else found


def _limited(images: int | None) -> str:
    """What to know about the best config if it has few of the images, or an empty text."""
    if images is None:
        return ""
    return f"{BEST} keeps data.limit = {images}. To train on all images, add --set data.limit=none."


@contextmanager
def _belonging(study: str, search: Search) -> Iterator[None]:
    """Record that the study of this name, which is run meanwhile, confirms a search, also if it is stopped."""
    try:
        yield
    finally:
        if (begun := study_named(study, search.store)) is not None:
            Tracker(search.store, begun.id).tag({CONFIRMS: search.name})


def record_trials(search: Search, start: float) -> None:
    """Keep the best config and the report with the search's run."""
    tracker = search.tracker
    if best := ranked(search.study):
        config = changed(search.full.config, best[0].user_attrs[SETTINGS])
        config = config.model_copy(update={"name": f"{search.name}-best"})
        tracker.artifact(BEST, lambda path: path.write_text(to_toml(config), encoding="utf-8"))
    tracker.tag({START_ACCURACY: start, IMAGES: len(search.baseline.data.parts["val"])})
    report(tracker.record(), search.store)


def summary(search: Search) -> str:
    """How the trials of a recorded search ended, the best one with its settings, and whether its gain is real."""
    order = ranked(search.study)
    drawn = [start_trial(each.number, each.user_attrs[DRAWN]) for each in order if each.user_attrs.get(DRAWN)]
    best = f"Settings of trial {order[0].number}: {settings_text(order[0].user_attrs[SETTINGS])}."
    trials = trial_table(search.study, search.objectives.split(","))
    first, *others = finding(search.tracker.record(), trials)
    return "\n".join([*ended(search.study), first, best, *drawn, *others])


def confirmation_plan(search: Search, top: int) -> StudyPlan:
    """A study of the best trials at full size, next to the starting config.

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
    """Accuracy on validation of each cell: in the search, and the mean over the `n` fresh seeds that finished.

    The gain is the mean difference from the baseline over the fresh seeds that both have, with its 95 % interval (nan
    below three). The gain in the search is nan if its trials were cheaper, with a proxy.
    """
    searched = {f"trial {trial.number}": trial.values[0] for trial in ranked(search.study)} | {BASELINE: start}
    data, device = search.full.data, search.full.device
    same_size = search.baseline.config.key() == search.full.config.key()
    fresh: dict[str, pd.Series[float]] = {}
    rows = []
    for cell in plan.cells:
        runs = {seed: search.store.of_config(cell.of_seed(seed), data.identity) for seed in seeds}
        finished = {seed: [run for run in of_seed if run.finished] for seed, of_seed in runs.items()}
        own = {seed: validation_accuracy(done[0], data, device, observer) for seed, done in finished.items() if done}
        fresh[cell.name] = pd.Series(own, dtype=float)
        row = {"cell": cell.name, "in the search": searched[cell.name], "fresh seeds": fresh[cell.name].mean()}
        row |= {"n": len(own), "gain in the search": nan, "gain": nan, "gain_low": nan, "gain_high": nan}
        pairs = pd.concat([fresh[cell.name], fresh[BASELINE]], axis=1).dropna()
        if cell.name != BASELINE and len(pairs):
            gain = paired_difference(pairs[0], pairs[1])
            row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
            row["gain in the search"] = searched[cell.name] - start if same_size else nan
        rows.append(row)
    return pd.DataFrame(rows)


def selection_notes(search: Search, table: pd.DataFrame) -> list[str]:
    """How to read `selection_table` and, after a search with a proxy, how well the proxy ranks the trials."""
    return [
        *_luck(search, table),
        "Accuracies on validation are those of the search, whose classifier uses the L2 penalty that is best on these "
        "images. The report of the fresh seeds chooses it on training images, so its accuracies differ.",
    ]


def _luck(search: Search, table: pd.DataFrame) -> list[str]:
    chosen = table[table["cell"] != BASELINE]
    if search.baseline.config.key() == search.full.config.key():
        return [
            "Trials were chosen for their accuracy in the search, which is partly luck. Fresh seeds are free of this "
            "luck, except that the validation images are the same."
        ]
    searched, fresh = (chosen[column].to_numpy() for column in ("in the search", "fresh seeds"))
    ranks = "The rank correlation between the two needs --top 3 or more."
    if len(chosen) > 2:
        rank = spearmanr(searched, fresh).statistic
        ranks = f"The rank correlation (Spearman) between the two over {len(chosen)} trials is {rank:.2f}."
    return [
        "Trials were trained with the proxy's settings in the search, and at full size with fresh seeds.",
        ranks,
    ]
