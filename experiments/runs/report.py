"""The report of a run: its accuracies next to their baselines, its curves, its confusions and its views."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import plots
from analysis.findings import count, of_run
from analysis.page import Section, page
from analysis.tables import (
    FORMATS,
    in_percent,
    interval_kinds,
    is_accuracy,
    is_choice,
    is_classification,
    is_on_validation,
    latex,
    metric_label,
)
from analysis.text import percent, to_json
from experiments.runs.compare import chance_level, curve, curve_label, method_of, reads_labels
from experiments.runs.evaluate import LATER, REFERENCES, labels_of, matched, other_images, predictions, references
from experiments.runs.pages import PAGE, figure, link, linked_server, report_files, report_folder, text_of, where
from experiments.runs.use_of_test_set import describe_uses
from experiments.runs.view_grid import STRIP, STRIP_SHOWS
from experiments.tracking.images import images_of
from experiments.tracking.naming import ended, state
from experiments.tracking.store import Record, Store
from simclr.data.dataset import digest_of
from simclr.progress import knn_metric

MOST_CONFUSED = 10  # pairs of classes
FEWEST_OF_CLASS = 5  # test images of a class, on average, below which nothing can be said about confusions
TOO_FEW = "They are not shown: {images} test images are too few to say which classes are confused. Label more."
COLUMNS = {
    "untrained": "Untrained",
    "start": "Before training",
    "stock": "Stock encoder",
    "pixels": "Pixels (kNN)",
    "chance": "Chance",
}
HOW = """Accuracies are on the test images unless marked "on validation", in percent. They stand next to those of \
the same network before training (with random weights and, if it started from other weights, with those), of k nearest \
neighbours on the raw pixels, and of chance."""


def report(run: Record, store: Store, form: str = "terminal", out: Path | None = None) -> tuple[str, list[str]]:
    """Write the page and the figures of a run, and keep them with it.

    Returns the table of its evaluations in a format, json or one of `analysis.tables.FORMATS` (empty without
    evaluations), and lines that say this and where the page is. The files are also copied to `out`. Raises UserError if
    `out` can't be written to.
    """
    figures, predicted = _figures(run), _predicted(run)
    finding = _finding(run, figures, predicted)
    with report_folder(run, store, out) as folder:
        (folder / PAGE).write_text(_page(run, figures, predicted, finding, folder), encoding="utf-8")
    notes = _about(run) if len(figures) else [" ".join(finding)]
    last = [*notes, where(run, store)]
    shares = figures["metric"].map(in_percent)
    scaled = ["trained", *REFERENCES]
    numbers = figures.assign(**{key: figures[key].where(~shares, figures[key].map(percent)) for key in scaled})
    if form == "json":
        return to_json({"rows": numbers, "notes": notes, "files": report_files(run)}), []
    if form == "csv":
        return FORMATS[form](numbers, []), last
    if figures.empty:
        return "", last
    rows = _shown(figures).map(_in_one_line, na_action="ignore")
    if form == "latex":
        rows["Evaluation"] = rows["Evaluation"].str.removesuffix(" (%)")  # the caption says it
        return latex(rows, [_caption(run, figures)], run.name), last
    return FORMATS[form](rows, []), last


def _how(figures: pd.DataFrame) -> str:
    """How to read the table of a run's figures."""
    intervals = interval_kinds(figures["metric"][figures["low"].notna()].tolist())
    return f"{HOW} {intervals}".strip()


def _caption(run: Record, figures: pd.DataFrame) -> str:
    """What a table of a run's figures is about."""
    elsewhere = f" and evaluated on {images_of(run)[0]}" * (run.kind != "pretrain")
    by = f" ({', '.join(_method(run))})" * (run.kind == "pretrain")
    return f"Results of {run.name}{by}, trained {_trained(run)}{elsewhere}. {_how(figures)}"


def _method(run: Record) -> list[str]:
    """The method that trained a run, and whether it read labels, if it was trained here."""
    facts = [f"method {method_of(run)}", *["trained on labels"] * reads_labels(run)]
    return facts if run.kind == "pretrain" else []


def _about(run: Record) -> list[str]:
    """Sentences about labels: whether training read them, and which accuracies are of, if it was done without them."""
    labels = labels_of(run)
    trained = [f"The method {method_of(run)} trains on labels."] if reads_labels(run) else []
    return trained + ([f"Accuracies are for the labels in {labels}."] if labels else [])


def _in_one_line(text: str) -> str:
    """A cell of the page's table, with the interval in brackets."""
    value, *interval = text.replace("\u00a0", " ").split("\n")
    return f"{value} ({interval[0]})" if interval else value


def _figures(run: Record) -> pd.DataFrame:
    """One row per evaluated metric: metric, trained, REFERENCES and the protocol. Accuracies are in [0, 1]."""
    known = references(run)
    rows = [
        {"metric": name, "trained": run.metrics[f"eval/{name}"]}
        | {key: known.get(name, {}).get(key, nan) for key in REFERENCES}
        | {"protocol": protocol}
        for name, protocol in run.protocols.items()
    ]
    table = pd.DataFrame(rows, columns=["metric", "trained", *REFERENCES, "protocol"])
    table["elsewhere"] = pd.Series([other_images(run, metric) for metric in table["metric"]], dtype=object)
    own = table.sort_values("metric", key=lambda names: names.map(_rank), kind="stable", ignore_index=True)
    return own.sort_values("elsewhere", key=lambda names: names.notna(), kind="stable", ignore_index=True)


def _rank(metric: str) -> int:
    """Linear classifiers come first, then kNN. What was measured on validation comes last."""
    name = metric.removeprefix("val/")
    rank = 0 if name.startswith("linear") else 1 if name.startswith("knn") else 2
    return rank + 3 * is_on_validation(metric)


def _label(metric: str, elsewhere: str | None) -> str:
    return f"{metric_label(metric.partition('/')[2])} on {elsewhere}" if elsewhere else metric_label(metric)


def _shown(figures: pd.DataFrame) -> pd.DataFrame:
    """The table of evaluations for readers."""
    columns = [key for key in COLUMNS if key not in (*LATER, "pixels") or figures[key].notna().any()]
    rows = []
    for row in figures[~figures["metric"].map(is_choice).astype(bool)].to_dict("records"):
        scale, style, ends = (100, ".2f", ".1f") if in_percent(row["metric"]) else (1, ".4g", ".4g")  # as `simclr eval`
        shown = {
            key: None if isnan(row[key]) else f"{scale * row[key]:{ends if key in ('low', 'high') else style}}"
            for key in ("trained", *REFERENCES)
        }
        label = _label(row["metric"], row["elsewhere"]) + (" (%)" if in_percent(row["metric"]) else "")
        interval = f"\n{shown['low']}\u00a0to {shown['high']}" if shown["low"] else ""
        others = {COLUMNS[key]: shown[key] for key in columns}
        rows.append({"Evaluation": label, "Trained": f"{shown['trained']}{interval}", **others})
    return pd.DataFrame(rows, columns=["Evaluation", "Trained", *(COLUMNS[key] for key in columns)], dtype=object)


def _trained(run: Record) -> str:
    """How a run was trained. Those that were not trained here have settings that don't say it."""
    if run.kind != "pretrain":
        return "elsewhere"
    name, counts = images_of(run)
    number = f"{counts['pretrain']:,} images of " if "pretrain" in counts else ""  # which data.limit may have chosen
    return f"for {count(int(run.params['train.epochs']), 'epoch')} on {number}{name}"


def _finding(run: Record, figures: pd.DataFrame, predicted: Predicted | None) -> list[str]:
    """What is known of a run, in sentences."""
    if not run.finished:
        return list(filter(None, [f"This run {ended(run.status)}.", run.tags.get("error", "")]))
    images = None if predicted is None else len(predicted.truth)
    return of_run(figures, images, _trained(run), f"simclr eval {run.handle}", matched(run))


def _page(run: Record, figures: pd.DataFrame, predicted: Predicted | None, finding: Sequence[str], folder: Path) -> str:
    dataset, counts = images_of(run)
    settings = []
    if run.kind == "pretrain":
        settings = [f"batch size {run.params['train.batch_size']}", f"seed {run.tags['seed']}"]
    plain = predicted is not None and len(predicted.truth) >= FEWEST_OF_CLASS * len(predicted.classes)
    facts = [
        dataset,
        run.params.get("model.backbone", ""),
        *_method(run),
        *settings,
        f"started from {run.tags['start']}" if "start" in run.tags else "",
        run.started.strftime("%d %B %Y"),
        state(run.status),
    ]
    sentences = [*finding]
    # Nobody knows what an imported encoder was trained on, and some earlier versions didn't count the test images.
    digest = digest_of(run.tags.get("data_digest", ""))
    if run.finished and digest and counts.get("test", 1):
        sentences.append(describe_uses(run.store, digest))
    sentences += _about(run)
    sections = [Section("", "table", _shown(figures))] if len(figures) else []
    drawn = _curves(run, folder)
    if predicted is not None and plain:
        drawn.append(_confusion(predicted, folder))
    sections += [section._replace(heading="" if index else "Figures") for index, section in enumerate(drawn)]
    if (path := run.find_artifact(STRIP)) is not None:
        sections += [Section("Example views", "text", STRIP_SHOWS), Section("", "images", [("", path.read_bytes())])]
    if predicted is not None and not plain:
        sections.append(Section("Confusions of classes", "text", TOO_FEW.format(images=len(predicted.truth))))
    elif predicted is not None and len(confused := _most_confused(predicted)):
        sections.append(Section("Most often confused", "table", confused))
    pages = pd.DataFrame({f"Page, while {linked_server()} is running": [link(run, run.name)], "Id": [run.id]})
    sections.append(Section("This run", "table", pages))
    return page(
        "Run", run.name, list(filter(None, sentences)), list(filter(None, facts)), [*sections, *_appendix(run, figures)]
    )


def _curves(run: Record, folder: Path) -> list[Section]:
    drawn = []
    kept = sorted(metric for metric in run.metrics if metric.startswith("snapshots/") and is_classification(metric))
    for metric in filter(None, ("train/loss", knn_metric(run.metrics), *kept)):
        points = curve(run, metric)
        if len(points) > 1:
            chances = {run.name: chance_level(metric, run)}
            label = curve_label(metric, run)
            draw = partial(
                plots.curves, {run.name: [points]}, ylabel=label, chances=chances, percent=is_accuracy(metric)
            )
            drawn.append(figure(folder, metric.replace("/", "-"), label, draw))
    return drawn


class Predicted(NamedTuple):
    """What a classifier of a metric predicted."""

    metric: str
    found: NDArray[np.int64]
    truth: NDArray[np.int64]
    classes: list[str]

    def matrix(self) -> NDArray[np.int64]:
        """Counts of images by true and predicted class (C x C)."""
        counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(counts, (self.truth, self.found), 1)
        return counts


def _predicted(run: Record) -> Predicted | None:
    """The predictions of the most important metric of which they were kept with the names of the classes."""
    for metric in sorted(run.protocols, key=lambda name: (other_images(run, name) is not None, _rank(name))):
        path = run.find_artifact(f"{metric.replace('/', '-')}-classes.csv")
        if path is not None:
            classes = pd.read_csv(path, dtype={"class": str}, keep_default_na=False)["class"].tolist()
            return Predicted(metric, *predictions(run, metric), classes)
    return None


def _confusion(predicted: Predicted, folder: Path) -> Section:
    classifier = metric_label(predicted.metric).removesuffix(" top-1")
    caption = f"Errors of the {classifier} classifier, as shares of each true class"
    draw = partial(plots.confusion_matrix, predicted.matrix(), predicted.classes)
    return figure(folder, "confusion", caption, draw)


def _most_confused(predicted: Predicted) -> pd.DataFrame:
    """The pairs of classes that are most often confused: true, predicted, images and their share of the true class."""
    matrix, classes = predicted.matrix(), predicted.classes
    totals = matrix.sum(1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:MOST_CONFUSED]
    rows = [
        [classes[true], classes[other], int(matrix[true, other]), f"{100 * matrix[true, other] / totals[true]:.1f} %"]
        for true, other in np.column_stack(np.unravel_index(order, matrix.shape))
        if matrix[true, other]
    ]
    return pd.DataFrame(rows, columns=["True class", "Taken for", "Images", "Of that class"], dtype=object)


def _appendix(run: Record, figures: pd.DataFrame) -> list[Section]:
    sections = [Section("How to read the table", "text", _how(figures), folded=True)] if len(figures) else []
    if len(figures):
        sections.append(Section("Protocols", "table", figures[["metric", "protocol"]], folded=True))
    files = {"Config": "config.toml", "Environment": "environment.json"}
    return sections + [
        Section(heading, "code", text_of(run, name), folded=True)
        for heading, name in files.items()
        if run.find_artifact(name) is not None
    ]
