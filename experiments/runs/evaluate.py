"""Evaluate an encoder beside its baselines, and record what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import plots
from analysis.statistics import accuracy_interval, share_interval
from analysis.tables import is_accuracy
from experiments.runs.baselines import _baseline, _pixels
from experiments.runs.encoders import Found
from experiments.tracking import BESIDE, PROTOCOL_TAG, Store, Tracker
from simclr import device as devices
from simclr.errors import UserError
from simclr.evaluate.evaluations import EVALUATIONS, check, evaluate
from simclr.evaluate.protocol import describe
from simclr.evaluate.subject import Outcome, Subject


class Report(NamedTuple):
    """What `simclr eval` prints."""

    run_id: str
    table: pd.DataFrame  # a row a metric: trained, low, high, untrained, pixels, chance, protocol
    protocol: dict[str, Any]
    warnings: list[str]


def evaluate_encoder(
    found: Found, subject: Subject, store: Store, names: Sequence[str], transfer: str | None = None
) -> Report:
    """Judge an encoder by some of EVALUATIONS, beside chance, raw pixels and the untrained network.

    All of it is logged to the encoder's run; for a file, to a new one.
    """
    names = list(names)
    check(subject, names)
    labelled = any(EVALUATIONS[name].labels for name in names)
    rows: list[dict[str, Any]] = []
    outcomes: dict[str, Outcome] = {}
    with devices.memory_errors("evaluate with --device cpu"):
        raw = _pixels(subject, store) if labelled else nan
        for name in names:
            outcomes[name] = evaluate(subject, name)
            untrained = _baseline(subject, name, store)
            identity = subject.identity(EVALUATIONS[name].sections)
            odds, count = EVALUATIONS[name].chance(subject)
            for metric, value in outcomes[name].metrics.items():
                row = {"metric": metric, "trained": value, "untrained": untrained[metric], "protocol": identity}
                if is_accuracy(metric):
                    shares = outcomes[name].shares.get(metric)
                    row["low"], row["high"] = (
                        accuracy_interval(round(value * count), count)
                        if shares is None
                        else share_interval(shares.cpu().numpy())
                    )
                    row["chance"] = odds[metric[-4:]]
                    row["pixels"] = raw if metric.endswith("top1") and EVALUATIONS[name].labels else nan
                rows.append(row)
    columns = ["metric", "trained", "low", "high", "untrained", "pixels", "chance", "protocol"]
    table = pd.DataFrame(rows).reindex(columns=columns)
    run_id = _record(found, subject, store, table, outcomes, transfer)
    return Report(run_id, table, describe(subject.protocol, subject.data), _doubts(table))


def _doubts(table: pd.DataFrame) -> list[str]:
    """A sentence on the accuracies that are not above the untrained network's, as far as the test images tell."""
    rows = table[table["chance"].notna()]
    doubtful = rows[rows["low"] <= rows["untrained"]]
    said = ", ".join(f"{row.metric} ({row.trained:.2%}; {row.untrained:.2%})" for row in doubtful.itertuples())
    return [f"not above the untrained network by more than the interval: {said}"] if said else []


def prefix(layer: str, elsewhere: str | None = None) -> str:
    """What stands before a metric's name, after `eval/`: another data set's name, another layer than h."""
    parts = ([elsewhere] if elsewhere else []) + ([layer] if layer != "h" else [])
    return "".join(f"{part}/" for part in parts)


def predictions_file(metric: str) -> str:
    """The artifact that holds the predictions that a metric (with its prefix) comes from."""
    return f"{metric.replace('/', '-')}-predictions.npz"


def predictions(store: Store, run_id: str, metric: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predicted and true classes of the test images, of one run's metric. Raises UserError where they are not there."""
    path = store.artifact(run_id, predictions_file(metric))
    try:
        with np.load(path) as arrays:
            return arrays["predicted"], arrays["labels"]
    except Exception:  # whatever a zip file and numpy's header make of bytes that are not theirs
        raise UserError(f"{path} is damaged: judge run {run_id[:8]} again (simclr eval)") from None


def _record(
    found: Found,
    subject: Subject,
    store: Store,
    table: pd.DataFrame,
    outcomes: dict[str, Outcome],
    transfer: str | None,
) -> str:
    """Log the figures, each with its protocol, and the predictions that they come from; the id of the run."""
    if found.run_id is not None:
        tracker = Tracker(store, found.run_id)
    else:
        config = found.config
        tags = {"kind": "eval", "config_key": config.key(), "data_digest": found.digest, "seed": str(config.seed)}
        tracker = store.start(f"{config.name}-s{config.seed}-eval", tags, config.flat())
    elsewhere = f"folder-{subject.data.digest[:8]}" if subject.data.name == "folder" else subject.data.name
    before = prefix(subject.protocol.layer, elsewhere if transfer else None)
    metrics, tags = {}, {"protocol": str(subject.protocol.version)}
    for row in table.to_dict("records"):
        name = f"{before}{row['metric']}"
        metrics[f"eval/{name}"] = row["trained"]
        metrics |= {f"{BESIDE}/{key}/{name}": row[key] for key in ("low", "high", "untrained", "pixels", "chance")}
        tags[f"{PROTOCOL_TAG}{name}"] = row["protocol"]
    label = before.replace("/", "-")
    description = json.dumps(describe(subject.protocol, subject.data), indent=2)
    for name, outcome in outcomes.items():
        tracker.artifact(f"{label}{name}-protocol.json", lambda path: path.write_text(description))
        for metric, predicted in outcome.predictions.items():
            _predictions(tracker, subject, f"{before}{metric}", predicted.cpu().numpy())
    known = store.client.get_run(tracker.run_id).data.metrics  # what is nan now must not stay as it was
    tracker.log({key: value for key, value in metrics.items() if not np.isnan(value) or key in known})
    tracker.flush()
    tracker.tag(**tags)  # last: what has a tag is there
    if found.run_id is None:
        tracker.finish("FINISHED")
    return tracker.run_id


def _predictions(tracker: Tracker, subject: Subject, metric: str, predicted: NDArray[np.int64]) -> None:
    """The predicted classes of the test images, accuracy by class, and the confusion matrix."""
    classes, truth = subject.data.classes, subject.labels("test").cpu().numpy()
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    by_class = pd.DataFrame(
        {"class": classes, "images": matrix.sum(1), "accuracy": matrix.diagonal() / np.maximum(1, matrix.sum(1))}
    )

    def arrays(path: Path) -> None:
        np.savez_compressed(path, predicted=predicted, labels=truth)

    tracker.artifact(predictions_file(metric), arrays)
    name = metric.replace("/", "-")
    tracker.artifact(f"{name}-classes.csv", lambda path: by_class.to_csv(path, index=False))
    tracker.artifact(f"{name}-confusion.png", lambda path: plots.confusion_matrix(matrix, list(classes), path))
