"""The known data sets: the built-in ones, and those that are downloaded."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simclr.data import shapes
from simclr.data.download import DOWNLOADS, fetch
from simclr.data.images import Array, Files
from simclr.data.source import UNLABELLED, Contents, Source, Split, fingerprint, fingerprint_folder, is_there
from simclr.data.suffixes import OTHER_SUFFIXES, suffix_of
from simclr.errors import UserError
from simclr.progress import Observer
from simclr.randomness import permutation

BUILT_IN = ("shapes", "digits")  # data sets that read no files


def _refuse_folder(name: str, folder: Path | None) -> None:
    if folder is not None:
        other = f", or add --dataset folder to use the images in {folder}"
        gone = f", which names {folder}: it doesn't exist"
        more = other if is_there(folder) else gone
        raise UserError(f"the data set '{name}' is built in and reads no folder: leave out --data-dir{more}")


def load_shapes(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    """The generated images of shapes.py."""
    _refuse_folder(name, folder)

    def read() -> Contents:
        splits = {"train": Split(*shapes.render(shapes.TRAIN, 0)), "test": Split(*shapes.render(shapes.TEST, 1))}
        return Contents(shapes.CLASSES, splits)

    return Source(fingerprint("shapes", shapes.VERSION), read)


def load_digits(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    """scikit-learn's 1,797 digits of 8 x 8 pixels. A fixed fifth of them is the test set."""
    _refuse_folder(name, folder)

    def read() -> Contents:
        from sklearn.datasets import load_digits as sklearn_digits

        digits = sklearn_digits()
        images = np.repeat((digits.images * (255 / 16)).round().astype(np.uint8)[:, None], 3, axis=1)
        labels = digits.target.astype(np.int64)
        order = permutation(len(images), 0, "digits").numpy()
        train, test = order[len(order) // 5 :], order[: len(order) // 5]
        splits = {"train": Split(images[train], labels[train]), "test": Split(images[test], labels[test])}
        return Contents(tuple(map(str, range(10))), splits)

    return Source(fingerprint("digits"), read)


def _download_folder(name: str, folder: Path | None, home: Path) -> Path:
    """Where the archive of a data set is, or is downloaded to: a folder of the user's, which may be new, or `home`.

    Raises UserError for a file, or a name that looks like one.
    """
    if folder is None:
        return home / "downloads"
    if folder.is_file():
        archive = DOWNLOADS[name].url.rpartition("/")[2]
        unpack = name == "tiny-imagenet"  # which is also read unpacked, and whose layout --dataset folder refuses
        remedy = (
            "unpack it, and give its folder"
            if unpack
            else f"to train on the images in {folder.name}, add --dataset folder"
        )
        raise UserError(
            f"{folder} is a file, but for '{name}' --data-dir must be the folder that contains {archive}: {remedy}"
        )
    if not folder.exists() and suffix_of(folder.name) in OTHER_SUFFIXES:
        raise UserError(f"there is no file {folder}: check --data-dir (data.dir)")
    return folder


def _fetch(name: str, place: Path, home: Path, observer: Observer) -> Path:
    """The archive of a data set in a folder, which may be new, unless the one that it lies in is missing, too."""
    if not place.parent.exists() and place.parent != home:
        raise UserError(f"there is no folder {place.parent} to download into: check --data-dir (data.dir)")
    return fetch(name, place, observer)


def _load_tar(
    name: str, folder: Path | None, home: Path, observer: Observer, arrange: Callable[[dict[str, bytes]], Contents]
) -> Source:
    """A data set in one tar archive. `arrange` turns the archive's files, by name without folder, into Contents."""
    place = _download_folder(name, folder, home)

    def read() -> Contents:
        archive = _fetch(name, place, home, observer)
        with tarfile.open(archive) as tar:
            members = ((Path(member.name).name, tar.extractfile(member)) for member in tar if member.isfile())
            files = {member_name: file.read() for member_name, file in members if file}
        try:
            return arrange(files)
        except (KeyError, ValueError) as error:  # a file that is missing, or of the wrong size
            raise UserError(
                f"{archive} is not the binary version of {name} ({error}): replace it with {DOWNLOADS[name].url}"
            ) from None

    return Source(fingerprint(name, DOWNLOADS[name].md5), read)


class CifarFiles(NamedTuple):
    """The files of a CIFAR archive: one with the class names, and records that each start with label bytes."""

    label_bytes: int
    classes: str
    train: list[str]
    test: list[str]


CIFAR = {
    "cifar10": CifarFiles(1, "batches.meta.txt", [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
    "cifar100": CifarFiles(2, "fine_label_names.txt", ["train.bin"], ["test.bin"]),
}


def load_cifar(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    """CIFAR's binary version. A record holds label bytes, of which the last is the class, and 3 x 32 x 32 pixels."""
    label_bytes, classes, train, test = CIFAR[name]

    def arrange(files: dict[str, bytes]) -> Contents:
        def split(names: list[str]) -> Split:
            records = np.concatenate([np.frombuffer(files[name], np.uint8) for name in names])
            records = records.reshape(-1, label_bytes + 3072)
            return Split(records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1].astype(np.int64))

        return Contents(tuple(files[classes].decode().split()), {"train": split(train), "test": split(test)})

    return _load_tar(name, folder, home, observer, arrange)


def load_stl10(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    """STL-10: 5,000 + 8,000 labelled images and 100,000 unlabelled ones, 96 x 96 pixels stored column by column."""

    def arrange(files: dict[str, bytes]) -> Contents:
        def images(part: str) -> Array:
            return np.frombuffer(files[f"{part}_X.bin"], np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)

        def labels(part: str) -> Array:
            return np.frombuffer(files[f"{part}_y.bin"], np.uint8).astype(np.int64) - 1

        splits = {part: Split(images(part), labels(part)) for part in ("train", "test")}
        unlabelled = images("unlabeled")
        splits["unlabeled"] = Split(unlabelled, np.full(len(unlabelled), UNLABELLED))
        return Contents(tuple(files["class_names.txt"].decode().split()), splits)

    return _load_tar(name, folder, home, observer, arrange)


def load_tiny_imagenet(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    """Tiny ImageNet in its official layout, as a zip archive or unpacked into the folder or its tiny-imagenet-200.

    The classes are train/<wnid>/images. The labelled images of val are the test set, since the labels of test/ are not
    public.
    """
    root = _download_folder(name, folder, home)
    unpacked = next((path for path in (root, root / "tiny-imagenet-200") if (path / "wnids.txt").exists()), None)
    if unpacked:
        files = sorted(path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.JPEG"))
        return Source(
            fingerprint_folder(unpacked, files, home),
            lambda: _arrange_tiny_imagenet(Files(files, lambda file: (unpacked / file).read_bytes(), forkable=True)),
            folder=str(unpacked),
        )

    def read() -> Contents:
        archive = zipfile.ZipFile(_fetch(name, root, home, observer))
        files = sorted(member.partition("/")[2] for member in archive.namelist() if member.endswith(".JPEG"))
        return _arrange_tiny_imagenet(Files(files, lambda file: archive.read(f"tiny-imagenet-200/{file}")))

    return Source(fingerprint(name, DOWNLOADS[name].md5), read)


def _arrange_tiny_imagenet(files: Files) -> Contents:
    names, read = files.names, files.read
    wnids = read("wnids.txt").decode().split()
    words = dict(line.split("\t", 1) for line in read("words.txt").decode().splitlines() if "\t" in line)
    index = {wnid: i for i, wnid in enumerate(wnids)}

    def label(wnid: str) -> int:
        if wnid not in index:
            raise UserError(
                f"tiny-imagenet has images of class '{wnid}', which its wnids.txt does not list: restore wnids.txt"
            )
        return index[wnid]

    annotations = (line.split("\t")[:2] for line in read("val/val_annotations.txt").decode().splitlines() if line)
    test_labels = {f"val/images/{file}": label(wnid) for file, wnid in annotations}
    train, test = [name for name in names if name.startswith("train/")], [name for name in names if name in test_labels]
    splits = {
        "train": Split(files._replace(names=train), np.array([label(name.split("/")[1]) for name in train], np.int64)),
        "test": Split(files._replace(names=test), np.array([test_labels[name] for name in test], np.int64)),
    }
    return Contents(tuple(words.get(wnid, wnid).split(",")[0] for wnid in wnids), splits)
