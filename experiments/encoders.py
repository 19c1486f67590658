"""Find an encoder (a run's, or one in a file) and put it on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from simclr import device as devices
from simclr.checkpoint import fill, load_weights
from simclr.config import Config, DataConfig
from simclr.data import DATASETS, Progress, open_dataset, silent, stored_side
from simclr.errors import UserError, unknown
from simclr.model import build_model
from simclr.protocol import Protocol, Subject

from .tracking import Store

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
    transfer: str | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> Subject:
    """The encoder on its own data set, or, with `transfer`, on another one: a data set's name, or a folder.

    `data_dir` says where the images (of the one or the other) lie now.
    """
    settings = found.config.data
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
    data = open_dataset(settings, store.folder, progress)
    if transfer is None and found.digest not in (data.digest, UNKNOWN_DATA):
        raise UserError(
            f"the images of '{data.name}' are not those that this encoder was trained on (digest {data.digest[:8]}, "
            f"then {found.digest[:8]}): it may have seen some of the test images; bring the folder back to what it "
            f"was, or name it with --transfer"
        )
    model = build_model(found.config, data, devices.resolve(device or found.config.device))
    fill(model, found.weights)
    return Subject(model, found.config, data, protocol, progress)
