"""Unpack compressed data into a temporary file, within bounds."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from threading import Lock
from typing import IO

from simclr.errors import UserError

RESERVE = 1 << 30  # bytes of the disk that stay free
CHUNK = 1 << 20


def read_at(file: IO[bytes], offset: int, size: int, lock: Lock) -> bytes:
    """Bytes of a file, from any thread or forked process. Raises OSError if the file is shorter."""
    if hasattr(os, "pread"):  # needs no position, which forked processes share
        data = os.pread(file.fileno(), size, offset)
    else:
        with lock:
            file.seek(offset)
            data = file.read(size)
    if len(data) < size:
        raise OSError("the archive ends before the file does")
    return data


def unpack(stream: IO[bytes], what: str, folder: Path, most: int | None = None) -> IO[bytes]:
    """Copy a stream into a temporary file in `folder`, which has no name and disappears when it is closed.

    Raises UserError, which names `what`, when the stream is longer than `most` bytes or than the disk has space for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    space = shutil.disk_usage(folder).free - RESERVE
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the caller reads it)
    size = 0
    while chunk := stream.read(CHUNK):
        size += len(chunk)
        if most is not None and size > most:
            raise UserError(f"{what} unpacks to more than {most:,} bytes, too many for its size: it may be damaged")
        if size > space:
            raise UserError(
                f"{what} unpacks to more than the {max(0, space):,} bytes that {folder} has space for: free some space"
            )
        file.write(chunk)
    file.seek(0)
    return file
