"""The data sets: for each kind, a loader that finds its images and labels.

To add a data set, write a loader and add a line to DATASETS (and one to DOWNLOADS if it has to be downloaded).
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
from simclr.data.images import IMAGE_SUFFIXES, Array, Files, visible_entries, walk
from simclr.errors import UserError
from simclr.progress import Observer
from simclr.randomness import permutation

UNLABELLED = -1


class Split(NamedTuple):
    """Images (files, or a uint8 array N x 3 x H x W) and the int64 label of each."""

    images: Files | Array
    labels: Array


class Contents(NamedTuple):
    """The names of the classes, and the splits by name: train, and any of unlabeled, val and test."""

    classes: tuple[str, ...]
    splits: dict[str, Split]


class Source(NamedTuple):
    """A hash that identifies the images of a data set, and a function that reads them.

    The hash is cheap. The function is called only when the images are not decoded yet.
    """

    fingerprint: str
    read: Callable[[], Contents]


# Arguments: the name in DATASETS, the folder that the user chose or None, the home folder, the observer.
Loader = Callable[[str, Path | None, Path, Observer], Source]


def fingerprint(*parts: object) -> str:
    """Hash values by their repr."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _fingerprint_files(root: Path, names: Sequence[str]) -> str:
    """Hash files by folder, name, size and modification time."""
    digest = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8)
    for name in names:
        try:
            stat = os.stat(root / name)
        except FileNotFoundError:  # a broken link: reported with the other files that can't be read
            stat = os.lstat(root / name)
        line = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))  # names from old archives may not be UTF-8
    return digest.hexdigest()


def _refuse_folder(name: str, folder: Path | None) -> None:
    if folder is not None:
        raise UserError(
            f"the data set '{name}' is built in and reads no folder: to use the images in {folder}, add "
            f"--dataset folder (or --preset half-hour), else leave out --data-dir"
        )


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


def _download_folder(folder: Path | None, home: Path) -> Path:
    return folder or home / "downloads"


def _load_tar(
    name: str, folder: Path | None, home: Path, observer: Observer, arrange: Callable[[dict[str, bytes]], Contents]
) -> Source:
    """A data set in one tar archive. `arrange` turns the archive's files, by name without folder, into Contents."""

    def read() -> Contents:
        archive = fetch(name, _download_folder(folder, home), observer)
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
    root = _download_folder(folder, home)
    unpacked = next((path for path in (root, root / "tiny-imagenet-200") if (path / "wnids.txt").exists()), None)
    if unpacked:
        files = sorted(path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.JPEG"))
        return Source(
            _fingerprint_files(unpacked, files),
            lambda: _arrange_tiny_imagenet(Files(files, lambda file: (unpacked / file).read_bytes())),
        )

    def read() -> Contents:
        archive = zipfile.ZipFile(fetch(name, root, observer))
        files = sorted(member.partition("/")[2] for member in archive.namelist() if member.endswith(".JPEG"))
        return _arrange_tiny_imagenet(Files(files, lambda file: archive.read(f"tiny-imagenet-200/{file}")))

    return Source(fingerprint(name, DOWNLOADS[name].md5), read)


def _arrange_tiny_imagenet(files: Files) -> Contents:
    names, read = files
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
        "train": Split(Files(train, read), np.array([label(name.split("/")[1]) for name in train], np.int64)),
        "test": Split(Files(test, read), np.array([test_labels[name] for name in test], np.int64)),
    }
    return Contents(tuple(words.get(wnid, wnid).split(",")[0] for wnid in wnids), splits)


SPLIT_FOLDERS = ("train", "val", "test")


def load_folder(name: str, folder: Path | None, home: Path, observer: Observer) -> Source:
    """Any folder of images: <class>/..., or train|val|test/<class>/..., or images without labels."""
    if folder is None:
        raise UserError("the data set 'folder' needs a folder of images: add --data-dir FOLDER")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: expected a folder of images in --data-dir (data.dir)")
    roots = _split_roots(folder)
    classes = sorted({entry.name for root in roots.values() for entry in visible_entries(root) if entry.is_dir()})
    splits: dict[str, Split] = {}
    listed: list[str] = []
    for split, root in roots.items():
        labelled = [(os.path.relpath(path, folder), label) for path, label in _labelled_files(root, classes)]
        names = [name for name, _ in labelled]
        images = Files(names, lambda name: (folder / name).read_bytes())
        splits[split] = Split(images, np.array([label for _, label in labelled], np.int64))
        listed += names
    if not len(splits["train"].labels):
        raise UserError(f"no images in {roots['train']}: expected image files, or one folder of them for each class")
    return Source(_fingerprint_files(folder, listed), lambda: Contents(tuple(classes), splits))


def _split_roots(folder: Path) -> dict[str, Path]:
    """The folder of each split. The whole folder is `train` unless it has a subfolder of that name."""
    subfolders = {entry.name for entry in visible_entries(folder) if entry.is_dir()}
    if "train" not in subfolders:
        return {"train": folder}
    if others := sorted(subfolders.difference(SPLIT_FOLDERS)):
        raise UserError(
            f"{folder} has folders {', '.join(others[:5])} beside 'train': expected only train, val and test, or only "
            f"classes"
        )
    return {split: folder / split for split in SPLIT_FOLDERS if split in subfolders}


def _labelled_files(root: Path, classes: list[str]) -> list[tuple[str, int]]:
    """Paths below the folder of a split, each with its label."""
    files: list[tuple[str, int]] = []
    for entry in visible_entries(root):
        if entry.is_dir():
            files += [(path, classes.index(entry.name)) for path in walk(entry.path)]
        elif not classes:
            files.append((entry.path, UNLABELLED))
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:  # other files, such as a README, are ignored
            raise UserError(
                f"{root} has images (such as {entry.name}) beside folders: move them into a class folder or elsewhere"
            )
    return files


class DatasetRow(NamedTuple):
    """A data set: its loader, the default side in pixels of its stored images, and a description in one line."""

    load: Loader
    side: int
    about: str


DATASETS: dict[str, DatasetRow] = {
    "shapes": DatasetRow(load_shapes, 32, "8 shapes in colours that say nothing about the class; generated"),
    "digits": DatasetRow(load_digits, 16, "scikit-learn's 1,797 handwritten digits; built in"),
    "cifar10": DatasetRow(load_cifar, 32, "60,000 images in 10 classes; downloaded (162 MB)"),
    "cifar100": DatasetRow(load_cifar, 32, "60,000 images in 100 classes; downloaded (161 MB)"),
    "stl10": DatasetRow(load_stl10, 96, "105,000 images to pre-train on, 10 classes; downloaded (2.6 GB)"),
    "tiny-imagenet": DatasetRow(load_tiny_imagenet, 64, "110,000 images in 200 classes; downloaded (248 MB)"),
    "folder": DatasetRow(load_folder, 64, "your own images (--data-dir), labelled by subfolder or not at all"),
}


def image_side(contents: Contents, sample: int = 64) -> int:
    """The median of the shorter sides, in pixels, of a sample of the training images before they are resized."""
    images = contents.splits["train"].images
    if not isinstance(images, Files):
        return int(images.shape[-1])
    sides = []
    for name in images.names[:: max(1, len(images.names) // sample)]:
        try:
            with Image.open(BytesIO(images.read(name))) as image:
                sides.append(min(image.size))
        except (OSError, Image.DecompressionBombError):
            continue  # reported with the others when they are decoded
    return int(np.median(sides)) if sides else 0
