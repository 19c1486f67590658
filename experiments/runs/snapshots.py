"""Encoders that a run kept while it trained: whether the disk can hold them, and their accuracy against the epoch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from analysis import plots
from analysis.tables import in_percent, is_on_validation, metric_label, write_csv
from experiments.runs.evaluate import figures_of, place_of, use_tags
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from simclr import device as devices
from simclr.build import build_model
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate.evaluations import check
from simclr.evaluate.subject import Subject
from simclr.train.memory import format_bytes
from simclr.weights.checkpoint import fill, load_weights, snapshots

CURVE = "snapshots/"  # how the names of metrics of snapshots start; their steps are those of training
FILE = "snapshots"  # of the figure and the table that are kept with the run, with their suffixes


def snapshot_bytes(config: Config, model: nn.Module) -> int:
    """The space that the snapshots of a run take on the disk. `model` is a network of the config."""
    return config.train.snapshots() * sum(int(tensor.nbytes) for tensor in model.state_dict().values())


def check_space(config: Config, data: Dataset, folder: Path) -> None:
    """Raise UserError if the snapshots of a run don't fit on the disk of a folder."""
    if not config.train.snapshots():
        return
    needed = snapshot_bytes(config, build_model(config, data, torch.device("cpu")))
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"train.keep_every = {config.train.keep_every} keeps {config.train.snapshots()} snapshots of the encoder, "
            f"{format_bytes(needed)} in all, but {folder} has {format_bytes(free)} free: raise "
            f"train.keep_every, or free some space"
        )


def evaluate_snapshots(
    record: Record, subject: Subject, store: Store, names: Sequence[str], transfer: str | None = None
) -> pd.DataFrame:
    """Evaluate the snapshots of a run, and its encoder at the end, each like the `subject`, which holds that encoder.

    Returns a row for each epoch and metric: epoch, step, metric, value, low, high, chance, protocol. Epoch 0 is
    before training. They are logged as curves of the run, with a figure and a table. Raises UserError if the run kept
    no snapshots.
    """
    found, config = snapshots(record.folder), subject.config
    if not found:
        raise UserError(
            f"run {record.name} ({record.short_id}) kept no snapshots: to keep some, train it with --set "
            f"train.keep_every={max(1, config.train.epochs // 10)} --again"
        )
    check(subject, list(names))
    per_epoch = int(record.tags["steps_per_epoch"])
    rows: list[dict[str, Any]] = []
    loads: dict[int, Callable[[], Subject]] = {epoch: partial(_load, path, subject) for epoch, path in found.items()}
    loads[last := config.train.epochs] = lambda: subject
    with devices.memory_errors("evaluate with --device cpu", devices.MORE_MEMORY):
        for done, (epoch, load) in enumerate(loads.items(), 1):
            if store.writable:  # before, so that an evaluation that was stopped counts
                tags = use_tags(subject, names, "" if epoch == last else f"/{epoch}")
                Tracker(store, record.id).tag(tags)
            for _, _, figures in figures_of(load(), names, store):
                if done == 1:
                    before = {"epoch": 0, "step": 0, "low": nan, "high": nan}
                    rows += [row | before | {"value": _before_training(row, config)} for row in figures]
                rows += [row | {"epoch": epoch, "step": epoch * per_epoch, "value": row["trained"]} for row in figures]
            subject.observer.progress("snapshots", done, len(loads))
    columns = ["epoch", "step", "metric", "value", "low", "high", "chance", "protocol"]
    table = pd.DataFrame(rows).reindex(columns=columns).sort_values("epoch", kind="stable", ignore_index=True)
    if store.writable:
        _log(table, record, store, CURVE + place_of(subject, transfer))
    return table


def _before_training(row: Mapping[str, Any], config: Config) -> float:
    """The figure before training: untrained, or of the weights that it started from, nan if they are gone."""
    return float(row["untrained"] if config.init is None else row.get("start", nan))


def _load(path: Path, subject: Subject) -> Subject:
    """The same subject with the encoder of a snapshot."""
    config, weights, _ = load_weights(path)
    model = build_model(config, subject.data, subject.device)
    fill(model, weights)
    return replace(subject, model=model)


def _log(table: pd.DataFrame, record: Record, store: Store, start: str) -> None:
    """Log the figures as curves whose names begin with `start`, and keep the table and a figure with the run."""
    tracker = Tracker(store, record.id)
    for row in table[(table["epoch"] > 0) & table["value"].notna()].to_dict("records"):
        tracker.log({start + row["metric"]: row["value"]}, row["step"])
    tracker.artifact(f"{FILE}.csv", lambda path: write_csv(table, path))
    shares = table[table["metric"].map(in_percent) & ~table["metric"].str.endswith("_std")]
    if len(shares):
        batch = int(record.params["train.batch_size"])
        on = "validation" if is_on_validation(start) else "test images"
        tracker.artifact(f"{FILE}.png", lambda path: draw(shares, path, batch, on))
    tracker.flush()


def draw(table: pd.DataFrame, path: Path, batch: int, on: str) -> None:
    """Draw accuracies on some images against the epoch, from rows of `evaluate_snapshots`."""
    curves = {
        metric_label(str(metric)): [rows.assign(images=rows["step"] * batch)]
        for metric, rows in table.groupby("metric", sort=False)
    }
    chances = {metric_label(metric): chance for metric, chance in zip(table["metric"], table["chance"], strict=True)}
    plots.curves(curves, path, f"accuracy on {on}", chances, percent=True)
