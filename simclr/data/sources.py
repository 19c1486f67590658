"""Data: every source becomes one memory-mapped uint8 array, decoded once.

A data set is a function that lists a source: the files or arrays of each split, with labels. `open_dataset` decodes
them into a store under the cache folder (N x 3 x side x side), atomically and keyed by a fingerprint of the source, and
cuts train, validation and test. To add a data set, write the function and add a line to DATASETS.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from simclr.data import shapes
from simclr.data.download import DOWNLOADS, fetch
from simclr.data.images import IMAGE_SUFFIXES, Array, Files, _visible, walk
from simclr.errors import UserError
from simclr.progress import Observer
from simclr.randomness import permutation

UNLABELLED = -1


class Split(NamedTuple):
    """Images (files, or an array N x 3 x H x W uint8) with a label each (-1: none)."""

    images: Files | Array
    labels: Array


class Contents(NamedTuple):
    """Class names and splits (train, unlabeled, val, test)."""

    classes: tuple[str, ...]
    splits: dict[str, Split]


class Source(NamedTuple):
    """What identifies a data set, cheaply; and how to read it, called only when it is not decoded yet."""

    fingerprint: str
    read: Callable[[], Contents]


def _fingerprint(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


Loader = Callable[[str, Path | None, Path, Observer], Source]  # (name of the data set, its folder, the home, observer)


def _refuse_folder(name: str, folder: Path | None) -> None:
    if folder is not None:
        raise UserError(
            f"the data set '{name}' is embedded and reads no folder: add --dataset folder, or take --preset "
            f"half-hour, for the images in {folder}; or leave --data-dir out"
        )


def load_shapes(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    _refuse_folder(name, folder)

    def read() -> Contents:
        parts = (("train", shapes.TRAIN, 0), ("test", shapes.TEST, 1))
        return Contents(shapes.CLASSES, {name: Split(*shapes.render(n, seed)) for name, n, seed in parts})

    return Source(_fingerprint("shapes", shapes.VERSION), read)


def load_digits(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; a fixed fifth of them is the test set."""
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

    return Source(_fingerprint("digits"), read)


def _download_folder(folder: Path | None, home: Path) -> Path:
    return folder or home / "downloads"


def load_cifar(label_bytes: int, meta: str, train: Sequence[str], test: Sequence[str]) -> Loader:
    """CIFAR's binary version: records of `label_bytes` labels (the last is used) and 3 x 32 x 32 pixels."""

    def load(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
        def split(members: dict[str, bytes], files: Sequence[str]) -> Split:
            records = np.concatenate([np.frombuffer(members[file], np.uint8) for file in files])
            records = records.reshape(-1, label_bytes + 3072)
            return Split(records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1].astype(np.int64))

        def read() -> Contents:
            archive = fetch(name, _download_folder(folder, home), observer)
            with tarfile.open(archive) as tar:
                members = {Path(member.name).name: _member(tar, member) for member in tar if member.isfile()}
            try:
                splits = {"train": split(members, train), "test": split(members, test)}
                return Contents(tuple(members[meta].decode().split()), splits)
            except (KeyError, ValueError) as error:
                raise UserError(f"{archive} is not the binary version of {name} ({error})") from None

        return Source(_fingerprint(name, DOWNLOADS[name].md5), read)

    return load


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def load_stl10(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    """STL-10: 5,000 + 8,000 labelled images and 100,000 without labels, 96 x 96, stored column by column."""

    def read() -> Contents:
        archive = fetch("stl10", _download_folder(folder, home), observer)
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: _member(tar, member) for member in tar if member.isfile()}

        def images(part: str) -> Array:
            return np.frombuffer(members[f"{part}_X.bin"], np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)

        def labels(part: str) -> Array:
            return np.frombuffer(members[f"{part}_y.bin"], np.uint8).astype(np.int64) - 1

        try:
            splits = {part: Split(images(part), labels(part)) for part in ("train", "test")}
            bare = images("unlabeled")
            splits["unlabeled"] = Split(bare, np.full(len(bare), UNLABELLED))
            return Contents(tuple(members["class_names.txt"].decode().split()), splits)
        except (KeyError, ValueError) as error:
            raise UserError(f"{archive} is not the binary version of STL-10 ({error})") from None

    return Source(_fingerprint("stl10", DOWNLOADS["stl10"].md5), read)


def load_tiny_imagenet(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    """Tiny ImageNet's official layout, zipped or unpacked (`dir`, or a folder tiny-imagenet-200 in it).

    train/<wnid>/images; val/images with val/val_annotations.txt, which is the test set here, as its labels are public
    and those of test/ are not; boxes and test/ are ignored.
    """
    place = _download_folder(folder, home)
    unpacked = next((f for f in (place, place / "tiny-imagenet-200") if (f / "wnids.txt").exists()), None)
    if unpacked:
        found = sorted(path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.JPEG"))
        return Source(_listing(unpacked, found), lambda: _tiny_imagenet(found, lambda n: (unpacked / n).read_bytes()))

    def read() -> Contents:
        bundle = zipfile.ZipFile(fetch("tiny-imagenet", place, observer))
        names = sorted(n.partition("/")[2] for n in bundle.namelist() if n.endswith(".JPEG"))
        return _tiny_imagenet(names, lambda name: bundle.read(f"tiny-imagenet-200/{name}"))

    return Source(_fingerprint("tiny-imagenet", DOWNLOADS["tiny-imagenet"].md5), read)


def _tiny_imagenet(names: list[str], read: Callable[[str], bytes]) -> Contents:
    wnids = read("wnids.txt").decode().split()
    words = dict(line.split("\t", 1) for line in read("words.txt").decode().splitlines() if "\t" in line)
    index = {wnid: i for i, wnid in enumerate(wnids)}

    def label(wnid: str) -> int:
        if wnid not in index:
            raise UserError(f"the images of tiny-imagenet are of a class '{wnid}' that its wnids.txt does not list")
        return index[wnid]

    annotations = (line.split("\t")[:2] for line in read("val/val_annotations.txt").decode().splitlines() if line)
    labels = {f"val/images/{file}": label(wnid) for file, wnid in annotations}
    train, test = [n for n in names if n.startswith("train/")], [n for n in names if n in labels]
    splits = {
        "train": Split(Files(train, read), np.array([label(n.split("/")[1]) for n in train], np.int64)),
        "test": Split(Files(test, read), np.array([labels[n] for n in test], np.int64)),
    }
    return Contents(tuple(words.get(w, w).split(",")[0] for w in wnids), splits)


SPLIT_FOLDERS = ("train", "val", "test")


def load_folder(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    """Any folder of images: <class>/..., or train|val|test/<class>/..., or images alone (no labels).

    A labelled folder without a test split gets one, of `val_fraction` of its images.
    """
    if folder is None:
        raise UserError("the data set 'folder' needs a folder of images: add --data-dir FOLDER")
    root = folder
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist (data.dir, --data-dir): expected a folder of images")
    subfolders = {entry.name for entry in _visible(root) if entry.is_dir()}
    if "train" in subfolders and (others := sorted(subfolders - set(SPLIT_FOLDERS))):
        raise UserError(
            f"{root} holds {', '.join(others[:5])} beside 'train': expected train, val and test, or classes alone"
        )
    tops = (
        {part: root / part for part in SPLIT_FOLDERS if part in subfolders}
        if "train" in subfolders
        else {"train": root}
    )
    classes = sorted({entry.name for top in tops.values() for entry in _visible(top) if entry.is_dir()})
    listed: list[str] = []
    splits = {}
    for part, top in tops.items():
        names, labels = [], []
        for entry in _visible(top):
            if entry.is_dir():
                found, label = walk(entry.path), classes.index(entry.name)
            elif not classes:
                found, label = [entry.path], UNLABELLED
            elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                raise UserError(f"{top} holds images (such as {entry.name}) beside folders: expected one or the other")
            else:
                continue  # a text file beside the class folders
            names += [os.path.relpath(path, root) for path in found]
            labels += [label] * len(found)
        listed += names
        splits[part] = Split(Files(names, lambda name: (root / name).read_bytes()), np.array(labels, np.int64))
    if not len(splits["train"].labels):
        raise UserError(f"no images in {tops['train']}: expected image files, or one folder of them for each class")
    return Source(_listing(root, listed), lambda: Contents(tuple(classes), splits))


def _listing(root: Path, names: Sequence[str]) -> str:
    """A fingerprint of files by place, name, size and time of change."""
    digest = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8)
    for name in names:
        try:
            stat = os.stat(root / name)
        except FileNotFoundError:  # a link that leads nowhere: reported with the other files that can't be read
            stat = os.lstat(root / name)
        line = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))  # names that are not UTF-8, as of old archives, too
    return digest.hexdigest()


class DatasetRow(NamedTuple):
    """One row of DATASETS: how to list it, its default stored side, one line about it."""

    load: Loader
    side: int
    about: str


DATASETS: dict[str, DatasetRow] = {
    "shapes": DatasetRow(load_shapes, 32, "8 shapes, colours are a nuisance; generated, the teaching data set"),
    "digits": DatasetRow(load_digits, 16, "scikit-learn's 1,797 handwritten digits; embedded"),
    "cifar10": DatasetRow(
        load_cifar(1, "batches.meta.txt", [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
        32,
        "60,000 images in 10 classes; downloaded (162 MB)",
    ),
    "cifar100": DatasetRow(
        load_cifar(2, "fine_label_names.txt", ["train.bin"], ["test.bin"]),
        32,
        "60,000 images in 100 classes; downloaded (161 MB)",
    ),
    "stl10": DatasetRow(load_stl10, 96, "105,000 images to pre-train on, 10 classes; downloaded (2.6 GB)"),
    "tiny-imagenet": DatasetRow(load_tiny_imagenet, 64, "110,000 images in 200 classes; downloaded (248 MB)"),
    "folder": DatasetRow(load_folder, 64, "your own images (--data-dir), labelled by subfolder or not at all"),
}


def image_side(contents: Contents, sample: int = 64) -> int:
    """The side in pixels of the images to train on as they come: the median of a sample's shorter sides."""
    images = contents.splits["train"].images
    if not isinstance(images, Files):
        return int(images.shape[-1])
    sides = []
    for name in images.names[:: max(1, len(images.names) // sample)]:
        try:
            with Image.open(BytesIO(images.read(name))) as image:
                sides.append(min(image.size))
        except (OSError, Image.DecompressionBombError):
            continue  # reported with all others when they are decoded
    return int(np.median(sides)) if sides else 0
