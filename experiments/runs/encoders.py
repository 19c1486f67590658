"""Find a trained encoder (of a run, or in a file), and load it together with a data set to evaluate it on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiments.tracking.store import Record, Store
from simclr import device as devices
from simclr.build import build_model
from simclr.config import Config, make
from simclr.data.dataset import DataConfig, Dataset, digest_of, open_dataset, short_identity, stored_side
from simclr.data.known import BUILT_IN
from simclr.data.sources import DATASETS
from simclr.errors import UserError, printable, unknown
from simclr.evaluate.protocol import Protocol, judged_on
from simclr.evaluate.subject import Subject
from simclr.progress import SILENT, Observer
from simclr.settings import merge, nested, parse_setting
from simclr.weights.checkpoint import fill, load_weights

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")  # suffixes of files with weights
UNKNOWN_DATA = ""  # the digest of an imported encoder's training data, which nobody knows


class FoundEncoder(NamedTuple):
    """Trained weights, and where they come from."""

    config: Config  # that trained them
    weights: dict[str, Tensor]
    digest: str  # identity of the data that they were trained on
    path: Path
    run_id: str | None  # None for a file that belongs to no run

    def name(self) -> str:
        """What to call it in a picture: the name and the id of its run, or the name of its file."""
        if self.run_id is None:
            return printable(self.path.name)
        return f"{self.config.run_name()} ({self.run_id[:8]})"


def find_encoder(name: str | None, store: Store) -> FoundEncoder:
    """The encoder of a run (a name, or the start of an id; None: the newest of no study), or of a file of weights."""
    if name is not None and os.path.isfile(name):  # noqa: PTH113 (Path raises for a name that is too long for a file)
        return _encoder_in(Path(name))
    is_path = name is not None and (Path(name).suffix in WEIGHTS or len(Path(name).parts) > 1)
    if name is not None and is_path and not any(record.is_called(name) for record in store.records()):
        raise UserError(f"there is no file {name}, and no run has that name: `simclr runs` lists all runs")
    return encoder_of(store.find(name))


def _encoder_in(path: Path) -> FoundEncoder:
    """The encoder in a file, whose config anybody may have written: of it, no name and no path is used."""
    config, weights, digest = load_weights(path)
    anywhere = config.data.model_copy(update={"dir": None})
    name = printable(path.stem)
    own = {"name": name, "data": anywhere, "init": None}
    return FoundEncoder(config.model_copy(update=own), weights, digest, path, None)


class WeightsMissing(UserError):  # noqa: N818 (it describes the weights)
    """A run finished, and its weights are gone or damaged. `fact` says so, and the message also what to do."""

    def __init__(self, fact: str, remedy: str) -> None:
        super().__init__(f"{fact}: {remedy}")
        self.fact = fact


def weights_of(record: Record) -> Path:
    """The file of a finished run's weights. Raises WeightsMissing if there is none, or if it was cut off."""
    try:
        path = record.artifact("model.safetensors")
        with safe_open(path, "pt"):  # which notices a file that was cut off
            return path
    except (UserError, SafetensorError, OSError) as error:
        what = "were deleted" if isinstance(error, UserError) else "are damaged"
        remedy = "to train it again, add --again to its command"
        if record.kind == "import":
            remedy = "import it again"
        elif record.parent is not None:  # ablate and search have no --again
            remedy = "to train it again, use `simclr pretrain --again` with its settings, which `simclr ui` shows"
        fact = f"run {record.name} ({record.short_id}) has finished, but its weights {what}"
        raise WeightsMissing(fact, remedy) from None


def encoder_of(record: Record) -> FoundEncoder:
    """The encoder of a finished run. Raises WeightsMissing if its weights are gone."""
    path = weights_of(record)
    return FoundEncoder(*load_weights(path), path, record.id)


def load_subject(
    found: FoundEncoder, data: Dataset, protocol: Protocol, device: torch.device, observer: Observer = SILENT
) -> Subject:
    """The encoder on a device, with the data set that it is evaluated on, divided as the protocol says."""
    model = build_model(found.config, data, device)
    fill(model, found.weights)
    return Subject(model, found.config, judged_on(data, protocol.on), protocol, observer)


def open_subject(
    found: FoundEncoder,
    store: Store,
    protocol: Protocol,
    *,
    data_dir: Path | None = None,
    labels: Path | None = None,
    on_bad_image: str | float | None = None,
    changes: Sequence[str] = (),
    transfer: str | None = None,
    seen: bool = False,
    device: str | None = None,
    observer: Observer = SILENT,
) -> Subject:
    """The encoder with its own data set, or, with `transfer`, with another one (a data set's name, or a folder).

    `data_dir` and `labels` are where the images and the table of their labels are now, `on_bad_image` is what to do
    with files that can't be read ("error", "skip", or the share that may be skipped), and `changes` are settings of
    the images of `transfer`, such as data.label_column=species. Raises UserError if the images differ from those
    that the encoder was trained on and have labels (without labels, nothing is measured on test images), and if those
    of `transfer` are the ones that it was trained on, unless it may have `seen` them, since nothing is measured on
    them.
    """
    if changes and transfer is None:
        raise UserError(f"{changes[0]} is for other images than the run's own, which keep their settings: leave it out")
    if other := [text for text in changes if not text.startswith("data.")]:
        raise UserError(f"{other[0]} is not a setting of images: expected one such as data.label_column=species")
    settings = _transferred(found.config.data, transfer)
    if data_dir is not None and transfer is not None and settings.dataset == "folder":
        raise UserError(f"{transfer} already says which folder to use: leave out --data-dir")
    if data_dir is not None and settings.dataset in BUILT_IN:
        raise UserError(
            f"'{settings.dataset}' is built in and reads no folder: leave out --data-dir. To evaluate on other images, "
            f"use `simclr eval --transfer FOLDER`"
        )
    bad = on_bad_image or found.config.data.on_bad_image
    table = {"data": settings.model_dump(mode="json") | {"on_bad_image": bad}}
    places = {"data.dir": data_dir, "data.labels": labels}
    given = {name: str(path) for name, path in places.items() if path is not None} | dict(map(parse_setting, changes))
    settings = make(reduce(merge, (nested(name, value) for name, value in given.items()), table)).data
    if transfer is None and settings.dataset == "folder" and settings.dir is not None and not _is_there(settings.dir):
        raise UserError(f"the images of this run were in {settings.dir}: if you moved them, add --data-dir NEW")
    data = open_dataset(settings, store.folder, observer)
    if transfer is None and found.digest not in (data.identity, UNKNOWN_DATA):
        if data.classes:
            raise _other_data(data, found.digest)
        observer.note(
            f"the images of '{data.name}' have changed since this encoder was trained on them: what follows is about "
            f"those of today"
        )
    own = settings.dataset == found.config.data.dataset and settings.dir == found.config.data.dir
    if transfer is not None and not seen and (own or data.digest == digest_of(found.digest)):
        raise UserError(
            f"'{transfer}' is the data set that this encoder was trained on, so it may have seen some of the images: "
            f"leave out --transfer, or name another data set"
        )
    return load_subject(found, data, protocol, devices.resolve(device or found.config.device), observer)


def _other_data(data: Dataset, trained_on: str) -> UserError:
    """Why an encoder can't be evaluated on images that differ, or that are divided otherwise, since it was trained."""
    digests = f"(digest {short_identity(data.identity)}, was {short_identity(trained_on)})"
    if data.digest == digest_of(trained_on):
        return UserError(
            f"'{data.name}' has the images that this encoder was trained on, but not the same ones are held out "
            f"{digests}, so it may have seen some of the test images: restore the splits, groups and copies that there "
            f"were, or train again (earlier versions held out other images)"
        )
    return UserError(
        f"the images of '{data.name}' differ from those that this encoder was trained on {digests}, so it may have "
        f"seen some of the test images: restore the folder to what it was"
    )


def _is_there(place: Path) -> bool:
    """Whether images are still at a place: a path, a name on a hub, or shards like a-{000..009}.tar."""
    return str(place).startswith("hf:") or "{" in str(place) or place.exists()


def _transferred(own: DataConfig, transfer: str | None) -> DataConfig:
    """The data section of the images to evaluate on, which are decoded as those that the encoder was trained on."""
    if transfer is None:
        return own
    if transfer in DATASETS:
        other = DataConfig(dataset=transfer)
    elif transfer.startswith("hf:"):
        other = DataConfig(dataset="folder", dir=Path(transfer))
    elif os.path.exists(transfer) or "{" in transfer:  # noqa: PTH110 (as in find_encoder)
        folder = Path(transfer).resolve()
        if (own.dataset, own.dir) == ("folder", folder):  # with its table of labels and all other settings
            return own
        other = DataConfig(dataset="folder", dir=folder)
    else:
        raise unknown("data set or folder", transfer, DATASETS)
    same = {"side": stored_side(own)} | {name: getattr(own, name) for name in ("background", "range", "check")}
    return other.model_copy(update=same)
