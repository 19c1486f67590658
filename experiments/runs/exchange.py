"""Import encoders from other programs, and export them."""

from __future__ import annotations

from math import isnan, nan
from pathlib import Path

import torch

from analysis.tables import is_accuracy
from experiments.runs.encoders import UNKNOWN_DATA, Found
from experiments.tracking import BESIDE, PROTOCOL_TAG, Store
from simclr.build import build_model
from simclr.config import make, to_toml
from simclr.data.dataset import DataConfig, open_dataset, stored_side
from simclr.progress import SILENT, Observer
from simclr.weights.checkpoint import fill, save_weights
from simclr.weights.export import Parity, export_encoder
from simclr.weights.foreign import Imported, import_encoder


def bring_in(
    path: Path,
    store: Store,
    *,
    data: DataConfig,
    name: str | None,
    layout: str,
    backbone: str | None,
    stem: str | None,
    partial: bool,
    observer: Observer = SILENT,
) -> tuple[str, Imported]:
    """A run that holds the encoder in another program's file, to be judged on a data set; its id, and what was read."""
    imported = import_encoder(path, layout, backbone=backbone, stem=stem, partial=partial)
    if imported.side and stored_side(data) != imported.side:
        data = data.model_copy(update={"side": imported.side})
    config = make({"name": name or path.stem, "data": data, "model": imported.model})
    images = open_dataset(data, store.folder, observer)
    model = build_model(config, images, torch.device("cpu"))
    fill(model.encoder, imported.weights)
    tags = {"kind": "import", "data_digest": images.digest, "source": path.name}
    tracker = store.start(config.name, tags, config.flat())
    metadata = {"config": to_toml(config), "digest": UNKNOWN_DATA}
    tracker.artifact("model.safetensors", lambda file: save_weights(file, model, metadata))
    tracker.finish("FINISHED")
    return tracker.run_id, imported


def hand_out(found: Found, store: Store, path: Path, form: str) -> Parity:
    """Export an encoder with a card of what is known of it: data, accuracies with their protocols, config."""
    config = found.config
    card = {"data": config.data.dataset, "digest": found.digest}
    if found.digest == UNKNOWN_DATA:
        card = {
            "data": "not known (an imported encoder; of what is below, only [model] and data.normalize are its own)"
        }
    if found.run_id is not None:
        run = store.client.get_run(found.run_id)
        card["run"] = f"{run.info.run_name} ({found.run_id})"
        for tag, protocol in run.data.tags.items():
            metric = tag.removeprefix(PROTOCOL_TAG)
            if tag.startswith(PROTOCOL_TAG) and is_accuracy(metric):
                low, high = (run.data.metrics.get(f"{BESIDE}/{end}/{metric}", nan) for end in ("low", "high"))
                interval = "" if isnan(low) else f" (95 % interval {low:.2%} to {high:.2%})"
                card[f"eval/{metric}"] = f"{run.data.metrics[f'eval/{metric}']:.2%}{interval}, protocol {protocol}"
    return export_encoder(found.weights, config, path, form, card)
