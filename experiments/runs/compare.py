"""Runs beside each other: settings that differ, figures, and whether two of them differ beyond chance."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import plots
from analysis.tables import comparison, mcnemar_table
from experiments.runs.evaluate import predictions
from experiments.tracking import BESIDE, ENCODERS, PROTOCOL_TAG, Run, Store
from simclr.errors import UserError, unknown
from simclr.methods.ntxent import chance_loss


class Comparison(NamedTuple):
    """What `simclr compare` prints: `table` has a column a run, and a row a setting that differs or a figure.

    `tests` is empty where no two runs have predictions of the same images.
    """

    table: pd.DataFrame
    tests: pd.DataFrame
    notes: list[str]


def compare(names: Sequence[str], store: Store) -> Comparison:
    """The runs of these names (or of how their ids start): all their evaluations, and McNemar's test of each pair.

    Two runs are tested on a figure only where both found it under one protocol, on the same images.
    """
    runs: list[dict[str, Any]] = []
    predicted: dict[tuple[str, str], dict[str, NDArray[np.int64]]] = defaultdict(dict)
    truth: dict[tuple[str, str], NDArray[np.int64]] = {}
    found = (store.find(name, (*ENCODERS, "eval")) for name in names)
    chosen = {run.info.run_id: run for run in found}.values()
    shared = Counter(run.info.run_name for run in chosen)
    for run in chosen:
        metrics, run_id = run.data.metrics, run.info.run_id
        protocols = {
            tag.removeprefix(PROTOCOL_TAG): identity
            for tag, identity in run.data.tags.items()
            if tag.startswith(PROTOCOL_TAG)
        }
        if not protocols:
            raise UserError(f"run {run_id[:8]} has not been evaluated: simclr eval {run_id[:8]} --knn --linear")
        name = str(run.info.run_name)
        label = name if shared[name] == 1 else f"{name} ({run_id[:8]})"
        runs.append(
            {
                "name": label,
                "id": run_id,
                "config": {key: value for key, value in run.data.params.items() if key != "name"},
                "metrics": {name: metrics[f"eval/{name}"] for name in protocols},
                "intervals": {
                    name: (metrics[f"{BESIDE}/low/{name}"], metrics[f"{BESIDE}/high/{name}"])
                    for name in protocols
                    if not isnan(metrics.get(f"{BESIDE}/low/{name}", nan))
                },
                "protocols": protocols,
            }
        )
        for name, identity in protocols.items():
            if name.endswith("_top1") and "contrastive" not in name:  # others have no predictions, or those of top-1
                predicted[name, identity][label], truth[name, identity] = predictions(store, run_id, name)
    tests = [
        mcnemar_table({label: {name: array} for label, array in by_run.items()}, truth[name, identity])
        for (name, identity), by_run in predicted.items()
        if len(by_run) > 1
    ]
    notes = ["accuracies in percent, in brackets the 95 % bootstrap interval over the test images"]
    for name, identity in sorted({pair for run in runs for pair in run["protocols"].items()}):
        images = f", {len(truth[name, identity])} test images" if (name, identity) in truth else ""
        notes.append(f"{name}: protocol {identity}{images}")
    if tests:
        notes.append(
            "McNemar: exact, two-sided, on the images that one run alone got right; no correction for many tests; of "
            "figures over several seeds (finetune), the first seed's predictions"
        )
    table = comparison(runs).set_index("run").T.rename_axis("run").reset_index()
    return Comparison(table, pd.concat(tests) if tests else pd.DataFrame(), notes)


CURVES = {"train/loss": "NT-Xent loss", "val/knn_top1": "kNN accuracy on validation"}


SHORT = {  # what `simclr plot` calls them
    "loss": "train/loss",
    "knn": "val/knn_top1",
    "top1": "train/contrastive_top1",
    "top5": "train/contrastive_top5",
    "rate": "train/learning_rate",
}


def _chance(metric: str, run: Run) -> set[float]:
    """What guessing gives, if that is known."""
    batch = int(run.data.params["train.batch_size"])
    known = {
        "train/loss": chance_loss(batch, include_self=run.data.params.get("loss.include_self") == "True"),
        "train/contrastive_top1": 1 / (2 * batch - 1),
        "train/contrastive_top5": min(1.0, 5 / (2 * batch - 1)),
        "val/knn_top1": float(run.data.tags.get("val_chance", nan)),
    }
    return set() if isnan(level := known.get(metric, nan)) else {level}


def plot(metric: str, names: Sequence[str], store: Store, out: Path, smooth: int) -> list[Path]:
    """Draw curves of runs over each other, each with its chance level, and write their points; the files.

    Raises UserError for a metric that a run does not have.
    """
    key, histories, chances = SHORT.get(metric, metric), {}, set()
    for run in map(store.find, names):
        curve = store.history(run.info.run_id, key)
        if curve.empty:
            has = [short for short, name in SHORT.items() if name in run.data.metrics]
            raise unknown(f"metric of run {run.info.run_id[:8]}", metric, [*has, *run.data.metrics])
        histories[f"{run.info.run_name} ({run.info.run_id[:8]})"] = [curve]
        chances |= _chance(key, run)
    files = plots.files_of(out, ".png", ".svg", ".csv")
    for path in files[:2]:
        plots.curves(histories, path, CURVES.get(key, key), sorted(chances), smooth)
    plots.curve_points(histories).to_csv(files[2], index=False)
    return files
