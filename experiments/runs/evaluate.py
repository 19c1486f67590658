"""Evaluate an encoder next to its baselines, and record the figures with its run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray

from analysis import plots
from analysis.findings import FEW
from analysis.statistics import accuracy_interval, balanced_interval, images_interval, mean_interval
from analysis.tables import is_accuracy, is_choice, is_classification, write_csv
from experiments.runs.baselines import pixel_accuracy, untrained_metrics
from experiments.runs.encoders import FoundEncoder
from experiments.runs.stock import Stock
from experiments.runs.use_of_test_set import TEST_TAG
from experiments.tracking.claims import claim_file
from experiments.tracking.store import SUPERSEDED, Record, Store
from experiments.tracking.writing import Tracker, start_run
from simclr import device as devices
from simclr.config import to_toml
from simclr.data.dataset import Dataset
from simclr.data.sources import DATASETS
from simclr.errors import UserError
from simclr.evaluate.base import Outcome
from simclr.evaluate.evaluations import EVALUATIONS, check, evaluate, evaluation_of, get_evaluation
from simclr.evaluate.finetune import Classifier
from simclr.evaluate.protocol import describe, identity
from simclr.evaluate.subject import Subject, check_collapse
from simclr.train.teacher import FILE, facts_of
from simclr.weights.checkpoint import save_weights
from simclr.weights.start import Start, split_digest, start_of

FIGURES_FILE = "evaluations.csv"  # of a run: all its figures, as rows with REPORT_COLUMNS
# The interval and the baselines of a figure. `start` is the network before training, if it started from weights.
REFERENCES = ("low", "high", "untrained", "start", "stock", "pixels", "chance")
LATER = ("start", "stock")  # those that tables of earlier versions lack, and that most runs don't have
PLACE = "place/"  # the tag with the name of the images that metrics are about whose names start with what follows
LABELS = "labels"  # the tag with the identity of the labelled images that figures of a run's own images are about
LABELLED = "labelled"  # the tag that says in words which labels these are
MATCHED = "matched"  # the tag with the numbers of `matched`
STOCK_ENDS = ("stock_low", "stock_high")  # of its interval, which is shown but not kept
REPORT_COLUMNS = ["metric", "trained", *REFERENCES, "protocol"]


class Report(NamedTuple):
    """What `simclr eval` prints."""

    run_id: str | None  # None for a file's encoder that was not recorded
    table: pd.DataFrame  # one row per metric, with REPORT_COLUMNS
    protocol: dict[str, Any]
    warnings: list[str]
    matched: tuple[int, int] | None  # how many images were used without labels, and of how many, if any were


def evaluate_encoder(
    found: FoundEncoder,
    subject: Subject,
    store: Store,
    names: Sequence[str],
    transfer: str | None = None,
    stock: Stock | None = None,
    *,
    keep: bool = False,
) -> Report:
    """Run some of EVALUATIONS, next to chance, raw pixels, the untrained network and a stock encoder, if there is one.

    Everything is logged to the encoder's run, or to a new run if the encoder came from a file, with `keep` also the
    network that was fine-tuned. Where the store can't be written, a warning says that nothing was recorded. Raises
    BadSettings if the encoder has collapsed.
    """
    names = list(names)
    check(subject, names)
    rows: list[dict[str, Any]] = []
    outcomes: dict[str, Outcome] = {}
    with devices.memory_errors("evaluate with --device cpu", devices.MORE_MEMORY):
        check_collapse(subject)
        raw = pixel_accuracy(subject, store) if any(EVALUATIONS[name].needs_labels for name in names) else nan
        for name, outcome, figures in figures_of(subject, names, store, raw, stock):
            outcomes[name] = outcome
            rows += figures
    table = pd.DataFrame(rows).reindex(columns=[*REPORT_COLUMNS, *STOCK_ENDS * (stock is not None)])
    images = len(subject.labels("test"))
    warnings, run_id = _warnings(table, images), found.run_id
    if "few-shot" in names and images < FEW:
        warnings.append(
            f"the intervals of few-shot accuracies only cover the draws of labelled images. With only {images} test "
            "images, the accuracy on other images may differ by much more"
        )
    if store.writable:
        run_id = _log(found, subject, store, table, outcomes, transfer, keep)
    else:
        warnings.append(f"these results were not recorded, because {store.folder} is not writable")
    return Report(run_id, table, describe(subject.protocol, subject.data), warnings, _used(outcomes))


def figures_of(
    subject: Subject, names: Sequence[str], store: Store, pixels: float = nan, stock: Stock | None = None
) -> Iterator[tuple[str, Outcome, list[dict[str, Any]]]]:
    """The name, the outcome and the `_rows` of each of some EVALUATIONS. `pixels` is the accuracy of kNN on those."""
    start = _start(subject)
    for name in names:
        outcome = evaluate(subject, name)
        others = {"untrained": untrained_metrics(subject, name, store)}
        if start is not None:
            others["start"] = untrained_metrics(subject, name, store, start)
        if stock is not None:
            others["stock"] = untrained_metrics(stock.subject, name, store, stock.start)
        yield name, outcome, list(_rows(subject, name, outcome, others, pixels))


def _used(outcomes: Mapping[str, Outcome]) -> tuple[int, int] | None:
    return next((outcome.used for outcome in outcomes.values() if outcome.used is not None), None)


def matched(record: Record) -> tuple[int, int] | None:
    """How many of a run's own images were used without labels, and of how many. Earlier versions did not record it."""
    used, slash, images = record.tags.get(MATCHED, "").partition("/")
    return (int(used), int(images)) if slash else None


def _start(subject: Subject) -> Start | None:
    """The weights that the encoder's training started from, if it did and they are still where they were."""
    init = subject.config.init
    try:
        if init is not None and not (path := split_digest(init)[0]).is_file():
            raise UserError(f"the training started from {path}, which is gone")
        return start_of(subject.config)
    except UserError as error:
        subject.observer.say(f'the column "start" is left out, because {error}')
        return None


def _rows(
    subject: Subject, name: str, outcome: Outcome, others: Mapping[str, Mapping[str, float]], pixels: float
) -> Iterator[dict[str, Any]]:
    """One row per metric of an evaluation. Accuracies have an interval, chance and the accuracy of raw pixels.

    Intervals are over the test images, or over what the metric is the mean of instead (`Outcome.samples`).
    """
    evaluation = get_evaluation(subject.protocol, name)
    protocol = identity(name, subject.protocol, subject.config, subject.data, subject.device)
    chance, count = evaluation.chance(subject)
    for metric, value in outcome.metrics.items():
        row: dict[str, Any] = {"metric": metric, "trained": value, "protocol": protocol}
        row |= {other: figures.get(metric, nan) for other, figures in others.items()}  # some have no head, so no z
        if metric in outcome.samples:
            mean = mean_interval(outcome.samples[metric])
            row["low"], row["high"] = np.clip([mean.low, mean.high], 0, 1).tolist()  # which keeps nan
        elif is_accuracy(metric):
            right = outcome.right.get(metric)
            ends = accuracy_interval(value * count, count) if right is None else images_interval(right.numpy())
            row["low"], row["high"] = ends
            if not isnan(row.get("stock", nan)):
                row |= zip(STOCK_ENDS, accuracy_interval(row["stock"] * count, count), strict=True)
        elif metric.endswith("_balanced"):
            truth = subject.labels("test").cpu().numpy()
            predicted = outcome.predictions[metric.replace("_balanced", "_top1")].cpu().numpy()
            row["low"], row["high"] = balanced_interval(value, predicted == truth, truth)
        row["chance"] = chance.get(metric.rpartition("_")[2], nan)
        fewer_labels = name == "finetune"  # than kNN on the raw pixels has
        row["pixels"] = pixels if is_classification(metric) and not fewer_labels else nan
        yield row


def _warnings(table: pd.DataFrame, images: int) -> list[str]:
    """Warnings about accuracies that the images can't tell from chance or from those before training, or below pixels.

    `images` is the number of test images. If there are few, more of them are the remedy.
    """
    accuracies = table[table["chance"].notna()]
    guessed = accuracies["low"] <= accuracies["chance"]  # comparing these with anything else says nothing new
    longer = "train for longer, or on more images"
    found = {
        "no better than chance": (guessed, f"{longer}, or check that the images show what the labels mean"),
        "no clear gain over the untrained network": (~guessed & (accuracies["low"] <= accuracies["untrained"]), longer),
        "no clear gain over the weights that it started from": (
            ~guessed & (accuracies["low"] <= accuracies["start"]),
            longer,
        ),
        "worse than kNN on the raw pixels": (~guessed & (accuracies["trained"] < accuracies["pixels"]), longer),
    }
    warnings = []
    for what, (rows, remedy) in found.items():
        metrics = accuracies["metric"][rows].tolist()
        few = images < FEW  # which contrastive accuracies don't depend on
        wide = [metric for metric in metrics if few and "contrastive" not in metric]
        if wide:
            warnings.append(f"{what} in {', '.join(wide)}, but {images} test images are too few to tell: label more")
        if others := [metric for metric in metrics if metric not in wide]:
            warnings.append(f"{what} in {', '.join(others)}: {remedy}")
    return warnings


def prefix(layer: str, elsewhere: str | None = None, on: str = "test", features: str = "raw") -> str:
    """The part of a metric's name between `eval/` and the metric.

    It names another data set, a layer other than h, the scaling of features, and the images to evaluate on, if those
    are not test.
    """
    scaled = features if features != "raw" else ""
    parts = filter(None, [elsewhere, layer if layer != "h" else "", scaled, on if on != "test" else ""])
    return "".join(f"{part}/" for part in parts)


def place_of(subject: Subject, transfer: str | None) -> str:
    """The `prefix` of the metrics of a subject."""
    data, protocol = subject.data, subject.protocol
    return prefix(protocol.layer, _elsewhere(data) if transfer else None, protocol.on, protocol.features)


def _elsewhere(data: Dataset) -> str:
    """What the names of metrics call other images than the run's own."""
    return f"folder-{data.digest[:8]}" if data.name == "folder" else data.name


def other_images(record: Record, metric: str) -> str | None:
    """The name for readers of the images that a metric is about; None if they are the run's own."""
    place, *rest = metric.split("/")
    if not rest or not (place in DATASETS or place.startswith("folder-")):
        return None
    return record.tags.get(f"{PLACE}{place}", place.replace("folder-", "images "))


def references(record: Record) -> dict[str, dict[str, float]]:
    """The REFERENCES of the figures of a run, by metric, as far as they are known."""
    found: dict[str, dict[str, float]] = {}
    for key, value in record.metrics.items():  # earlier versions logged them as ref/low/METRIC, ...
        if (parts := key.split("/", 2))[0] == "ref" and not isnan(value):
            found.setdefault(parts[2], {})[parts[1]] = value
    for row in _figures(record).to_dict("records"):
        found[row["metric"]] = {key: row[key] for key in REFERENCES if not isnan(row[key])}
    return found


def _figures(record: Record) -> pd.DataFrame:
    """The figures that are kept with a run, as a table with REPORT_COLUMNS."""
    try:
        path = record.artifact(FIGURES_FILE)
    except UserError:  # it has none
        return pd.DataFrame(columns=REPORT_COLUMNS)
    try:
        table = pd.read_csv(path, dtype=str)
        table = table.assign(**{name: nan for name in LATER if name not in table})[REPORT_COLUMNS]
        return table.astype(dict.fromkeys(("trained", *REFERENCES), float))  # Python's float keeps every digit
    except (ValueError, KeyError):  # what pandas raises for a damaged file is among these
        raise UserError(f"{path} is damaged: run `simclr eval {record.handle}` again to replace it") from None


def _supersede(tracker: Tracker, subject: Subject) -> list[str]:
    """Make results for other labels of a run's own images invalid, so that those of two tables are never mixed.

    Returns their names.
    """
    record, data = tracker.record(), subject.data
    if record.tags.get(LABELS, record.tags.get("data_digest")) == data.identity:
        return []
    old = [metric for metric in record.protocols if other_images(record, metric) is None and _needs_labels(metric)]
    if old:
        subject.observer.note(
            f"earlier results of {record.name} are for other labels or test images, and are left out from now on: "
            f"{', '.join(metric for metric in old if not is_choice(metric))}"
        )
    tracker.tag_protocols(dict.fromkeys(old, SUPERSEDED))
    about = f"{data.origin or data.title} ({int((data.labels >= 0).sum()):,} images with labels)"
    tracker.tag({LABELS: data.identity, LABELLED: about})
    return old


def _needs_labels(metric: str) -> bool:
    name = evaluation_of(metric)
    return name is not None and EVALUATIONS[name].needs_labels


def labels_of(record: Record) -> str | None:
    """Which labels the figures of a run's own images are about, if they aren't those that it was trained with."""
    same = record.tags.get(LABELS) in (None, record.tags.get("data_digest"))
    measured = any(other_images(record, metric) is None and _needs_labels(metric) for metric in record.protocols)
    return None if same or not measured else record.tags[LABELLED]


def _keep_figures(tracker: Tracker, table: pd.DataFrame, old: Sequence[str] = ()) -> None:
    """Keep figures with a run, in place of earlier ones of the same metrics, and of `old` ones."""
    with FileLock(claim_file(tracker.store, FIGURES_FILE, tracker.run_id)):  # of two evaluations, none is lost
        try:
            before = _figures(tracker.record())
        except UserError:  # it is damaged
            before = pd.DataFrame(columns=REPORT_COLUMNS)
        rows = [*before[~before["metric"].isin([*table["metric"], *old])].to_dict("records"), *table.to_dict("records")]
        tracker.artifact(FIGURES_FILE, lambda path: write_csv(pd.DataFrame(rows), path))
        tracker.flush()


def predictions(record: Record, metric: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predicted and true classes of the images that a metric of a run is about. Raises UserError if there are none."""
    path = record.artifact(_predictions_file(metric))
    try:
        with np.load(path) as arrays:
            return arrays["predicted"], arrays["labels"]
    except Exception:  # zipfile and numpy raise many kinds of errors on damaged files
        raise UserError(f"{path} is damaged: run `simclr eval {record.handle}` again") from None


def _predictions_file(metric: str) -> str:
    """The file that holds the predictions of a metric (its name includes the prefix)."""
    return f"{metric.replace('/', '-')}-predictions.npz"


def _log(
    found: FoundEncoder,
    subject: Subject,
    store: Store,
    table: pd.DataFrame,
    outcomes: dict[str, Outcome],
    transfer: str | None,
    keep: bool,
) -> str:
    """Log the figures with their protocols and predictions, and return the run's id."""
    if found.run_id is not None:
        tracker = Tracker(store, found.run_id)
    else:
        config = found.config
        tags = {"config_key": config.key(), "data_digest": found.digest, "seed": str(config.seed)}
        tracker = start_run(store, f"{config.run_name()}-eval", "eval", config.flat(), tags)
    protocol, before = subject.protocol, place_of(subject, transfer)
    table = table[REPORT_COLUMNS].assign(metric=before + table["metric"])
    metrics = {f"eval/{name}": value for name, value in zip(table["metric"], table["trained"], strict=True)}
    own = transfer is None and any(EVALUATIONS[name].needs_labels for name in outcomes)
    old = _supersede(tracker, subject) if own else []
    label = before.replace("/", "-")
    description = json.dumps(describe(protocol, subject.data), indent=2)
    for name, outcome in outcomes.items():
        tracker.artifact(f"{label}{name}-protocol.json", lambda path: path.write_text(description))
        for metric, predicted in outcome.predictions.items():
            _keep_predictions(tracker, subject, f"{before}{metric}", predicted.cpu().numpy())
        if keep and isinstance(network := outcome.network, Classifier):
            facts = facts_of(network, to_toml(subject.config), subject.data)
            tracker.artifact(FILE, partial(save_weights, model=network, metadata=facts))
    _keep_figures(tracker, table, old)
    known = tracker.record().metrics  # a value from before must not outlive one that is nan now
    tracker.log({key: value for key, value in metrics.items() if not np.isnan(value) or key in known})
    if transfer is None and (counts := _used(outcomes)) is not None:
        tracker.tag({MATCHED: f"{counts[0]}/{counts[1]}"})
    place = {f"{PLACE}{_elsewhere(subject.data)}": subject.data.title} if transfer else {}
    tracker.tag({"protocol": protocol.version, **use_tags(subject, outcomes), **place})
    protocols = table["protocol"].where(table["trained"].notna(), SUPERSEDED)  # one without a value doesn't count
    tracker.tag_protocols(dict(zip(table["metric"], protocols, strict=True)))  # last: a tagged metric is complete
    if found.run_id is None:
        tracker.finish("FINISHED")
    tracker.flush()
    return tracker.run_id


def use_tags(subject: Subject, names: Iterable[str], of: str = "") -> dict[str, str]:
    """The tags that count how often a test set was used, of those evaluations that use it.

    `of` is what was evaluated of the run, if that is not its encoder.
    """
    protocol, data = subject.protocol, subject.data
    used = [name for name in names if protocol.on == "test" and EVALUATIONS[name].uses_test and len(data.parts["test"])]
    keys = (identity(name, protocol, subject.config, data, subject.device) for name in used)
    return {f"{TEST_TAG}{key}{of}": data.digest for key in keys}


def _keep_predictions(tracker: Tracker, subject: Subject, metric: str, predicted: NDArray[np.int64]) -> None:
    """Keep the predicted classes of the images, the accuracy of each class, and the confusion matrix."""
    classes, truth = subject.data.classes, subject.labels("test").cpu().numpy()
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    by_class = pd.DataFrame(
        {"class": classes, "images": matrix.sum(1), "accuracy": matrix.diagonal() / np.maximum(1, matrix.sum(1))}
    )

    def arrays(path: Path) -> None:
        np.savez_compressed(path, predicted=predicted, labels=truth)

    tracker.artifact(_predictions_file(metric), arrays)
    name = metric.replace("/", "-")
    tracker.artifact(f"{name}-classes.csv", lambda path: write_csv(by_class, path))
    tracker.artifact(f"{name}-confusion.png", lambda path: plots.confusion_matrix(matrix, list(classes), path))
