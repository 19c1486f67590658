"""The report of a search: its best trial, its pictures and its trials, made from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path

import pandas as pd

from analysis.findings import of_search
from analysis.page import Section, page
from analysis.tables import FORMATS, MISSING, format_value, signed, with_interval, write_csv
from analysis.text import percent, to_json
from analysis.trials import pictures
from experiments.configs.resolve import short_name
from experiments.runs.pages import PAGE, figure, link, report_files, report_folder, text_of, where
from experiments.search.saved import saved_study
from experiments.search.space import in_short
from experiments.search.trial_table import outcome, parameter_table, trial_table
from experiments.studies.cell import BASELINE
from experiments.tracking.store import Record, Store

IMAGES = "validation_images"  # tag of a search: how many images its accuracies are about
START_ACCURACY = "start"  # tag of a search: the accuracy on validation of the config that it started from, in [0, 1]
BEST = "best.toml"  # the best config
SELECTION = "selection.csv"  # the best trials with fresh seeds
CHOSEN = {  # its columns of accuracies, and how they are called in what people read
    "in the search": "in the search: validation (%)",
    "fresh seeds": "fresh seeds: validation (%)",
    "test": "fresh seeds: test (%)",
}
COLUMNS = ["Trial", "Accuracy on validation (%)", "Training (s)", "Settings"]  # columns of the page's first table
EXACT = (
    f"Names of settings are shortened, and their values rounded. The best config, below and in {BEST}, has both in "
    "full, and so does the table of all trials."
)
SHOWN = 15  # trials of the page's first table
FACTS = ("trial", "state", "accuracy", "time", "rejected", "error", "seconds", "run")  # the others are settings


def report(search: Record, store: Store, form: str = "terminal", out: Path | None = None) -> tuple[str, list[str]]:
    """Write the page, the pictures and the trials of a search, and keep them with its record.

    Returns the table of its trials in a format, json or one of `analysis.tables.FORMATS`, and a line that says where
    the page is. The files are also copied to `out`. Raises UserError if `out` can't be written to, or if the trials are
    missing.
    """
    study = saved_study(search.name, store)
    objectives = ["accuracy", "time"][: len(study.directions)]
    whole = trial_table(study, objectives)
    # A parameter that is searched under a condition is there twice, also under the name of its setting.
    trials = whole[[name for name in map(str, whole) if " (" not in name]]
    with report_folder(search, store, out) as folder:
        write_csv(trials, folder / "trials.csv")
        start = _start(search)
        found = pictures(
            whole,
            parameter_table(study),
            objectives,
            start=start,
            images=_images(search),
            varied=len(_settings(trials)),
        )
        drawn = [figure(folder, name, picture.caption, picture.draw) for name, picture in found.items()]
        text = _page(search, trials, drawn, start, outcome(study, start))
        (folder / PAGE).write_text(text, encoding="utf-8")
    last = [where(search, store)]
    numbers = trials.assign(accuracy=pd.to_numeric(trials["accuracy"]).map(percent))
    if form == "json":
        return to_json({"rows": numbers, "files": report_files(search)}), []
    rows = numbers if form == "csv" else _best(trials, start, search.store).map(str)
    return FORMATS[form](rows, []), last


def _page(search: Record, trials: pd.DataFrame, drawn: Sequence[Section], start: float, ended: Sequence[str]) -> str:
    store, selection = search.store, _selection(search)
    sections = [Section("", "table", _best(trials, start, store))]
    if search.find_artifact(BEST) is not None:
        sections.append(Section("", "text", EXACT))
    if selection is not None:
        sections.append(Section("The best trials with fresh seeds: linear accuracy", "table", shown(selection)))
    sections += [section._replace(heading="" if index else "Figures") for index, section in enumerate(drawn)]
    if search.find_artifact(BEST) is not None:
        sections.append(Section("The best config", "code", text_of(search, BEST), folded=True))
    sections += [
        Section("All trials", "table", trials.drop(columns=["run"], errors="ignore"), folded=True),
        Section("How the trials ended", "text", "\n".join(ended), folded=True),
    ]
    facts = [search.params["data.dataset"], ended[0]]
    return page("Search", search.name, finding(search, trials), facts, sections)


def finding(search: Record, trials: pd.DataFrame) -> list[str]:
    """What a search found, in sentences. `trials` is its table of trials, some of which may not have ended."""
    trials = trials[trials["state"].isin(["complete", "pruned"])]
    return of_search(trials, _start(search), _selection(search), _images(search))


def _start(search: Record) -> float:
    """The accuracy of the config that a search started from. Earlier versions did not record it: nan."""
    return float(search.tags.get(START_ACCURACY, nan))


def _images(search: Record) -> int | None:
    """How many images the accuracies of a search are about, if it is known."""
    images = search.tags.get(IMAGES)
    return int(images) if images else None


def _settings(trials: pd.DataFrame) -> list[str]:
    """The columns of a table of trials that are settings."""
    return [name for name in map(str, trials) if name not in FACTS]


def _selection(search: Record) -> pd.DataFrame | None:
    """The best trials with fresh seeds, if they were trained."""
    path = search.find_artifact(SELECTION)
    return pd.read_csv(path) if path is not None else None


def shown(selection: pd.DataFrame) -> pd.DataFrame:
    """The best trials with fresh seeds as people read them. Earlier versions recorded fewer columns."""
    accuracies = {
        title: [f"{percent(value):.1f}" for value in selection[name]]
        for name, title in CHOSEN.items()
        if name in selection and selection[name].notna().any()
    }
    table = pd.DataFrame({"cell": selection["cell"].replace(BASELINE, "start (your config)"), **accuracies})
    if "gain" in selection:
        gains = selection[["gain", "gain_low", "gain_high"]].map(percent)
        table["gain on validation (points)"] = [
            with_interval(mean, low, high, ".1f", signed) for mean, low, high in gains.to_numpy()
        ]
    return table.assign(n=selection["n"])


def _best(trials: pd.DataFrame, start: float, store: Store) -> pd.DataFrame:
    """The start (unless its accuracy is nan) and the best trials: accuracy in percent, training time, and settings."""
    done = trials.dropna(subset=["accuracy"])
    done = done.iloc[done["accuracy"].astype(float).argsort(kind="stable")[::-1]].head(SHOWN)
    settings = _settings(trials)
    records = {record.id: record for record in store.records()}
    rows: list[dict[str, object]] = []
    if not isnan(start):
        rows.append(dict(zip(COLUMNS, ["start", f"{100 * start:.1f}", MISSING, "your config"], strict=True)))
    for row in done.to_dict("records"):
        run = records.get(row["run"])
        changes = {name: row[name] for name in settings if format_value(row[name]) != MISSING}
        trial = str(row["trial"]) if run is None else link(run, str(row["trial"]))
        seconds = None if row["seconds"] is None else f"{row['seconds']:.0f}"
        values = [trial, f"{100 * row['accuracy']:.1f}", seconds, settings_text(changes, short_name)]
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def settings_text(changes: Mapping[str, object], name: Callable[[str], str] = str) -> str:
    """The settings of a trial in one line, with rounded numbers: as --set takes them, unless `name` shortens names."""
    return ", ".join(f"{name(path)}={in_short(value).replace(', ', ',')}" for path, value in changes.items())
