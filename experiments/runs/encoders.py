"""Find an encoder (a run's, or one in a file) and put it on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from experiments.tracking import Store
from simclr import device as devices
from simclr.build import build_model
from simclr.config import Config, make
from simclr.data.dataset import DataConfig, open_dataset, stored_side
from simclr.data.sources import DATASETS
from simclr.errors import UserError, unknown
from simclr.evaluate.protocol import Protocol
from simclr.evaluate.subject import Subject
from simclr.progress import SILENT, Observer
from simclr.weights.checkpoint import fill, load_weights

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


def place(
    found: Found,
    store: Store,
    protocol: Protocol,
    *,
    data_dir: Path | None = None,
    on_bad_image: str | None = None,
    transfer: str | None = None,
    device: str | None = None,
    observer: Observer = SILENT,
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
    data = open_dataset(settings, store.folder, observer)
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
    return Subject(model, found.config, data, protocol, observer)
