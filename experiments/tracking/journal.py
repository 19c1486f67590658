"""The file of what was recorded and not sent to the tracking store yet, so that a later command can send it."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from simclr.errors import RunFailed
from simclr.files import written_whole


class Journal:
    """A file of entries that are not sent yet, one JSON object per line, and a folder with the files that they name.

    Its lock is held as long as its process lives. When nothing uses it any more, it is removed or left to others.
    """

    def __init__(self, path: Path) -> None:
        """Open a new journal, or take over one that a process left. Raises filelock.Timeout if its process lives."""
        self.path, self.files = path, path.with_suffix("")
        self.users = 0  # entries that are not sent, and calls that are about to add one
        self.kept: list[dict[str, Any]] = []  # entries that could not be sent, for a later command
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(path.with_suffix(".lock"), timeout=0, thread_local=False)
        self.lock.acquire()
        self.file = path.open("ab", buffering=0)

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry. It survives the death of the process; `sync` makes it survive that of the machine."""
        line, start = json.dumps(entry).encode() + b"\n", self.path.stat().st_size
        if self.file.write(line) < len(line):
            self.file.truncate(start)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def entries(self) -> list[dict[str, Any]]:
        """The entries in the file. A line that was cut off when the machine died is left out, with a warning."""
        found = []
        for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
            try:
                found.append(json.loads(line))
            except ValueError:
                logging.getLogger(__name__).warning("%s: line %d is damaged, and is left out", self.path, number)
        return found

    def sync(self) -> None:
        """Return when the entries are on the disk."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Remove the journal with its files. If entries are kept, leave these to whoever opens it next."""
        self.file.close()
        if self.kept:
            lines = b"".join(json.dumps(entry).encode() + b"\n" for entry in self.kept)
            with suppress(RunFailed), written_whole(self.path) as scratch:  # on a full disk, all entries stay
                scratch.write_bytes(lines)
        else:
            shutil.rmtree(self.files, ignore_errors=True)
            self.path.unlink(missing_ok=True)
        self.lock.release()
        Path(self.lock.lock_file).unlink(missing_ok=True)
