"""The report of a study: tables, figures and a page, made from its records alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import plots
from analysis.findings import count, of_study
from analysis.page import Section, page
from analysis.study_tables import latex_summary, page_table
from analysis.summary import shown, summary
from analysis.tables import FORMATS, is_accuracy, metric_label
from analysis.text import columns, paragraph, to_json
from experiments.runs.compare import chance_level, curve, curve_label, loss_caveat
from experiments.runs.pages import PAGE, figure, link, linked_server, report_files, report_folder, text_of, where
from experiments.runs.view_grid import STRIP, STRIP_SHOWS
from experiments.studies.notes import about, baseline_run, caveats, chosen, how_to_read
from experiments.studies.overview import file_name, show_results
from experiments.studies.results import CellDocument, Results, read_results, settings_by_cell
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from simclr.errors import UserError
from simclr.progress import knn_metric

SUFFIXES = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}
# Columns that are left out on a terminal.
DETAILS = ["p", "p (same)", "p (sign flip)", "p (Dunnett)", "p (McNemar, by seed)", "source", "images/s"]
WIDE = ["expected", "verdict", "seconds"]  # columns that are left out on a narrow one too
WIDTH = 110  # characters from which on a terminal is not narrow
RUNS = "For each run its {} in percent, with a link to its page, which works while {} is running."


def report(study: Record, store: Store, form: str = "terminal", out: Path | None = None) -> tuple[str, list[str]]:
    """Write the tables, figures and page of a study, and keep them with it.

    Returns its tables in a format, json or one of `analysis.tables.FORMATS`, and a few lines that are not part of them:
    what the study found, what is in doubt, where the page is, and what to do next. The files are also copied to `out`.
    Raises UserError if no cell of the study has finished, or if `out` can't be written to.
    """
    results = read_results(study, store)
    summaries = _summaries(study, results)
    doubts, notes = caveats(study, results, summaries), how_to_read(study, results, summaries)
    named, numbers = _named(summaries, results), _numbers(study, summaries, results)
    with report_folder(study, store, out) as folder:
        for metric in summaries:
            _write_tables(study.name, numbers[metric], named[metric], metric, [*notes, *doubts], folder)
        (folder / PAGE).write_text(_page(study, results, named, notes, doubts, folder), encoding="utf-8")
    if store.writable:
        found = [*filter(None, [_unfinished(results)]), *_found(named, results)]
        show_results(Tracker(store, study.id), summaries, " ".join(found))
    return _printed(study, results, summaries, form, notes, doubts, [where(study, store)])


def tables(study: Record, store: Store, form: str = "terminal") -> tuple[str, list[str]]:
    """The tables of a study in a format, and lines like those of `report`. Writes nothing."""
    results = read_results(study, store)
    summaries = _summaries(study, results)
    doubts, notes = caveats(study, results, summaries), how_to_read(study, results, summaries)
    page = [where(study, store)] if report_files(study) else []
    return _printed(study, results, summaries, form, notes, doubts, page)


def what_of(study: Record, store: Store) -> str:
    """What a study is about: its images and how many, the network and training of its baseline, and its seeds."""
    return ", ".join(about(study, read_results(study, store)))


def finding(study: Record, store: Store) -> str:
    """What a study found, in the sentences that start its report. Raises UserError if no cell has finished."""
    metric, table = next(iter(_summaries(study, read_results(study, store)).items()))
    return " ".join(of_study(table, metric))


# --- tables -----------------------------------------------------------------------------------------------------------


def _summaries(study: Record, results: Results) -> dict[str, pd.DataFrame]:
    """The summary of each metric that at least one run has. Raises UserError if there is none."""
    summaries = {}
    design = results.document.design
    for metric in results.document.metrics():
        if results.table.get(metric, pd.Series(dtype=float)).notna().any():
            baseline, *_ = results.document.cells
            cells = [_expectation(cell, metric, baseline.cell) for cell in results.document.cells]
            correct = results.correct[metric]
            summaries[metric] = summary(results.table, cells, metric, correct, design.margin, design.first)
    if not summaries:
        raise UserError(
            f"no cell of study '{study.name}' has finished: run `simclr ablate` again with the same options"
        )
    return summaries


def _named(summaries: Mapping[str, pd.DataFrame], results: Results) -> dict[str, pd.DataFrame]:
    """The same summaries with the names of cells for readers."""
    return {metric: table.assign(cell=table["cell"].map(results.label)) for metric, table in summaries.items()}


def _numbers(study: Record, summaries: Mapping[str, pd.DataFrame], results: Results) -> dict[str, pd.DataFrame]:
    """The same summaries for other programs: with the metric's name, settings that vary, and columns for each seed."""
    found = {}
    settings = pd.DataFrame(settings_by_cell(results.document, study.params), dtype=object)
    for metric, table in summaries.items():
        seeds = results.table.pivot(index="cell", columns="seed", values=metric).dropna(axis=1, how="all")
        seeds = (100 * seeds if is_accuracy(metric) else seeds).reindex(table["cell"])
        own = {f"seed_{seed}": seeds[seed].tolist() for seed in seeds}
        own |= {f"mcnemar_seed_{seed}": [(tests or {}).get(seed) for tests in table["mcnemar"]] for seed in seeds}
        none = {name: table[name].replace("", None) for name in ("finding", "verdict")}  # of the baseline
        rows = _compared(table.assign(metric=metric, **none, **own)).drop(columns="mcnemar")
        found[metric] = pd.concat([rows[["cell", "metric"]], settings, rows.drop(columns=["cell", "metric"])], axis=1)
    return found


def _compared(table: pd.DataFrame) -> pd.DataFrame:
    """A summary with what was expected in `expected`, and with which cell in `compared_with`, the baseline included.

    `compared_difference` is the difference to that cell.
    """
    other, known = table["against"].notna(), table["expected"].notna()
    columns = {
        "expected": table["against_expected"].where(other, table["expected"]),
        "compared_with": table["against"].where(other, table["cell"].iloc[0]).where(other | known, None),
        "compared_difference": table["against_difference"].where(other, table["difference"].where(known)),
    }
    return table.drop(columns=[name for name in table if str(name).startswith("against")]).assign(**columns)


def _unfinished(results: Results) -> str:
    """A sentence that says how much of a study is missing; empty if nothing is."""
    ended, runs = results.progress()
    return f"Unfinished: {ended} of {count(runs, 'run')} {'is' if ended == 1 else 'are'} done." if ended < runs else ""


def _found(named: Mapping[str, pd.DataFrame], results: Results) -> list[str]:
    """What a study found in its first metric, in the sentences that start its report."""
    metric, table = next(iter(named.items()))
    return of_study(table, metric, unfinished=bool(_unfinished(results)))


def _expectation(cell: CellDocument, metric: str, baseline: str) -> dict[str, Any]:
    """A cell as `summary` needs it. The paper's numbers are of linear classifiers; for kNN only the direction holds."""
    paper, direction = cell.paper, cell.direction
    if metric.removeprefix("val/") != "linear_top1" and paper is not None:
        direction = "lower" if paper < 0 else "higher" if paper > 0 else None
        paper = None
    return {
        "cell": cell.cell,
        "paper": paper,
        "direction": direction,
        "against": cell.against or baseline,
        "caveat": cell.caveat,
        "source": cell.source,
    }


def _write_tables(
    study: str, table: pd.DataFrame, named: pd.DataFrame, metric: str, notes: Sequence[str], folder: Path
) -> None:
    """Write a metric's table in every file format: as numbers in the CSV file, as text for readers in the others."""
    for form, suffix in SUFFIXES.items():
        if form == "latex":
            text = _latex({metric: named}, study, notes)
        else:
            text = _one_table(table if form == "csv" else named, metric, form, notes)
        (folder / f"{file_name(metric)}{suffix}").write_text(f"{text}\n", encoding="utf-8")


def _one_table(table: pd.DataFrame, metric: str, form: str, notes: Sequence[str]) -> str:
    rows = table if form == "csv" else shown(table, metric)
    if form == "terminal":
        rows = rows.drop(columns=[*DETAILS, *WIDE * (columns() < WIDTH)], errors="ignore")
    return FORMATS[form](rows, notes)


def _latex(summaries: Mapping[str, pd.DataFrame], label: str, notes: Sequence[str], unfinished: str = "") -> str:
    data, digest, *_ = notes
    return latex_summary(summaries, f"{unfinished} {data}".strip(), label, digest)


def _printed(
    study: Record,
    results: Results,
    summaries: Mapping[str, pd.DataFrame],
    form: str,
    notes: Sequence[str],
    doubts: Sequence[str],
    page: Sequence[str],
) -> tuple[str, list[str]]:
    """The tables in a format, and the lines to be shown beside them: none for JSON, which holds all notes."""
    unfinished, named = _unfinished(results), _named(summaries, results)
    finding = _found(named, results)
    following = [*[f"simclr compare {shlex.quote(study.name)} --format latex"] * (form != "latex"), "simclr ui"]
    numbers = pd.concat(list(_numbers(study, summaries, results).values()))
    if form == "json":
        found = {
            "study": study.name,
            "on": results.document.on,
            "seeds": results.seeds(),
            "margin": results.document.design.margin,
            "unfinished": unfinished or None,
            "finding": finding,
            "rows": numbers,
            "notes": [*notes, *doubts],
            "files": report_files(study),
            "next": following,
        }
        return to_json(found), []
    lines = [*map(paragraph, [" ".join(finding), *doubts]), *page, f"next: {'   or   '.join(following)}"]
    if unfinished and form != "terminal":
        lines.insert(0, unfinished)
    if form == "csv":  # one table of numbers
        return FORMATS[form](numbers, []), lines
    if form == "latex":
        return _latex(named, study.name, notes, unfinished), lines
    *_, last = summaries
    below = {last: [*notes, *doubts]} if form == "markdown" else {}
    texts = [_one_table(each, metric, form, below.get(metric, [])) for metric, each in named.items()]
    return "\n".join([*[f"{unfinished}\n"] * bool(unfinished), *texts]), lines


# --- figures ----------------------------------------------------------------------------------------------------------


def _figures(table: pd.DataFrame, metric: str, results: Results, folder: Path) -> list[Section]:
    """The figures of a metric that the plan has data for."""
    document = results.document
    label = f"{metric_label(metric)} (%)"
    intervals = ", with 95 % intervals" * bool(table["difference_low"].notna().any())
    figures = [
        figure(
            folder,
            f"differences-{file_name(metric)}",
            f"Differences from the {results.baseline} in {metric_label(metric)}{intervals}",
            lambda path: plots.differences(table, path, f"difference in {metric_label(metric)} (points)"),
        )
    ]
    if (x := document.x) is not None and document.lines:
        lines = {
            name or metric_label(metric): {results.label(cell): value for cell, value in line.items()}
            for name, line in document.lines.items()
        }
        figures.append(
            figure(
                folder,
                f"against-{file_name(metric)}",
                f"{metric_label(metric)} against {x}{intervals}. The dotted line is the baseline",
                lambda path: plots.against(table, lines, path, x, label, document.log),
            )
        )
    if any(cell.pair for cell in document.cells):
        names, values = _pair_values(table, results)
        figures.append(
            figure(
                folder,
                f"pairs-{file_name(metric)}",
                f"{metric_label(metric)} with only two augmentations (paper, Fig. 5)",
                lambda path: plots.pair_matrix(names, values, path, label),
            )
        )
    return figures


def _pair_values(table: pd.DataFrame, results: Results) -> tuple[list[str], np.ndarray]:
    """The names of the augmentations, and the mean of each pair of them as a symmetric matrix; nan if unknown."""
    pairs = {cell.pair: results.label(cell.cell) for cell in results.document.cells if cell.pair}
    names = [first for first, second in pairs if first == second]
    means = table.set_index("cell")["mean"]
    values = [[means.get(pairs.get((a, b)) or pairs.get((b, a))) for b in names] for a in names]
    return names, np.array(values, float)


def _curves(results: Results, folder: Path) -> list[Section]:
    """Learning curves of the cells over their seeds. Cells that only evaluate another layer have none of their own."""
    figures = []
    for metric in ["train/loss", *sorted(filter(None, {knn_metric(run.metrics) for run in results.runs.values()}))]:
        histories: dict[str, list[pd.DataFrame]] = {}
        drawn: dict[str, Record] = {}  # the first run of each
        for cell in results.document.cells:
            runs = [run for (name, _), run in results.runs.items() if name == cell.cell]
            curves = [points for run in runs if len(points := curve(run, metric)) > 1]
            if curves and cell.layer == "h":
                histories[results.label(cell.cell)], drawn[results.label(cell.cell)] = curves, runs[0]
        if histories:
            label = " / ".join(sorted({curve_label(metric, run) for run in drawn.values()}))
            chances = {name: chance_level(metric, run) for name, run in drawn.items()}
            figures.append(
                figure(
                    folder,
                    f"curves-{metric.replace('/', '-')}",
                    f"{label}, of all runs of each cell. {loss_caveat(metric, list(drawn.values()))}".strip(),
                    partial(plots.curves, histories, ylabel=label, chances=chances, percent=is_accuracy(metric)),
                )
            )
    return figures


# --- page -------------------------------------------------------------------------------------------------------------


def _page(
    study: Record,
    results: Results,
    summaries: Mapping[str, pd.DataFrame],
    notes: Sequence[str],
    doubts: Sequence[str],
    folder: Path,
) -> str:
    metric, table = next(iter(summaries.items()))
    facts = [*about(study, results), count(len(results.document.cells), "cell")]
    if (until := results.document.design.until) is not None:
        facts.append(f"seeds added for intervals of ±{until:g} points (Stein's rule)")
    figures = _figures(table, metric, results, folder) + _curves(results, folder)
    sections = [Section("", "table", page_table(summaries)), *_headed("Figures", figures)]
    if choices := chosen(results.document):
        sections.append(Section("What was chosen for each cell", "text", "\n\n".join(choices)))
    if views := _views(results):
        sections += [Section("Example views", "text", STRIP_SHOWS), Section("", "images", views)]
    sections += [
        Section("Runs", "text", RUNS.format(metric_label(metric), linked_server())),
        Section("", "table", _run_table(results, metric)),
    ]
    failed = results.table[results.table["status"] != "FINISHED"][["cell", "seed", "status", "error"]]
    if len(failed):
        sections.append(Section("Runs without results", "table", failed))
    for name, each in summaries.items():
        sections.append(Section(f"All numbers of {metric_label(name)}", "table", shown(each, name), folded=True))
        if name != metric:
            heading = f"Runs, by {metric_label(name)}"
            sections.append(Section(heading, "table", _run_table(results, name), folded=True))
            sections += _figures(each, name, results, folder)
    finding = [*filter(None, [_unfinished(results)]), *_found(summaries, results), *doubts]
    return page("Study", study.name, finding, facts, [*sections, *_appendix(study, results, notes)])


def _headed(heading: str, sections: Sequence[Section]) -> list[Section]:
    """Sections with a heading before the first."""
    return [section._replace(heading=heading if index == 0 else "") for index, section in enumerate(sections)]


def _views(results: Results) -> list[tuple[str, bytes]]:
    """A picture for each group of cells that have the same example views. Records of earlier versions have none."""
    cells: dict[bytes, list[str]] = {}
    for cell in results.document.cells:
        seeds = [seed for name, seed in results.runs if name == cell.cell]
        if seeds and cell.layer == "h":
            strip = results.runs[cell.cell, min(seeds)].find_artifact(STRIP)
            if strip is not None:
                cells.setdefault(strip.read_bytes(), []).append(results.label(cell.cell))
    return [("; ".join(names), picture) for picture, names in cells.items()]


def _run_table(results: Results, metric: str) -> pd.DataFrame:
    """A row for each cell and a column for each seed, with the run's figure or status as a link to the run."""
    rows = results.table.set_index(["cell", "seed"])
    seeds = sorted({seed for _, seed in rows.index})
    table = []
    for cell in (cell.cell for cell in results.document.cells):
        row: dict[str, object] = {"Cell": results.label(cell)}
        for seed in seeds:
            text = None
            if (cell, seed) in rows.index:
                value = rows.loc[(cell, seed), metric]
                text = str(rows.loc[(cell, seed), "status"]).lower() if np.isnan(value) else f"{100 * value:.1f}"
            run = results.runs.get((cell, seed))
            row[f"seed {seed}"] = link(run, text) if text and run is not None else text
        table.append(row)
    return pd.DataFrame(table, dtype=object)


def _appendix(study: Record, results: Results, notes: Sequence[str]) -> list[Section]:
    """How to read the tables, and what it takes to repeat the study."""
    run = baseline_run(results)
    return [
        Section("How to read the tables", "text", "\n\n".join(notes), folded=True),
        Section("Config of the baseline", "code", text_of(run, "config.toml"), folded=True),
        Section("Environment", "code", text_of(run, "environment.json"), folded=True),
        Section(
            "To repeat", "code", f"{results.document.command}\nsimclr report {shlex.quote(study.name)}", folded=True
        ),
    ]
