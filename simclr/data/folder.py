"""A folder of images on the disk, labelled by its subfolders or not at all."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path
from typing import Any

from simclr.data.images import Files, read_file
from simclr.data.labels import contents_of_layout
from simclr.data.layout import image_names, is_hidden
from simclr.data.source import Source, fingerprint, fingerprint_files, fingerprint_folder
from simclr.data.tables import reason_against, table_among, tables_beside, understand_names
from simclr.errors import UserError, printable
from simclr.progress import Observer


def load_folder(
    folder: Path,
    home: Path,
    observer: Observer,
    *,
    unlabelled: bool = False,
    labels: Path | None = None,
    **columns: str | None,
) -> Source:
    """Any folder of images, in one of the layouts of `understand`, or with a table of labels."""
    names, notes = list_files(folder)
    if labels is None and not unlabelled:
        if (table := table_among(names)) is None or "/" in table:
            notes += tables_beside(names, folder)
        elif reason := reason_against(folder / table, image_names(names, []), any(columns.values())):
            notes.append(f"{table} is not used, because {reason}. To use it, add --labels {folder / table}")
        else:
            labels = folder / table
    layout, origin = understand_names(names, str(folder), unlabelled=unlabelled, labels=labels, **columns)
    files = Files(names, partial(_read, str(folder)), forkable=True)
    known = set(names)
    listed = [name for rows in layout.splits.values() for name, _ in rows if name in known]
    found = fingerprint_folder(folder, listed, home)
    if labels is not None:
        found = fingerprint(found, fingerprint_files(labels.parent, [labels.name]), unlabelled, columns)
    read = partial(contents_of_layout, layout, files)
    labelling = fingerprint(layout.classes, *layout.splits.items())
    return Source(found, read, (*notes, *layout.notes), origin, labelling, str(folder))


def load_table(labels: Path, home: Path, observer: Observer, **options: Any) -> Source:
    """The images that a table lists, in its folder."""
    return load_folder(labels.parent, home, observer, labels=labels, **options)


def _read(folder: str, name: str) -> bytes:
    return read_file(os.path.join(folder, name))


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
            if entry.is_file(follow_symlinks=False):  # the most frequent case, which needs no call of the system
                found.append(own)
                continue
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
