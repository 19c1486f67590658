"""Compare runs: settings that differ, figures, significance of differences, and curves in one plot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import plots
from analysis.label_free import MATCHES, compared
from analysis.statistics import accuracy_interval
from analysis.tables import (
    comparison,
    has_other_interval,
    in_percent,
    interval_kinds,
    is_choice,
    is_classification,
    is_on_validation,
    mcnemar_table,
    metric_label,
    write_csv,
)
from experiments.runs.comparable import image_difference, incomparable
from experiments.runs.evaluate import predictions, references
from experiments.tracking.images import images_of
from experiments.tracking.starts import start_label
from experiments.tracking.store import ENCODERS, Record, Store
from simclr.augment import AUGMENTATIONS
from simclr.errors import UserError, suggest
from simclr.files import written_whole
from simclr.methods import METHODS
from simclr.progress import knn_label, knn_metric
from simclr.settings import STARTS

SHORT_NAMES = {  # what `simclr plot` accepts for a metric
    "loss": "train/loss",
    "knn": "val/knn_top1",
    "top1": "train/contrastive_top1",
    "top5": "train/contrastive_top5",
    "rate": "train/learning_rate",
}


CURVES = ("train/", "val/", "perf/", "snapshots/")  # how the names of metrics start that have a value at many steps


OUTSIDE_THE_LOSS = (".hidden_dim", ".momentum", ".teacher")  # settings of methods on which its scale doesn't depend
CANDIDATES = ["train.batch_size", "augment.views", "augment.local.count"]  # settings on which chance may depend


class Comparison(NamedTuple):
    """What `simclr compare` prints."""

    table: pd.DataFrame  # one column per run, one row per figure and per setting that differs
    tests: pd.DataFrame  # McNemar's test of each pair; empty if no two runs have predictions of the same images
    notes: list[str]
    runs: list[dict[str, Any]]  # the numbers of the table, as `analysis.tables.comparison` has them


def compare(names: Sequence[str], store: Store) -> Comparison:
    """All evaluations of these runs (names, or starts of ids), and McNemar's test of each pair.

    Two runs are tested on a metric only if both measured it under the same protocol, on the same images. Raises
    UserError if a run has not been evaluated.
    """
    found = (store.find(name, (*ENCODERS, "eval")) for name in names)
    chosen = {record.id: record for record in found}.values()
    rows: list[dict[str, Any]] = []
    predicted: dict[tuple[str, str], dict[str, NDArray[np.int64]]] = defaultdict(dict)
    truth: dict[tuple[str, str], NDArray[np.int64]] = {}
    for record, label in zip(chosen, run_labels(chosen), strict=True):
        rows.append(_row(record, label))
        for metric, identity in record.protocols.items():
            if is_classification(metric):  # others have no predictions
                predicted[metric, identity][label], truth[metric, identity] = predictions(record, metric)
    tests = [
        mcnemar_table({label: {metric: array} for label, array in by_run.items()}, truth[metric, identity])
        for (metric, identity), by_run in predicted.items()
        if len(by_run) > 1
    ]
    images = {key: len(labels) for key, labels in truth.items()}
    table = comparison(rows).set_index("run").T.rename_axis("run").reset_index()
    notes = [
        *_matches(rows),
        *incomparable(list(chosen)),
        *_untested(list(chosen)) * (not tests),
        *_notes(rows, images, bool(tests)),
    ]
    return Comparison(table, pd.concat(tests) if tests else pd.DataFrame(), notes, rows)


def run_labels(records: Collection[Record]) -> list[str]:
    """The names of runs, with the id behind a name that several have."""
    shared = Counter(record.name for record in records)
    return [record.name if shared[record.name] == 1 else f"{record.name} ({record.short_id})" for record in records]


def _row(record: Record, label: str) -> dict[str, Any]:
    """One run as `analysis.tables.comparison` expects it."""
    if not record.protocols:
        run = f"{record.name} ({record.short_id})"
        raise UserError(f"run {run} has not been evaluated: run `simclr eval {record.handle}`")
    known = references(record)
    return {
        "name": label,
        "id": record.id,
        "config": _settings(record),
        "metrics": {name: record.metrics[f"eval/{name}"] for name in record.protocols},
        "intervals": {
            name: (known[name]["low"], known[name]["high"]) for name in record.protocols if "low" in known.get(name, {})
        },
        "protocols": record.protocols,
        "reads_labels": reads_labels(record),
    }


def _settings(record: Record) -> dict[str, str]:
    """The settings of a run. Records of earlier versions lack the augmentations that were not used."""
    views = {key.partition(".")[0] for key in record.params} & {"augment", "augment2"}
    unused = {f"{view}.{name}.p": "0.0" for view in sorted(views) for name in AUGMENTATIONS}
    starts = {key: start_label(record, key) for key in STARTS if key in record.params}
    return unused | {key: value for key, value in record.params.items() if key != "name"} | starts


def _notes(rows: Sequence[dict[str, Any]], images: dict[tuple[str, str], int], tested: bool) -> list[str]:
    """How to read the tables."""
    with_intervals = {metric for row in rows for metric in row["intervals"]}
    brackets = f", with intervals in brackets. {interval_kinds(with_intervals)}" if with_intervals else "."
    notes = [f"Accuracies are in percent{brackets}"]
    if older := [row["name"] for row in rows if _is_bootstrapped(row, images)]:
        notes.append(f"Evaluated by an older version, with bootstrap intervals: {', '.join(older)}.")
    pairs = sorted({pair for row in rows for pair in row["protocols"].items() if not is_choice(pair[0])})
    for identity in dict.fromkeys(identity for _, identity in pairs):
        names = [name for name, other in pairs if other == identity]
        counts = {images[name, identity] for name in names if (name, identity) in images}
        part = "validation" if is_on_validation(names[0]) else "test"
        count = f" ({', '.join(map(str, counts))} {part} images)" if counts else ""
        notes.append(f"Protocol {identity}{count}: {', '.join(map(metric_label, names))}.")
    if supervised := [row["name"] for row in rows if row["reads_labels"]]:
        notes.append(f"Trained on labels: {', '.join(supervised)}.")
    if tested:
        notes.append(
            "McNemar's test is exact and two-sided, on the images that only one of the runs classified correctly. It "
            "is not corrected for the number of tests. For means over several seeds (finetune) it uses the first "
            "seed's predictions."
        )
    return notes


def _untested(records: Sequence[Record]) -> list[str]:
    """Why no pair of runs was tested, and what to do."""
    if len(records) == 1:
        return [
            f"There is nothing to compare this run with: name another. Its page: `simclr report {records[0].handle}`."
        ]
    without = [record for record in records if MATCHES not in record.protocols]
    accuracies = any(is_classification(metric) for record in records for metric in record.protocols)
    label_free = not accuracies and len(without) < len(records)  # some were measured without labels
    if label_free and not without:
        return []
    why = "McNemar's test is left out, because the runs share no accuracy on the same images and protocol. "
    alike = {record.id for pair in combinations(records, 2) if not image_difference(*pair) for record in pair}
    if not alike:
        one, other = records[:2]
        return [
            f"{why * (not label_free)}Results on their own images can't be compared: {image_difference(one, other)} "
            f"({one.name} and {other.name}). To compare the runs, evaluate each on the same other images: `simclr eval "
            f"RUN --transfer FOLDER{' --no-labels' * label_free}`."
        ]
    if label_free:
        commands = [f"`simclr eval {record.handle} --no-labels`" for record in without if record.id in alike]
        return [f"To compare these runs without labels, run {' and '.join(commands)}."] if commands else []
    lacking = [record for record in records if not _tested(record) and record.id in alike]
    if not lacking and not set.intersection(*map(_tested, records)):  # they have different kinds of accuracies
        lacking = [record for record in records if "linear_top1" not in record.protocols and record.id in alike]
    commands = [
        f"`simclr eval {record.handle}{'' if _has_classes(record) else ' --labels TABLE'}`" for record in lacking
    ]
    return [f"{why}Run {' and '.join(commands)}." if commands else why.strip()]


def _tested(record: Record) -> set[str]:
    """The accuracies of a run on its test images, of which there are predictions."""
    return {metric for metric in record.protocols if is_classification(metric) and not is_on_validation(metric)}


def _has_classes(record: Record) -> bool:
    """Whether a run's own images have labels, as far as its record says it."""
    _, counts = images_of(record)
    return counts.get("classes", 2) > 1


def _matches(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Which run finds other views most often, if this was measured of several, of all by the same protocol."""
    measured = [row for row in rows if MATCHES in row["intervals"]]
    if len(measured) < 2 or len({row["protocols"][MATCHES] for row in measured}) > 1:
        return []
    figures = {row["name"]: (row["metrics"][MATCHES], *row["intervals"][MATCHES]) for row in measured}
    shares = {name: tuple(100 * value for value in values) for name, values in figures.items()}
    return [compared(shares)]


def _is_bootstrapped(row: dict[str, Any], images: dict[tuple[str, str], int]) -> bool:
    """Whether the intervals of a run are not Clopper and Pearson's, where the number of images is known."""
    known = (
        (row["metrics"][name], images.get((name, row["protocols"][name])), ends)
        for name, ends in row["intervals"].items()
        if not has_other_interval(name)
    )
    return any(
        count and not np.allclose(ends, accuracy_interval(value * count, count), atol=1e-4)
        for value, count, ends in known
    )


def curve_label(metric: str, record: Record) -> str:
    """A metric in words, for the axis of a figure."""
    if metric == "train/loss" and (method := METHODS.get(method_of(record))) is not None:
        return method.loss_label
    if metric.startswith("snapshots/"):
        label = metric_label(metric.removeprefix("snapshots/"))
        return label if is_on_validation(metric) else f"test {label}"
    return f"{knn_label(metric)} accuracy on validation" if knn_metric([metric]) else metric


def chance_level(metric: str, record: Record) -> float:
    """The value of a metric for a network that has learned nothing; nan if it isn't known."""
    levels = {metric: float(record.tags.get("val_chance", nan))} if knn_metric([metric]) else {}
    if (method := METHODS.get(method_of(record))) is not None:  # a newer version may have recorded one more
        names = {f"{method.section_name}.{name}": name for name in method.section.model_fields}
        given = {names[name]: value for name, value in record.params.items() if name in names}
        section = method.section.model_validate(given, strict=False)  # MLflow keeps every value as text
        levels |= method.chance(section, int(record.params["train.batch_size"]), _view_count(record.params))
    return levels.get(metric, nan)


def loss_caveat(metric: str, records: Sequence[Record]) -> str:
    """A sentence for curves of the loss that differ in what its scale depends on; empty if there is nothing to say."""
    if metric != "train/loss":
        return ""
    methods = {method_of(record) for record in records}
    sections = {METHODS[method].section_name for method in methods if method in METHODS}
    own = {name for record in records for name in record.params if name.partition(".")[0] in sections}
    names = [] if len(methods) > 1 else sorted(name for name in own if not name.endswith(OUTSIDE_THE_LOSS))
    levels = {level for record in records if not isnan(level := chance_level(metric, record))}
    names += CANDIDATES * (len(levels) > 1)
    differing = [name for name in names if len({record.params.get(name) for record in records}) > 1]
    differing = ["the method"] * (len(methods) > 1) + differing
    if not differing:
        return ""
    of_chance = " Each chance level has the colour of its curve." * (len(levels) > 1)
    return (
        f"The scale of the loss depends on {', '.join(differing)}, so the heights of curves that differ in this say "
        f"nothing about which encoder is better.{of_chance}"
    )


def _view_count(params: Mapping[str, str]) -> int:
    return int(params.get("augment.views", 2)) + int(params.get("augment.local.count", 0))


def curve(record: Record, metric: str) -> pd.DataFrame:
    """All points of a metric, as columns `step`, `images` (seen by then, with repetitions), `epoch` and `value`.

    The epoch is nan where it isn't known: in unfinished runs of earlier versions.
    """
    points = record.history(metric)
    per_epoch = float(record.tags.get("steps_per_epoch", nan))
    if isnan(per_epoch) and record.finished and "train.epochs" in record.params:
        per_epoch = record.history("train/loss")["step"].max() / int(record.params["train.epochs"])
    images = points["step"] * int(record.params.get("train.batch_size", 1))
    return points.assign(images=images, epoch=points["step"] / per_epoch)


def reads_labels(record: Record) -> bool:
    """Whether a run was trained on the labels of its images."""
    method = METHODS.get(method_of(record))
    return method is not None and method.reads_labels


def method_of(record: Record) -> str:
    """The method that trained a run. Records of the first version don't name it."""
    return record.params.get("method", "simclr")


def _no_curve(record: Record, metric: str) -> UserError:
    """The error for a run that has no curve of a metric."""
    short = {name: short for short, name in SHORT_NAMES.items()}
    curves = sorted(short.get(name, name) for name in record.metrics if name.startswith(CURVES))
    if not curves:
        return UserError(f"run {record.name} ({record.short_id}) has no training curves: it was not trained here")
    return UserError(f"run {record.name} ({record.short_id}) has no curve '{metric}': {suggest(metric, curves)}")


def plot_metric(metric: str, names: Sequence[str], store: Store, out: Path, smooth: int) -> dict[str, Any]:
    """Draw the curves of several runs in one figure, with their chance levels, and write their points.

    Returns the files, out.png, out.svg and out.csv, and a note on how to read them. Raises UserError if a run doesn't
    have the metric.
    """
    histories, chances, axis_labels = {}, {}, set()
    records = [store.find(name) for name in names]
    for record, label in zip(records, run_labels(records), strict=True):
        key = (knn_metric(record.metrics) if metric == "knn" else None) or SHORT_NAMES.get(metric, metric)
        axis_labels.add(curve_label(key, record))
        points = curve(record, key)
        if points.empty:
            raise _no_curve(record, metric)
        histories[label], chances[label] = [points], chance_level(key, record)
    files = plots.files_of(out, ".png", ".svg", ".csv")
    with written_whole(files[0]) as png, written_whole(files[1]) as svg, written_whole(files[2]) as csv:
        for path in (png, svg):
            ylabel = " / ".join(sorted(axis_labels))
            plots.curves(histories, path, ylabel, chances, smooth, percent=in_percent(key))
        write_csv(plots.curve_points(histories), csv)
    return {"files": files, "note": loss_caveat(key, records) or None}
