"""A folder of images, labelled by its subfolders or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from simclr.data.images import IMAGE_SUFFIXES, Files, visible_entries, walk
from simclr.data.source import UNLABELLED, Contents, Source, Split, fingerprint_files
from simclr.errors import UserError
from simclr.progress import Observer

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
    return Source(fingerprint_files(folder, listed), lambda: Contents(tuple(classes), splits))


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
