"""Find a trained encoder (of a run, or in a file), and load it together with a data set to evaluate it on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiments.tracking.images import then_and_now
from experiments.tracking.naming import may_be_file
from experiments.tracking.starts import where_now
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker
from simclr import device as devices
from simclr.build import build_model
from simclr.config import Config, make
from simclr.data.check import fingerprints
from simclr.data.dataset import DataConfig, Dataset, digest_of, open_dataset, own_name, short_identity, stored_side
from simclr.data.known import BUILT_IN
from simclr.data.layout import FOLDER_NAMES, ClassesUnclear
from simclr.data.source import is_there
from simclr.data.sources import DATASETS
from simclr.errors import UserError, printable, similar_path, unknown
from simclr.evaluate.protocol import Protocol, evaluated_on
from simclr.evaluate.subject import Subject
from simclr.methods import METHODS
from simclr.progress import SILENT, Observer
from simclr.settings import merge, nested, parse_setting
from simclr.weights.checkpoint import fill, load_weights

# Settings that give labels to images, as the run's own may have got since. All but the first are of a table of labels,
# the last one says how many of its images are for testing.
LABELLING = ("data.unlabelled", "data.image_column", "data.label_column", "data.split_column", "data.val_fraction")
DIVISION = ("val_fraction", "split_seed", "test_from")  # settings of images that the identity of some leaves out
MOVED_TO = "images_moved_to"  # tag of a run: where --data-dir has found its own images since its training
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
    if name is not None and may_be_file(name) and not any(record.is_called(name) for record in store.records()):
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
    """The encoder of a finished run. Raises WeightsMissing if its weights are gone.

    Weights that it started from (`init`) and that moved with the home, and images that were found elsewhere since, are
    named by where they are now.
    """
    path = weights_of(record)
    config, weights, digest = load_weights(path)
    if config.init is not None:
        config = config.model_copy(update={"init": where_now(config.init, record.store.folder)})
    if MOVED_TO in record.tags and config.data.dir is not None and not is_there(config.data.dir):
        moved = config.data.model_copy(update={"dir": Path(record.tags[MOVED_TO])})
        config = config.model_copy(update={"data": moved})
    return FoundEncoder(config, weights, digest, path, record.id)


def load_subject(
    found: FoundEncoder, data: Dataset, protocol: Protocol, device: torch.device, observer: Observer = SILENT
) -> Subject:
    """The encoder on a device, with the data set that it is evaluated on, divided as the protocol says."""
    model = build_model(found.config, data, device)
    fill(model, found.weights)
    return Subject(model, found.config, evaluated_on(data, protocol.on), protocol, observer)


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
    unlabelled: bool = False,
    only_shown: bool = False,
    device: str | None = None,
    observer: Observer = SILENT,
) -> Subject:
    """The encoder with its own data set, or with another one: `transfer` names a data set or a folder.

    `data_dir` and `labels` are where the images and the table of their labels are now, and `on_bad_image` is what to do
    with files that can't be read ("error", "skip", or the share that may be skipped). `changes` are settings of the
    images of `transfer`, such as data.label_column=species; those of LABELLING may also change the run's own images.
    With `unlabelled`, the folders of `transfer` are not classes. With `only_shown`, nothing is measured on the images:
    their folders need not be classes, and are not if the encoder was trained without labels.

    Raises UserError if the table gives no labels, or if accuracies would be measured on images that the encoder may
    have seen: its own, if they have labels and have changed, or those of `transfer`, if it was trained on them.
    """
    _check_changes(changes, transfer, labels)
    settings = _transferred(found.config.data, transfer, only_shown=only_shown)
    if data_dir is not None and transfer is not None and settings.dataset == "folder":
        raise UserError(f"{transfer} already says which folder to use: leave out --data-dir")
    if data_dir is not None and settings.dataset in BUILT_IN:
        raise UserError(
            f"'{settings.dataset}' is built in and reads no folder: leave out --data-dir. To evaluate on other images, "
            f"use `simclr eval --transfer FOLDER`"
        )
    bad = on_bad_image or found.config.data.on_bad_image
    table = {"data": settings.model_dump(mode="json") | {"on_bad_image": bad}}
    given: dict[str, object] = {} if data_dir is None else {"data.dir": str(data_dir)}
    if labels is not None:
        given |= {"data.labels": str(labels), "data.unlabelled": False}
    if unlabelled:
        given["data.unlabelled"] = True
    given |= dict(map(parse_setting, changes))
    settings = make(reduce(merge, (nested(name, value) for name, value in given.items()), table)).data
    if transfer is None and settings.dataset == "folder" and settings.dir is not None and not is_there(settings.dir):
        raise UserError(f"the images of this run were in {settings.dir}: if you moved them, add --data-dir NEW once")
    if transfer is None and settings.unlabelled and not found.config.data.unlabelled:
        raise UserError("--unlabelled is for images other than the run's own, which keep their labels: leave it out")
    data = _open_images(settings, store, observer, transfer=transfer, only_shown=only_shown)
    groups_only = found.config.data.labels is not None and data.identity == found.digest  # so was the run's own table
    if labels is not None and not (data.classes or settings.unlabelled or groups_only):
        raise UserError(
            f"{labels} gives no image of {data.title} a label: name the column of the labels with --set "
            f"data.label_column=NAME, or add one called label"
        )
    _check_seen(found, data, settings, store, transfer=transfer, only_shown=only_shown, observer=observer)
    if data_dir is not None and transfer is None and data.identity == found.digest:
        _remember(found, data_dir, store, observer)
    return load_subject(found, data, protocol, devices.resolve(device or found.config.device), observer)


def _remember(found: FoundEncoder, place: Path, store: Store, observer: Observer) -> None:
    """Record where the images of a run are now, unless they are also where they were, for the commands to come."""
    before = found.config.data.dir
    if found.run_id is not None and store.writable and before is not None and not is_there(before):
        Tracker(store, found.run_id).tag({MOVED_TO: place})
        observer.note(f"from now on, the images of {found.name()} are read from {place}")


def _open_images(
    settings: DataConfig, store: Store, observer: Observer, *, transfer: str | None, only_shown: bool
) -> Dataset:
    """The images of a config. If those of `transfer` are `only_shown`, they have no classes unless all folders can be.

    Raises UserError for images of more than 8 bits if the encoder was not trained on such images and so has no range
    of values for them: a range that is measured on them says nothing about how the encoder saw its own images.
    """
    try:
        data = open_dataset(settings, store.folder, observer)
    except ClassesUnclear:
        if transfer is None or not only_shown:
            raise
        observer.note(f"{own_name(settings)} is read without classes, because its folders can't all be classes")
        data = open_dataset(settings.model_copy(update={"unlabelled": True}), store.folder, observer)
    if settings.range == "auto" and data.range is not None:
        given = ", or say which values become 0 and 255, such as --set 'data.range=[0, 65535]'" * (transfer is not None)
        raise UserError(
            f"{data.title} has images of more than 8 bits, but the encoder was trained on images of 8 bits: convert "
            f"them to 8 bits{given}"
        )
    return data


def _check_changes(changes: Sequence[str], transfer: str | None, labels: Path | None) -> None:
    """Raise UserError for settings that are not of images, or that the run's own images can't have."""
    own = LABELLING if labels is not None else LABELLING[:1]
    if transfer is None and (other := [text for text in changes if text.partition("=")[0].strip() not in own]):
        raise UserError(f"{other[0]} is for images other than the run's own, which keep their settings: leave it out")
    if other := [text for text in changes if not text.startswith("data.")]:
        raise UserError(f"{other[0]} is not a setting of images: expected one such as data.label_column=species")


def _check_seen(
    found: FoundEncoder,
    data: Dataset,
    settings: DataConfig,
    store: Store,
    *,
    transfer: str | None,
    only_shown: bool,
    observer: Observer,
) -> None:
    """Raise UserError if accuracies would be measured on images that the encoder may have been trained on.

    If it was trained on them without their labels, there is only a note. With `only_shown`, nothing is measured.
    """
    if transfer is None and found.digest in (data.identity, UNKNOWN_DATA):
        if data.classes and found.digest and settings.val_fraction != found.config.data.val_fraction:
            raise UserError(
                "this encoder was trained on these labelled images with data.val_fraction = "
                f"{found.config.data.val_fraction:g}, so with {settings.val_fraction:g} it may have seen some of the "
                "test images: leave out data.val_fraction"
            )
        return
    if transfer is None and not data.classes:
        counts = [] if found.run_id is None else then_and_now(store.get(found.run_id), data)
        known = "".join(f" ({text})" for text in counts)
        observer.note(
            f"the images of {data.title} have changed since this encoder was trained on them{known}: the results are "
            "for the current ones"
        )
        return
    if transfer is not None and only_shown:
        return
    trained, reads_labels = found.config.data, METHODS[found.config.method].reads_labels
    shared = bool(data.classes) and (trained.unlabelled or reads_labels) and _share_images(data, found, store)
    if transfer is not None and not (shared or _is_trained_on(found, data, settings)):
        return
    label_free = bool(data.classes) and not reads_labels and found.digest != UNKNOWN_DATA
    if label_free and (shared or _equal_without_labels(found, data, settings, store)):
        if only_shown:
            return
        _check_starts(found, data, settings, store)
        observer.note(
            f"the encoder was trained on images of {data.title} without labels, so it may have seen test images, but "
            f"none of their labels: on new images, accuracy may be lower"
        )
    elif transfer is None:
        raise _other_data(data, found.digest)
    else:
        raise UserError(
            f"'{transfer}' has images that this encoder was trained on, so it may have seen some of the images to "
            "evaluate it on: leave out --transfer, or name another data set"
        )


def _check_starts(found: FoundEncoder, data: Dataset, settings: DataConfig, store: Store) -> None:
    """Raise UserError if weights that training started from, directly or not, may have read labels of test images.

    If this is unknown, as for weights of other programs, they are assumed not to have, as for an imported encoder.
    """
    if found.run_id is None:
        raise UserError(
            f"{found.path} doesn't say which weights its training started from, and these may have been trained on "
            "labels of test images: evaluate its run, or use other images with --transfer"
        )
    runs = {record.id: record for record in store.records_with_deleted()}
    init = found.config.init
    while init is not None:
        path = Path(init.rpartition("@")[0])
        run = next((runs[part] for part in path.parts if part in runs), None)
        if run is not None:
            name, method, digest = run.name, run.params.get("method", "simclr"), run.tags.get("data_digest")
            division = {key: run.params.get(f"data.{key}") for key in DIVISION}
            init = run.params.get("init", "None")
            init = None if init == "None" else init
        else:
            try:
                config, _, digest = load_weights(path)
            except UserError:  # another program's, or gone
                return
            name, method, init = printable(path.name), config.method, config.init
            division = {key: str(getattr(config.data, key)) for key in DIVISION}
        reads_labels = method not in METHODS or METHODS[method].reads_labels  # a newer version may know more
        # Earlier versions recorded fewer settings.
        divided_alike = all(value in (None, str(getattr(settings, key))) for key, value in division.items())
        alike = digest == data.identity and divided_alike
        if reads_labels and not alike and _may_share(run, data, settings, store):
            raise UserError(
                f"{found.name()} started from {name}, which was trained on labels, perhaps also on those of these test "
                "images: evaluate it on other images, with --transfer FOLDER"
            )


def _may_share(run: Record | None, data: Dataset, settings: DataConfig, store: Store) -> bool:
    """Whether a run may have been trained on the images to evaluate on. None: weights that are of no run here."""
    if run is None:
        return True
    try:
        own = encoder_of(run)
    except UserError:  # its weights are gone, and its config with them
        return run.params.get("data.dataset") == settings.dataset
    return _is_trained_on(own, data, settings) or _share_images(data, own, store)


def _is_trained_on(found: FoundEncoder, data: Dataset, settings: DataConfig) -> bool:
    """Whether an encoder was trained on a data set, as far as its name, its folder and its digest say so."""
    trained = found.config.data
    return (settings.dataset, settings.dir) == (trained.dataset, trained.dir) or data.digest == digest_of(found.digest)


def _share_images(data: Dataset, found: FoundEncoder, store: Store) -> bool:
    """Whether the encoder was trained on some of the images to evaluate on, as far as its own are still there."""
    if found.config.data.dir is None or not is_there(found.config.data.dir):
        return False
    try:
        own = open_dataset(found.config.data, store.folder)
    except UserError:  # they can't be read any more
        return False
    evaluated = np.concatenate([data.parts["val"], data.parts["test"]])
    trained_on = fingerprints(own.images, own.parts["pretrain"]) if own.side == data.side else set()
    return not trained_on.isdisjoint(fingerprints(data.images, evaluated))


def _equal_without_labels(found: FoundEncoder, data: Dataset, settings: DataConfig, store: Store) -> bool:
    """Whether images that have labels are those that an encoder was trained on when they had none."""
    if settings.dataset != "folder" or (data.origin == FOLDER_NAMES and not found.config.data.unlabelled):
        return False
    before = found.config.data.model_copy(update={"dir": settings.dir, "unlabelled": True, "group": None})
    return open_dataset(before, store.folder).digest == digest_of(found.digest)


def _other_data(data: Dataset, trained_on: str) -> UserError:
    """Why an encoder can't be evaluated on images that differ, or that are divided otherwise, since it was trained."""
    digests = f"(digest {short_identity(data.identity)}, was {short_identity(trained_on)})"
    if data.digest == digest_of(trained_on):
        return UserError(
            f"{data.title} has the images that this encoder was trained on, but other ones are held out now {digests}, "
            "so it may have seen some of the test images: restore the earlier splits, groups and copies, or train "
            "again (earlier versions held out other images)"
        )
    return UserError(
        f"the images of {data.title} or their labels differ from those that this encoder was trained on {digests}, so "
        "it may have seen some of the test images: restore the earlier files"
    )


def _transferred(own: DataConfig, transfer: str | None, *, only_shown: bool) -> DataConfig:
    """The data section of the images to evaluate on, which are decoded as those that the encoder was trained on.

    Folders are classes, unless the images are `only_shown` and the encoder's own folders are not classes.
    """
    if transfer is None:
        return own
    if transfer in DATASETS:
        other = DataConfig(dataset=transfer)
    elif transfer.startswith("hf:"):
        other = DataConfig(dataset="folder", dir=Path(transfer))
    elif os.path.exists(transfer) or "{" in transfer:  # noqa: PTH110 (as in find_encoder)
        folder, unlabelled = Path(transfer).resolve(), own.unlabelled and only_shown
        if (own.dataset, own.dir) == ("folder", folder):  # with its table of labels and all other settings
            return own.model_copy(update={"unlabelled": unlabelled})
        other = DataConfig(dataset="folder", dir=folder, unlabelled=unlabelled)
    else:
        near = similar_path(Path(transfer))
        raise unknown("data set or folder", transfer, [*DATASETS, *([near] if near else [])])
    same = {"side": stored_side(own)} | {name: getattr(own, name) for name in ("background", "range", "check")}
    return other.model_copy(update=same)
