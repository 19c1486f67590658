"""Find an encoder (a run's, or one in a file) and put it on a data set."""

from __future__ import annotations

from math import isnan, nan
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.tables import is_accuracy
from simclr import device as devices
from simclr.checkpoint import fill, load_weights, save_weights
from simclr.config import Config, DataConfig, make, to_toml
from simclr.data import DATASETS, Progress, open_dataset, silent, stored_side
from simclr.errors import UserError, unknown
from simclr.formats import Imported, Parity, export_encoder, import_encoder
from simclr.model import build_model
from simclr.protocol import Protocol, Subject

from .tracking import BESIDE, PROTOCOL_TAG, Store

UNKNOWN_DATA = ""  # the digest of an imported encoder's data: nobody knows what it has seen


class Found(NamedTuple):
    """Weights, the config that they were trained by, a digest of the images they saw; the run, if they are a run's."""

    config: Config
    weights: dict[str, Tensor]
    digest: str
    path: Path
    run_id: str | None


def find(name: str | None, store: Store) -> Found:
    """The encoder of a run (its name, or how its id starts; None: the newest), or of a file of this suite's weights."""
    if name is not None and Path(name).is_file():
        return Found(*load_weights(Path(name)), Path(name), None)
    run_id = store.find(name).info.run_id
    path = store.artifact(run_id, "model.safetensors")
    return Found(*load_weights(path), path, run_id)


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
    progress: Progress = silent,
) -> tuple[str, Imported]:
    """A run that holds the encoder in another program's file, to be judged on a data set; its id, and what was read."""
    imported = import_encoder(path, layout, backbone=backbone, stem=stem, partial=partial)
    if imported.side and stored_side(data) != imported.side:
        data = data.model_copy(update={"side": imported.side})
    config = make({"name": name or path.stem, "data": data, "model": imported.model})
    images = open_dataset(data, store.folder, progress)
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


def place(
    found: Found,
    store: Store,
    protocol: Protocol,
    *,
    data_dir: Path | None = None,
    on_bad_image: str | None = None,
    transfer: str | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> Subject:
    """The encoder on its own data set, or, with `transfer`, on another one: a data set's name, or a folder.

    `data_dir` says where the images (of the one or the other) lie now, `on_bad_image` what becomes of broken ones.
    """
    settings = found.config.data
    on_bad_image = on_bad_image or settings.on_bad_image
    if transfer is not None:
        side = stored_side(settings)
        if transfer in DATASETS:
            settings = DataConfig(dataset=transfer, side=side)
        elif Path(transfer).is_dir():
            settings = DataConfig(dataset="folder", dir=Path(transfer).resolve(), side=side)
        else:
            raise unknown("data set (and no folder of that name)", transfer, DATASETS)
    if data_dir is not None:
        settings = settings.model_copy(update={"dir": data_dir.expanduser().resolve()})
    settings = make({"data": settings.model_dump(mode="json") | {"on_bad_image": on_bad_image}}).data
    data = open_dataset(settings, store.folder, progress)
    if transfer is None and found.digest not in (data.digest, UNKNOWN_DATA):
        raise UserError(
            f"the images of '{data.name}' are not those that this encoder was trained on (digest {data.digest[:8]}, "
            f"then {found.digest[:8]}): it may have seen some of the test images; bring the folder back to what it was"
        )
    own = settings.dataset == found.config.data.dataset and settings.dir == found.config.data.dir
    if transfer is not None and (own or data.digest == found.digest):
        raise UserError(
            f"'{transfer}' is this encoder's own data set, so it may have seen some of its test images: judge it there "
            f"without --transfer, or name other images"
        )
    model = build_model(found.config, data, devices.resolve(device or found.config.device))
    fill(model, found.weights)
    return Subject(model, found.config, data, protocol, progress)
