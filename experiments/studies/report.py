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
from analysis.text import to_json
from experiments.runs.compare import chance_level, curve, curve_label, reads_labels
from experiments.runs.looks import test_use
from experiments.runs.pages import PAGE, figure, link, report_folder, text_of, where
from experiments.runs.view_grid import STRIP
from experiments.studies.overview import file_name, show_results
from experiments.studies.plan import COSTS, RATE
from experiments.studies.results import CellDocument, Results, StudyDocument, read_results
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from simclr.data.dataset import digest_of
from simclr.errors import UserError
from simclr.progress import knn_metric

SUFFIXES = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}
# Columns that are left out on a terminal.
DETAILS = ["p", "p (same)", "p (sign flip)", "p (Dunnett)", "p (McNemar, by seed)", "source", "images/s"]
IMAGES = {"test": "test images", "val": "validation images"}  # what a study is judged on
RESPLIT = (
    "Each seed splits the images anew, in the same way for all cells. The splits share most of their training images, "
    "so the intervals are somewhat too narrow (Nadeau and Bengio, 2003)."
)
SIGN_FLIP = (
    "p (sign flip) is the share of all ways to flip the signs of the differences that give a mean at least as far from "
    "0. It assumes no distribution. It is left out for fewer than six seeds, with which it can't be below 0.05."
)
RUNS = "For each run its {} in percent, with a link to its page, which works while simclr ui is running."
VIEWS = "Six images, and below each the views that training makes of it in the first step."


def report(study: Record, store: Store, form: str = "terminal", out: Path | None = None) -> tuple[str, list[str]]:
    """Write the tables, figures and page of a study, and keep them with it.

    Returns its tables in a format, json or one of `analysis.tables.FORMATS`, and lines that are not part of them: the
    last one says where the page is. The files are also copied to `out`. Raises UserError if no cell of the study has
    finished, or if `out` can't be written to.
    """
    results = read_results(study, store)
    summaries = _summaries(study, results)
    use = _test_use(study, results.document)
    notes = _notes(results, summaries, use)
    with report_folder(study, store, out) as folder:
        for metric, table in summaries.items():
            _write_tables(table, metric, notes, folder)
        (folder / PAGE).write_text(_page(study, results, summaries, notes, use, folder), encoding="utf-8")
    if store.writable:
        show_results(Tracker(store, study.id), summaries)
    return _printed(study.name, summaries, form, notes, [where(study, store)])


def tables(study: Record, store: Store, form: str = "terminal") -> tuple[str, list[str]]:
    """The tables of a study in a format, and lines that are not part of them. Writes nothing."""
    results = read_results(study, store)
    summaries = _summaries(study, results)
    notes = _notes(results, summaries, _test_use(study, results.document))
    return _printed(study.name, summaries, form, notes, [])


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


def _notes(results: Results, summaries: Mapping[str, pd.DataFrame], use: str) -> list[str]:
    """How to read the tables, after the data and its digest. `use` says how often the test images were used."""
    cells, run, design = results.document.cells, _baseline_run(results), results.document.design
    seeds = results.seeds()
    measured = [cell.protocols_of(seed).values() for cell in cells for seed in seeds]
    protocols = {protocol for identities in measured for protocol in identities}
    others = [cell.cell for cell in cells if cell.layer == "h" and cell.protocols != cells[0].protocols]
    warnings = [f"Evaluated on images of another size than the baseline: {', '.join(others)}."] if others else []
    if supervised := sorted({cell for (cell, _), record in results.runs.items() if reads_labels(record)}):
        warnings.append(f"Trained on labels: {', '.join(supervised)}.")
    finished = results.table[results.table["status"] == "FINISHED"]
    if missing := int(finished[results.document.metrics()].isna().sum().sum()):
        warnings.append(
            f"Figures left out because they were not measured under the study's protocol: {missing}. Run the study's "
            f"command again to measure them."
        )
    unnamed = [run for run in results.runs.values() if run.params.get("train.precision") == "auto"]
    if len(precisions := sorted({run.tags.get("precision", "unknown") for run in unnamed})) > 1:
        warnings.append(
            f"Trained in several precisions ({_listed(precisions)}), because an earlier version continued this study "
            f"on another machine. Differences may come from that."
        )
    judged = IMAGES[results.document.on]
    unused = "" if results.document.test_by_seed else "The test images are not used. "
    held_out = [
        f"Evaluated on validation images. {unused}Each classifier's own settings, such as its L2 penalty, are chosen "
        f"on a fifth of the training images, and it is then fitted on all of them. `simclr ablate ... --on test` "
        f"evaluates the same runs on the test images."
    ]
    return [
        f"Data: {run.params['data.dataset']}, {_listed(results.images())} {judged}. Seeds: {_listed(seeds)}.",
        f"Digest of the data: {run.tags['data_digest'][:8]}.",
        use,
        *[RESPLIT] * bool(cells[0].by_seed),
        *_chosen(results.document),
        *held_out * (results.document.on == "val"),
        f"Protocols: {_listed(sorted(protocols))}.",
        *warnings,
        "Intervals are 95 % Student's t intervals over seeds, from three seeds on. Differences are paired by seed. p "
        "comes from a paired t test, and is then corrected for the number of comparisons by Holm's method. The verdict "
        f"needs a corrected p below 0.05. McNemar's test is exact, on the {judged}, for each seed.",
        f"A cell is called the same as the baseline if a difference of {design.margin:g} or more points can be ruled "
        f"out: p (same), of two one-sided t tests and corrected likewise, is below 0.05. Where neither p is, the study "
        f"can't tell.",
        *_seeds_note(results, summaries),
        "Expected is the paper's difference to its own baseline in points, or its direction (ImageNet, ResNet-50). The "
        "verdict is about the direction. Seconds are the training time, computed from images per second.",
        SIGN_FLIP,
        *(f"{metric_label(metric)}. {table.attrs['pooled']}" for metric, table in summaries.items()),
        f"Made by: {results.document.command}",
    ]


def _seeds_note(results: Results, summaries: Mapping[str, pd.DataFrame]) -> list[str]:
    """How many seeds the study's rule asked for, unless their number was fixed or its metric is missing."""
    document = results.document
    metric = document.metrics()[0]
    if document.design.until is None or metric not in summaries:
        return []
    return [document.design.note(summaries[metric], metric, results.seeds_wanted())]


def _baseline_run(results: Results) -> Record:
    """A run of the baseline, or of the first cell that has one."""
    order = [cell.cell for cell in results.document.cells]
    return results.runs[min(results.runs, key=lambda job: (order.index(job[0]), job[1]))]


def _chosen(document: StudyDocument) -> list[str]:
    """What the study chose for each cell."""
    found = []
    if document.equal is not None:
        costs = [f"{cell.cell} {cell.chosen['train.epochs']} ({cell.cost:.0%})" for cell in document.cells]
        how = ", as predicted from a few steps on the machine that planned the study" * (document.equal == "time")
        found.append(f"Equal {COSTS[document.equal]} of training{how}, by the number of epochs: {_listed(costs)}.")
    if document.cells[0].rates:
        rates = [f"{cell.cell} {cell.chosen[RATE]:g} of {_listed(cell.rates)}" for cell in document.cells]
        found.append(
            f"Learning rates were tuned in the same way for all cells, the baseline too: each has the best of "
            f"{len(document.cells[0].rates)} on validation, by one run with each rate and a seed that this study "
            f"doesn't have. {'; '.join(rates)}. These runs are in the study whose name ends in -rates."
        )
    return found


def _test_use(study: Record, document: StudyDocument) -> str:
    """How often the test images were used, where all seeds have the same ones."""
    if document.test_by_seed:
        return (
            "Each seed holds out other test images, so no image is unused by all seeds: keep a test set of your own "
            "for a final figure."
        )
    return test_use(study.store, digest_of(study.tags["data_digest"]))


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _write_tables(table: pd.DataFrame, metric: str, notes: Sequence[str], folder: Path) -> None:
    """Write a metric's table in every file format: as numbers in the CSV file, as text in the others."""
    for form, suffix in SUFFIXES.items():
        text = _latex({metric: table}, metric, notes) if form == "latex" else _one_table(table, metric, form, notes)
        (folder / f"{file_name(metric)}{suffix}").write_text(f"{text}\n", encoding="utf-8")


def _one_table(table: pd.DataFrame, metric: str, form: str, notes: Sequence[str]) -> str:
    rows = table if form == "csv" else shown(table, metric)
    return FORMATS[form](rows.drop(columns=DETAILS, errors="ignore") if form == "terminal" else rows, notes)


def _latex(summaries: Mapping[str, pd.DataFrame], label: str, notes: Sequence[str]) -> str:
    data, digest, *_ = notes
    return latex_summary(summaries, data, label, digest)


def _printed(
    name: str, summaries: Mapping[str, pd.DataFrame], form: str, notes: list[str], last: list[str]
) -> tuple[str, list[str]]:
    """The tables in a format, and the notes and last lines as far as the format has no place for them."""
    if form in ("csv", "json"):  # one table of numbers
        rows = pd.concat([table.assign(metric=metric) for metric, table in summaries.items()])
        if form == "json":
            return to_json({"rows": rows, "notes": [*notes, *last]}), []
        return FORMATS[form](rows, []), [*notes, *last]
    if form == "latex":
        return _latex(summaries, name, notes), [*notes, *last]
    final = list(summaries)[-1]
    texts = [_one_table(table, metric, form, notes if metric == final else []) for metric, table in summaries.items()]
    return "\n".join(texts), last


# --- figures ----------------------------------------------------------------------------------------------------------


def _figures(table: pd.DataFrame, metric: str, document: StudyDocument, folder: Path) -> list[Section]:
    """The figures of a metric that the plan has data for."""
    label = f"{metric_label(metric)} (%)"
    figures = [
        figure(
            folder,
            f"differences-{file_name(metric)}",
            f"Differences to the baseline in {metric_label(metric)}, with 95 % intervals",
            lambda path: plots.differences(table, path, f"difference in {metric_label(metric)} (points)"),
        )
    ]
    if (x := document.x) is not None and document.lines:
        lines = {name or metric_label(metric): line for name, line in document.lines.items()}
        figures.append(
            figure(
                folder,
                f"against-{file_name(metric)}",
                f"{metric_label(metric)} against {x}, with 95 % intervals. The dotted line is the baseline",
                lambda path: plots.against(table, lines, path, x, label, document.log),
            )
        )
    if any(cell.pair for cell in document.cells):
        names, values = _pair_values(table, document)
        figures.append(
            figure(
                folder,
                f"pairs-{file_name(metric)}",
                f"{metric_label(metric)} with only two augmentations (paper, Fig. 5)",
                lambda path: plots.pair_matrix(names, values, path, label),
            )
        )
    return figures


def _pair_values(table: pd.DataFrame, document: StudyDocument) -> tuple[list[str], np.ndarray]:
    """The names of the augmentations, and the mean of each pair of them as a symmetric matrix; nan if unknown."""
    pairs = {cell.pair: cell.cell for cell in document.cells if cell.pair}
    names = [first for first, second in pairs if first == second]
    means = table.set_index("cell")["mean"]
    values = [[means.get(pairs.get((a, b)) or pairs.get((b, a))) for b in names] for a in names]
    return names, np.array(values, float)


def _curves(results: Results, folder: Path) -> list[Section]:
    """Learning curves of the cells over their seeds. Cells that only evaluate another layer have none of their own."""
    figures = []
    for metric in ["train/loss", *sorted(filter(None, {knn_metric(run.metrics) for run in results.runs.values()}))]:
        histories: dict[str, list[pd.DataFrame]] = {}
        chances: dict[str, float] = {}
        for cell in results.document.cells:
            runs = [run for (name, _), run in results.runs.items() if name == cell.cell]
            curves = [points for run in runs if len(points := curve(run, metric)) > 1]
            if curves and cell.layer == "h":
                histories[cell.cell], chances[cell.cell] = curves, chance_level(metric, runs[0])
        if histories:
            label = curve_label(metric, _baseline_run(results))
            figures.append(
                figure(
                    folder,
                    f"curves-{metric.replace('/', '-')}",
                    f"{label}, of all runs of each cell",
                    partial(plots.curves, histories, ylabel=label, chances=chances, percent=is_accuracy(metric)),
                )
            )
    return figures


# --- page -------------------------------------------------------------------------------------------------------------


def _page(
    study: Record, results: Results, summaries: Mapping[str, pd.DataFrame], notes: Sequence[str], use: str, folder: Path
) -> str:
    metric, table = next(iter(summaries.items()))
    run, seeds = _baseline_run(results), results.seeds()
    facts = [
        f"{run.params['data.dataset']}, {_listed(results.images())} {IMAGES[results.document.on]}",
        count(len(results.document.cells), "cell"),
        f"seeds {_listed(seeds)}" if len(seeds) > 1 else f"seed {_listed(seeds)}",
        count(int(run.params["train.epochs"]), "epoch"),
    ]
    if (until := results.document.design.until) is not None:
        facts.append(f"seeds added for intervals of ±{until:g} points (Stein's rule)")
    figures = _figures(table, metric, results.document, folder) + _curves(results, folder)
    sections = [Section("", "table", page_table(summaries)), *_headed("Figures", figures)]
    if chosen := _chosen(results.document):
        sections.append(Section("What was chosen for each cell", "text", "\n\n".join(chosen)))
    if views := _views(results):
        sections += [Section("Example views", "text", VIEWS), Section("", "images", views)]
    sections += [
        Section("Runs", "text", RUNS.format(metric_label(metric))),
        Section("", "table", _run_table(results, metric)),
    ]
    failed = results.table[results.table["status"] != "FINISHED"][["cell", "seed", "status", "error"]]
    if len(failed):
        sections.append(Section("Runs without figures", "table", failed))
    for name, each in summaries.items():
        own = _figures(each, name, results.document, folder) if name != metric else []
        sections += [Section(f"All figures of {metric_label(name)}", "table", shown(each, name), folded=True), *own]
    finding = [*of_study(table, metric), use]
    return page("Study", study.name, finding, facts, [*sections, *_appendix(study, results, notes)])


def _headed(heading: str, sections: Sequence[Section]) -> list[Section]:
    """Sections with a heading before the first."""
    return [section._replace(heading=heading if index == 0 else "") for index, section in enumerate(sections)]


def _views(results: Results) -> list[tuple[str, bytes]]:
    """A picture of example views for each cell that has one. Records of earlier versions have none."""
    views = []
    for cell in results.document.cells:
        runs = [
            run for _, run in sorted((seed, run) for (name, seed), run in results.runs.items() if name == cell.cell)
        ]
        if runs and cell.layer == "h" and (path := runs[0].find_artifact(STRIP)) is not None:
            views.append((cell.cell, path.read_bytes()))
    return views


def _run_table(results: Results, metric: str) -> pd.DataFrame:
    """A row for each cell and a column for each seed, with the run's figure or status as a link to the run."""
    rows = results.table.set_index(["cell", "seed"])
    seeds = sorted({seed for _, seed in rows.index})
    table = []
    for cell in (cell.cell for cell in results.document.cells):
        row: dict[str, object] = {"Cell": cell}
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
    run = _baseline_run(results)
    return [
        Section("How to read the tables", "text", "\n\n".join(notes), folded=True),
        Section("Config of the baseline", "code", text_of(run, "config.toml"), folded=True),
        Section("Environment", "code", text_of(run, "environment.json"), folded=True),
        Section(
            "To repeat", "code", f"{results.document.command}\nsimclr report {shlex.quote(study.name)}", folded=True
        ),
    ]
