"""Reports of studies and curves of runs, made from the records alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import plots
from analysis.page import page
from analysis.summary import shown, summary
from analysis.tables import FORMATS, LABELS
from experiments.runs.compare import CURVES
from experiments.studies.plan import EVALUATE
from experiments.studies.results import Records, document_of, records
from experiments.tracking import Store, Tracker
from simclr.errors import UserError

SUFFIXES = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}


DETAILS = ["p", "p (McNemar, by seed)", "source", "images/s"]  # columns that a terminal is spared


def report(study: str, store: Store, form: str = "terminal", out: Path | None = None) -> str:
    """Make the tables, figures and page of a study and keep them with it (and in `out`); its tables in a format.

    Raises UserError when the study has no finished cell.
    """
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't write to {out}: {error.strerror}; name another folder") from None
    document, found = document_of(study, store), records(study, store)
    metrics = [metric for metric in EVALUATE.values() if found.table.get(metric, pd.Series(dtype=float)).notna().any()]
    if not metrics:
        raise UserError("no cell of this study has finished: run `simclr ablate` again with the same options")
    notes = _notes(document, found)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sections: list[tuple[str, str, Any]] = [("", "text", "\n".join(notes))]
        texts, tables = [], []
        for metric in metrics:
            cells = document["cells"] if metric == "linear_top1" else [_direction(cell) for cell in document["cells"]]
            table = summary(found.table, cells, metric, found.correct[metric])
            text = shown(table, metric)
            tables.append(table.assign(metric=metric))
            for name, suffix in SUFFIXES.items():
                rows = table if name == "csv" else text
                (folder / f"{metric}{suffix}").write_text(FORMATS[name](rows, notes), encoding="utf-8")
            brief = text.drop(columns=DETAILS) if form == "terminal" else text
            texts.append(FORMATS[form](brief, notes if metric == metrics[-1] else []))
            sections.append((LABELS[metric], "table", text))
            sections += [("", "figure", (path, caption)) for path, caption in _figures(table, metric, document, folder)]
        sections += [("", "figure", (path, caption)) for path, caption in _curves(found, document, store, folder)]
        failed = found.table[found.table["status"] != "FINISHED"][["cell", "seed", "status", "error"]]
        if len(failed):
            sections.append(("Not finished", "table", failed))
        run = _baseline(document, found)
        sections += [
            (
                "Config of the baseline",
                "code",
                store.artifact(run.info.run_id, "config.toml").read_text(encoding="utf-8"),
            ),
            ("Environment", "code", store.artifact(run.info.run_id, "environment.json").read_text(encoding="utf-8")),
            ("To remake", "code", f"{document['command']}\nsimclr report {store.client.get_run(study).info.run_name}"),
        ]
        title = f"Study {store.client.get_run(study).info.run_name}"
        (folder / "report.html").write_text(page(title, sections), encoding="utf-8")
        for path in sorted(folder.iterdir()):
            Tracker(store, study).artifact(path.name, lambda target, path=path: shutil.copy(path, target))  # type: ignore[misc]
            if out is not None:
                shutil.copy(path, out / path.name)
    place = store.artifact(study, "report.html")
    if form == "csv":
        return FORMATS["csv"](pd.concat(tables), [*notes, f"report: {place}"])
    return "\n".join([*texts, f"report: {place}"])


def _direction(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What is expected of another figure than the paper's linear classifier: the direction alone."""
    sides = {-1.0: "lower", 0.0: None, 1.0: "higher"}
    side = cell["direction"] if cell["paper"] is None else sides[float(np.sign(cell["paper"]))]
    return {**cell, "paper": None, "direction": side}


def _baseline(document: Mapping[str, Any], found: Records) -> Any:
    """A run of the baseline; where there is none, of the first cell that has one."""
    names = [cell["cell"] for cell in document["cells"]]
    return found.runs[min(found.runs, key=lambda place: (names.index(place[0]), place[1]))]


def _notes(document: Mapping[str, Any], found: Records) -> list[str]:
    """What the figures are of."""
    run = _baseline(document, found)
    protocols = {protocol for cell in document["cells"] for protocol in cell["protocols"].values()}
    seeds = sorted({seed for _, seed in found.runs})
    images = {len(right) for by_run in found.correct.values() for right in by_run.values()}
    usual = document["cells"][0]["protocols"]
    others = [cell["cell"] for cell in document["cells"] if cell["layer"] == "h" and cell["protocols"] != usual]
    apart = [f"judged on images of another size than the baseline: {', '.join(others)}"] if others else []
    if absent := int(found.table.loc[found.table["status"] == "FINISHED", list(EVALUATE.values())].isna().sum().sum()):
        apart.append(
            f"figures left out: {absent}, not found under the study's protocol; the study's command remakes them"
        )
    return [
        f"data {run.data.params['data.dataset']} (digest {run.data.tags['data_digest'][:8]}), "
        f"{', '.join(map(str, sorted(images)))} test images; seeds {', '.join(map(str, seeds))}",
        f"protocols {', '.join(sorted(protocols))}",
        *apart,
        "intervals: Student's t, 95 %, over seeds; differences: paired by seed; p: paired t test, and after Holm's "
        "correction over the cells; McNemar: exact, on the test images, for each seed",
        "expected: the paper's difference to its own baseline in points, or its direction (ImageNet, ResNet-50); the "
        "verdict is on the direction; seconds: of training, by images/s",
        f"made by: {document['command']}",
    ]


def _figures(table: pd.DataFrame, metric: str, document: Mapping[str, Any], folder: Path) -> list[tuple[Path, str]]:
    """The figures of one metric that the plan has data for: files and captions."""
    label, made = f"{LABELS[metric]} (%)", []
    for suffix in (".svg", ".png"):
        path = folder / f"differences-{metric}{suffix}"
        plots.differences(table, path, f"difference to the baseline in {LABELS[metric]} (points)")
    made.append((folder / f"differences-{metric}.svg", "Differences to the baseline, paired by seed"))
    cells = document["cells"]
    if (setting := document["x"]) is not None:
        lines = {name or LABELS[metric]: line for name, line in document["lines"].items()}
        for suffix in (".svg", ".png") if lines else ():
            plots.against(table, lines, folder / f"against-{metric}{suffix}", setting, label, document["log"])
        if lines:
            made.append((folder / f"against-{metric}.svg", f"{LABELS[metric]} against {setting}"))
    pairs = {tuple(cell["pair"]): cell["cell"] for cell in cells if cell["pair"]}
    if pairs:
        names = [first for first, second in pairs if first == second]
        means = table.set_index("cell")["mean"]
        values = np.array([[means.get(pairs.get((a, b)) or pairs.get((b, a))) for b in names] for a in names], float)
        for suffix in (".svg", ".png"):
            plots.pair_matrix(names, values, folder / f"pairs-{metric}{suffix}", label)
        made.append((folder / f"pairs-{metric}.svg", f"{LABELS[metric]} with two augmentations alone (paper, Fig. 5)"))
    return made


def _curves(found: Records, document: Mapping[str, Any], store: Store, folder: Path) -> list[tuple[Path, str]]:
    """Learning curves of the cells, over their seeds."""
    made = []
    for metric, label in CURVES.items():
        histories: dict[str, list[pd.DataFrame]] = {}
        for cell in document["cells"]:
            runs = [run for (name, _), run in found.runs.items() if name == cell["cell"]]
            curves = [curve for run in runs if len(curve := store.history(run.info.run_id, metric))]
            if curves and cell["layer"] == "h":
                histories[cell["cell"]] = curves
        if not histories:
            continue
        for suffix in (".svg", ".png"):
            plots.curves(histories, folder / f"curves-{metric.replace('/', '-')}{suffix}", label)
        made.append((folder / f"curves-{metric.replace('/', '-')}.svg", f"{label}, mean and range over seeds"))
    return made
