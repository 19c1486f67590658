"""Images in zip and tar archives, which are read in place: by folders, by a table, or as WebDataset's shards."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock
from typing import IO, Any

from simclr.data.images import LARGEST_FILE, Files
from simclr.data.labels import contents_of_layout
from simclr.data.layout import HIDDEN, is_hidden
from simclr.data.shards import contents_of_shards, is_shard
from simclr.data.source import READING, Contents, Source, fingerprint, fingerprint_files
from simclr.data.suffixes import TARS
from simclr.data.tables import table_among, understand_names
from simclr.data.unpack import read_at, unpack
from simclr.errors import UserError, printable
from simclr.progress import Observer

LARGEST_RATIO = 100  # of an archive's unpacked size to its own, beyond RATIO_FREE; photos have about 1
RATIO_FREE = 1 << 30
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 100_000


def _open_zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


# How a compressed tar archive starts, and how to read it.
COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}  # of a zip archive


def load_archive(
    path: Path,
    home: Path,
    observer: Observer,
    *,
    unlabelled: bool = False,
    labels: Path | None = None,
    **columns: str | None,
) -> Source:
    """The images in an archive, in a folder of tar archives, or in those of a pattern such as train-{000..123}.tar."""
    archives = list_archives(path)
    root = path if path.is_dir() else archives[0].parent
    names = [archive.relative_to(root).as_posix() for archive in archives]
    tables = fingerprint_files(labels.parent, [labels.name]) if labels is not None else None

    def read() -> Contents:
        notes: list[str] = []
        opened = {name: open_archive(root / name, home / "cache", notes) for name in names}
        if len(opened) == 1 and (labels is not None or not is_shard(next(iter(opened.values())).names)):
            (files,) = opened.values()
            if labels is None and not unlabelled and (table := table_among(files.names)):
                notes.append(
                    f"{table} in {path.name} is not used for labels, as it would be in a folder: take it out of the "
                    f"archive, and add --labels {table.rpartition('/')[2]}"
                )
            layout, _ = understand_names(files.names, str(path), unlabelled=unlabelled, labels=labels, **columns)
            return contents_of_layout(layout, files)._replace(notes=(*notes, *layout.notes))
        if labels is not None or columns["split_column"] is not None:
            raise UserError(
                f"{path} holds shards of samples, for which data.labels and data.split_column have no effect: leave "
                f"them out"
            )
        kinds = {name: columns[name] for name in ("image_column", "label_column")}
        contents, note = contents_of_shards(opened, unlabelled=unlabelled, **kinds)
        return contents._replace(notes=(*notes, f"{path.name}: {note}"))

    return Source(
        fingerprint(READING, fingerprint_files(root, names), tables, unlabelled, columns),
        read,
        origin=(labels or path).name,
    )


def list_archives(path: Path) -> list[Path]:
    """The archives that a path stands for: itself, the tar archives below a folder, or those of a brace pattern."""
    if path.is_file():
        return [path]
    if path.is_dir():
        found = (each.relative_to(path) for each in path.rglob("*") if each.name.lower().endswith(TARS))
        return sorted(path / each for each in found if not any(map(is_hidden, each.parts)))
    named = [Path(text) for text in _expand(str(path))]
    if missing := [each for each in named if not each.is_file()]:
        raise UserError(
            f"there is no file {missing[0]}, the first of {len(missing)} that {path} names: check the pattern"
        )
    return named


def _expand(pattern: str) -> list[str]:
    """The names that a pattern with ranges such as {000..123} stands for."""
    if not (braces := BRACES.search(pattern)):
        return [pattern]
    first, last = braces.groups()
    if int(last) < int(first):
        raise UserError(f"{pattern} names no file, since {first} is above {last}: write {{{last}..{first}}}")
    if int(last) - int(first) >= MOST_SHARDS:
        raise UserError(f"{pattern} names {int(last) - int(first) + 1:,} files: expected up to {MOST_SHARDS:,}")
    numbers = (f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1))
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for i in numbers for name in _expand(f"{before}{i}{after}")]


def open_archive(path: Path, scratch: Path, notes: list[str]) -> Files:
    """The files in an archive, by their names in it, which are data and never lead anywhere.

    A compressed tar archive is unpacked into a temporary file in `scratch`. Links and other special members are left
    out, which is added to the notes. Raises UserError for encrypted files, and for sizes that no archive of images has;
    OSError, zipfile.BadZipFile or tarfile.TarError for damaged archives.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        return _open_zip(path, notes)
    for magic, opener in COMPRESSED.items():
        if start.startswith(magic):
            with opener(path) as packed:
                return _open_tar(path, unpack(packed, str(path), scratch, _most(path)), notes)
    if not tarfile.is_tarfile(path):
        raise UserError(
            f"{path} is neither a zip nor a tar archive, despite its name, or it is damaged: unpack it with the "
            f"program that made it and give the folder, or download it again"
        )
    return _open_tar(path, path.open("rb"), notes)


def _plain(name: str) -> str:
    """A member's name as a relative path with slashes."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _open_zip(path: Path, notes: list[str]) -> Files:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise UserError(
            f"{path} is incomplete, damaged, or one part of a split archive: download all of it again"
        ) from None
    files = [member for member in archive.infolist() if not member.is_dir()]
    members = {_plain(member.filename): member for member in files}
    if repeated := len(files) - len(members):
        notes.append(f"{repeated:,} files of {path.name} have the same name as another: the last one is used")
    for member in members.values():
        if member.flag_bits & 1:
            raise UserError(f"{path} is encrypted: unpack it with its password, and give the folder")
        if member.compress_type not in COMPRESSIONS:
            raise UserError(
                f"{path} is compressed in a way that can't be read (method {member.compress_type} of zip): unpack it, "
                f"and give the folder"
            )
        _check_size(path, member.filename, member.file_size)
    if (total := sum(member.file_size for member in members.values())) > _most(path):
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes and claims to unpack to {total:,}, like a zip bomb: if you "
            f"trust it, unpack it and give the folder"
        )
    archive.close()

    @cache
    def opened(process: int) -> zipfile.ZipFile:  # forked processes would share its position
        return zipfile.ZipFile(path)

    return Files(list(members), lambda name: opened(os.getpid()).read(members[name]), forkable=True)


def _open_tar(path: Path, file: IO[bytes], notes: list[str]) -> Files:
    """One pass through the headers finds where each regular file lies, and what each hard link leads to."""
    places: dict[str, tuple[int, int]] = {}
    special: list[str] = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps every header in memory
            name = _plain(member.name)
            _check_size(path, name, member.size)
            if member.islnk() and (target := _plain(member.linkname)) in places:
                places[name] = places[target]
            elif member.isreg() and not member.issparse():
                places[name] = member.offset_data, member.size
            elif not member.isdir() and not HIDDEN.search(name):
                special.append(name)
        end = tar.offset  # where the first header is that could not be read
    file.seek(end)
    rest = file.read(1 << 20)
    if not rest or rest.strip(b"\0"):  # a block of zeros marks the end
        what = "is damaged, or consists of several archives joined together" if rest else "is incomplete"
        raise UserError(
            f"{path} has no end mark where its files end, after {end:,} bytes: it {what}. Create or download it again"
        )
    if special:
        notes.append(
            f"left out {len(special):,} members of {path.name} that are not regular files, such as "
            f"{printable(special[0])}"
        )
    lock = Lock()
    return Files(list(places), lambda name: read_at(file, *places[name], lock), forkable=True)


def _most(path: Path) -> int:
    """The most bytes that an archive may unpack to."""
    return RATIO_FREE + LARGEST_RATIO * path.stat().st_size


def _check_size(path: Path, name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise UserError(
            f"{path}: '{name}' has {size:,} bytes, more than an image may have ({LARGEST_FILE:,}): leave it out"
        )
