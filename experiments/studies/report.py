"""The report of a study: tables, figures and a page, made from its records alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import plots
from analysis.page import page
from analysis.summary import shown, summary
from analysis.tables import FORMATS, metric_label
from analysis.text import to_json
from experiments.runs.compare import chance_level, curve, curve_label
from experiments.studies.cell import BASELINE
from experiments.studies.results import CellDocument, Results, StudyDocument, read_results
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from simclr.errors import UserError
from simclr.files import written_whole
from simclr.progress import knn_metric

SUFFIXES = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}
DETAILS = ["p", "p (McNemar, by seed)", "source", "images/s"]  # columns that are left out on a terminal
PAGE = "report.html"

PageSection = tuple[str, str, Any]  # of `analysis.page.page`: heading, kind, content


def report(study: Record, store: Store, form: str = "terminal", out: Path | None = None) -> str:
    """Write the tables, figures and page of a study, keep them with it, and return its tables in a format.

    `form` is json, or one of `analysis.tables.FORMATS`. The files are also copied to `out`. Where the store can't be
    written, the last line says that they are not kept. Raises UserError if no cell of the study has finished, or if
    `out` can't be written to.
    """
    if out is not None:
        _make_folder(out)
    results = read_results(study, store)
    summaries = _summaries(results)
    if not summaries:
        raise UserError(
            f"no cell of study '{study.name}' has finished: run `simclr ablate` again with the same options"
        )
    notes = _notes(results)
    sections: list[PageSection] = [("", "text", "\n".join(notes))]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for metric, table in summaries.items():
            _write_tables(table, metric, notes, folder)
            sections.append((metric_label(metric), "table", shown(table, metric)))
            sections += _figures(table, metric, results.document, folder)
        sections += _curves(results, folder) + _appendix(study, results)
        (folder / PAGE).write_text(page(f"Study {study.name}", sections), encoding="utf-8")
        _keep(folder, Tracker(store, study.id) if store.writable else None, out)
    place = f"report: {study.artifact(PAGE)}" if store.writable else f"not kept: {store.folder} can't be written"
    return _printed(summaries, form, notes, place)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't write to {out}: {error.strerror or error}. Choose another --out") from None


# --- tables -----------------------------------------------------------------------------------------------------------


def _summaries(results: Results) -> dict[str, pd.DataFrame]:
    """The summary of each metric that at least one run has."""
    summaries = {}
    for metric in results.document.metrics():
        if results.table.get(metric, pd.Series(dtype=float)).notna().any():
            cells = [_expectation(cell, metric) for cell in results.document.cells]
            summaries[metric] = summary(results.table, cells, metric, results.correct[metric])
    return summaries


def _expectation(cell: CellDocument, metric: str) -> dict[str, Any]:
    """A cell as `summary` needs it. The paper's numbers are of linear classifiers; for kNN only the direction holds."""
    paper, direction = cell.paper, cell.direction
    if metric != "linear_top1" and paper is not None:
        direction = "lower" if paper < 0 else "higher" if paper > 0 else None
        paper = None
    return {
        "cell": cell.cell,
        "paper": paper,
        "direction": direction,
        "against": cell.against or BASELINE,
        "caveat": cell.caveat,
        "source": cell.source,
    }


def _notes(results: Results) -> list[str]:
    """How to read the tables."""
    cells, run = results.document.cells, _baseline_run(results)
    protocols = {protocol for cell in cells for protocol in cell.protocols.values()}
    seeds = sorted({seed for _, seed in results.runs})
    images = sorted({len(right) for by_job in results.correct.values() for right in by_job.values()})
    others = [cell.cell for cell in cells if cell.layer == "h" and cell.protocols != cells[0].protocols]
    warnings = [f"Evaluated on images of another size than the baseline: {', '.join(others)}."] if others else []
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
    return [
        f"Data: {run.params['data.dataset']} (digest {run.tags['data_digest'][:8]}), {_listed(images)} test images. "
        f"Seeds: {_listed(seeds)}.",
        f"Protocols: {_listed(sorted(protocols))}.",
        *warnings,
        "Intervals are 95 % Student's t intervals over seeds. Differences are paired by seed. p comes from a paired t "
        "test, and is then corrected for the number of cells by Holm's method. McNemar's test is exact, on the test "
        "images, for each seed.",
        "Expected is the paper's difference to its own baseline in points, or its direction (ImageNet, ResNet-50). The "
        "verdict is about the direction. Seconds are the training time, computed from images per second.",
        f"Made by: {results.document.command}",
    ]


def _baseline_run(results: Results) -> Record:
    """A run of the baseline, or of the first cell that has one."""
    order = [cell.cell for cell in results.document.cells]
    return results.runs[min(results.runs, key=lambda job: (order.index(job[0]), job[1]))]


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _write_tables(table: pd.DataFrame, metric: str, notes: Sequence[str], folder: Path) -> None:
    """Write a metric's table in every file format: as numbers in the CSV file, as text in the others."""
    for form, suffix in SUFFIXES.items():
        rows = table if form == "csv" else shown(table, metric)
        (folder / f"{metric}{suffix}").write_text(FORMATS[form](rows, notes), encoding="utf-8")


def _printed(summaries: Mapping[str, pd.DataFrame], form: str, notes: Sequence[str], place: str) -> str:
    """The tables in a format, the notes once, and where the page is."""
    if form in ("csv", "json"):  # one table of numbers
        rows, notes = pd.concat([table.assign(metric=metric) for metric, table in summaries.items()]), [*notes, place]
        return to_json({"rows": rows, "notes": notes}) if form == "json" else FORMATS[form](rows, notes)
    texts = []
    for metric, table in summaries.items():
        rows = shown(table, metric)
        rows = rows.drop(columns=DETAILS) if form == "terminal" else rows
        texts.append(FORMATS[form](rows, notes if metric == list(summaries)[-1] else []))
    return "\n".join([*texts, place])


# --- figures ----------------------------------------------------------------------------------------------------------


def _figure(folder: Path, name: str, caption: str, draw: Callable[[Path], object]) -> PageSection:
    """Draw a figure to name.svg and name.png, and return the page's section for it."""
    for suffix in (".png", ".svg"):
        draw(folder / f"{name}{suffix}")
    return "", "figure", (folder / f"{name}.svg", caption)


def _figures(table: pd.DataFrame, metric: str, document: StudyDocument, folder: Path) -> list[PageSection]:
    """The figures of a metric that the plan has data for."""
    label = f"{metric_label(metric)} (%)"
    xlabel = f"difference to the baseline in {metric_label(metric)} (points)"
    figures = [
        _figure(
            folder,
            f"differences-{metric}",
            "Differences to the baseline, paired by seed",
            lambda path: plots.differences(table, path, xlabel),
        )
    ]
    if (x := document.x) is not None and document.lines:
        lines = {name or metric_label(metric): line for name, line in document.lines.items()}
        figures.append(
            _figure(
                folder,
                f"against-{metric}",
                f"{metric_label(metric)} against {x}",
                lambda path: plots.against(table, lines, path, x, label, document.log),
            )
        )
    if any(cell.pair for cell in document.cells):
        names, values = _pair_values(table, document)
        figures.append(
            _figure(
                folder,
                f"pairs-{metric}",
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


def _curves(results: Results, folder: Path) -> list[PageSection]:
    """Learning curves of the cells over their seeds. Cells that only evaluate another layer have none of their own."""
    figures = []
    for metric in ["train/loss", *sorted(filter(None, {knn_metric(run.metrics) for run in results.runs.values()}))]:
        histories: dict[str, list[pd.DataFrame]] = {}
        chances: dict[str, float] = {}
        for cell in results.document.cells:
            runs = [run for (name, _), run in results.runs.items() if name == cell.cell]
            curves = [points for run in runs if len(points := curve(run, metric))]
            if curves and cell.layer == "h":
                histories[cell.cell], chances[cell.cell] = curves, chance_level(metric, runs[0])
        if histories:
            label = curve_label(metric, _baseline_run(results))
            figures.append(
                _figure(
                    folder,
                    f"curves-{metric.replace('/', '-')}",
                    f"{label}, mean and range over seeds",
                    partial(plots.curves, histories, ylabel=label, chances=chances),
                )
            )
    return figures


# --- page -------------------------------------------------------------------------------------------------------------


def _appendix(study: Record, results: Results) -> list[PageSection]:
    """The runs that did not finish, and what it takes to repeat the study."""
    failed = results.table[results.table["status"] != "FINISHED"][["cell", "seed", "status", "error"]]
    run = _baseline_run(results)
    return [
        *([("Not finished", "table", failed)] if len(failed) else []),
        ("Config of the baseline", "code", run.artifact("config.toml").read_text(encoding="utf-8")),
        ("Environment", "code", run.artifact("environment.json").read_text(encoding="utf-8")),
        ("To repeat", "code", f"{results.document.command}\nsimclr report {study.name}"),
    ]


def _keep(folder: Path, tracker: Tracker | None, out: Path | None) -> None:
    """Keep all files in a folder with the study, if it can be written, and copy them to `out`."""
    for path in sorted(folder.iterdir()):
        if tracker is not None:
            tracker.artifact(path.name, lambda target, path=path: shutil.copy(path, target))  # type: ignore[misc]
        if out is not None:
            with written_whole(out / path.name) as scratch:
                shutil.copy(path, scratch)
    if tracker is not None:
        tracker.flush()
