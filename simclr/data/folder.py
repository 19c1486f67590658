"""A folder of images on the disk, labelled by its subfolders or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from simclr.data.images import Files
from simclr.data.layout import is_hidden, printable, understand
from simclr.data.source import Contents, Source, Split, fingerprint_files
from simclr.errors import UserError
from simclr.progress import Observer


def load_folder(name: str, folder: Path | None, home: Path, observer: Observer, *, unlabelled: bool = False) -> Source:
    """Any folder of images, in one of the layouts of `understand`."""
    if folder is None:
        raise UserError("the data set 'folder' needs a folder of images: add --data-dir FOLDER")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: expected a folder of images in --data-dir (data.dir)")
    names, notes = list_files(folder)
    layout = understand(names, str(folder), unlabelled=unlabelled)
    splits: dict[str, Split] = {}
    for split, labelled in layout.splits.items():
        images = Files([name for name, _ in labelled], lambda name: (folder / name).read_bytes())
        splits[split] = Split(images, np.array([label for _, label in labelled], np.int64))
    listed = [name for labelled in layout.splits.values() for name, _ in labelled]
    return Source(
        fingerprint_files(folder, listed),
        lambda: Contents(layout.classes, splits),
        (*notes, *layout.notes),
        "folder names" if layout.classes else "",
    )


def list_files(folder: Path) -> tuple[list[str], list[str]]:
    """The visible files below a folder, as sorted relative paths with slashes, and notes about what was left out.

    Every folder is read once, so a link to a folder that is read anyway adds nothing. Pipes, sockets and devices are
    left out. Broken links are listed. Raises UserError for a folder that can't be read.
    """
    found: list[str] = []
    special: list[str] = []
    repeated: list[str] = []
    seen = {(above.stat().st_dev, above.stat().st_ino) for above in folder.resolve().parents}
    folders, links = [""], list[str]()
    while folders or links:  # links come last, so that a folder keeps its own name
        path = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(folder / path)
            if (status.st_dev, status.st_ino) in seen:
                repeated.append(path)
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / path) as entries:
                visible = sorted(
                    (entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name
                )
        except OSError as error:
            raise UserError(
                f"can't read the folder {printable(str(folder / path))}: {error.strerror}. Allow reading it, or move "
                f"it elsewhere"
            ) from None
        for entry in visible:
            own = f"{path}/{entry.name}" if path else entry.name
            mode = _mode(entry)
            if stat.S_ISDIR(mode):
                (links if entry.is_symlink() else folders).append(own)
            elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                found.append(own)
            else:
                special.append(own)
    notes = [
        f"left out {printable(', '.join(sorted(names)[:5]))}{', ...' * (len(names) > 5)}: {why}"
        for names, why in (
            (repeated, "links to folders that are read already"),
            (special, "neither files nor folders, but pipes, sockets or devices"),
        )
        if names
    ]
    return sorted(found), notes


def _mode(entry: os.DirEntry[str]) -> int:
    """The mode of what an entry is or leads to, or that of the link itself if it is broken."""
    try:
        return entry.stat().st_mode
    except OSError:
        return entry.stat(follow_symlinks=False).st_mode
