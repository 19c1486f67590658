"""Import encoders from other programs as runs, and export the encoders of runs."""

from __future__ import annotations

from pathlib import Path

import torch

from analysis.tables import is_accuracy
from experiments.runs.encoders import UNKNOWN_DATA, FoundEncoder
from experiments.runs.evaluate import labels_of, references
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import start_run
from simclr.build import build_model
from simclr.config import make, to_toml
from simclr.data.dataset import DataConfig, open_dataset, own_name, stored_side, with_range
from simclr.errors import UserError
from simclr.evaluate.protocol import Protocol
from simclr.evaluate.subject import Subject, check_collapse
from simclr.progress import SILENT, Observer
from simclr.weights.checkpoint import fill, is_own, save_weights
from simclr.weights.export import Parity, export_encoder
from simclr.weights.foreign import Imported, import_encoder
from simclr.weights.start import warn_of_stems


def import_run(
    path: Path,
    store: Store,
    *,
    data: DataConfig,
    name: str | None,
    layout: str,
    backbone: str | None,
    stem: str | None,
    prefix: str | None,
    partial: bool,
    observer: Observer = SILENT,
) -> tuple[Record, Imported]:
    """A run that holds the encoder of another program's file, to be evaluated on `data`; and what was read."""
    if is_own(path):
        raise UserError(f"{path} was written by this suite, so it needs no import: use it as in `simclr eval {path}`")
    imported = import_encoder(path, layout, backbone=backbone, stem=stem, prefix=prefix, partial=partial)
    if imported.side and stored_side(data) != imported.side:
        data = data.model_copy(update={"side": imported.side})
    config = make({"name": name or path.stem, "data": data, "model": imported.model})
    images = open_dataset(data, store.folder, observer)
    config = config.model_copy(update={"data": with_range(data, images)})
    model = build_model(config, images, torch.device("cpu"))
    fill(model.encoder, imported.weights)
    check_collapse(Subject(model, config, images, Protocol()))
    tags = {"data_digest": images.identity, "source": path.name}
    tracker = start_run(store, config.name, "import", config.flat(), tags)
    metadata = {"config": to_toml(config), "digest": UNKNOWN_DATA}
    tracker.artifact("model.safetensors", lambda file: save_weights(file, model, metadata))
    tracker.finish("FINISHED")
    warn_of_stems(imported, observer, "import it again with --stem")
    return tracker.record(), imported


def export_run(found: FoundEncoder, store: Store, path: Path, form: str) -> Parity:
    """Export an encoder with a card that states its data, its accuracies with their protocols, and its config."""
    card = {"data": own_name(found.config.data) or found.config.data.dataset, "digest": found.digest}
    if found.digest == UNKNOWN_DATA:
        card = {
            "data": "unknown: the encoder was imported, and of the settings below only [model] and data.normalize "
            "describe it"
        }
    name = ""
    if found.run_id is not None:
        record = store.get(found.run_id)
        name = record.name
        known = references(record)
        card["run"] = f"{record.name} ({record.id})"
        if (labels := labels_of(record)) is not None:
            card["labels"] = labels
        for metric, protocol in record.protocols.items():
            if is_accuracy(metric):
                interval = ""
                if {"low", "high"} <= (ends := known.get(metric, {})).keys():
                    interval = f" (95 % interval {ends['low']:.2%} to {ends['high']:.2%})"
                card[f"eval/{metric}"] = f"{record.metrics[f'eval/{metric}']:.2%}{interval}, protocol {protocol}"
    return export_encoder(found.weights, found.config, path, form, card, name)
