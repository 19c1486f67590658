"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

from simclr.errors import RunFailed

PREFIX = ".writing-"  # of the hidden folder that holds an unfinished file; a killed process leaves it


@contextmanager
def written_whole(path: Path, remedy: str = "Free some space, or choose another place") -> Iterator[Path]:
    """A path of the same name to write a file to, which becomes `path` when the block ends without an error.

    Until then, and after an error, `path` is as it was. Its folder is made if it is missing, and removed again after an
    error. Raises RunFailed with the remedy if the file can't be written.
    """
    made: list[Path] = []
    try:
        made += takewhile(lambda folder: not folder.exists(), path.parents)
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=PREFIX, dir=path.parent, ignore_cleanup_errors=True) as folder:
            scratch = Path(folder) / path.name
            yield scratch
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())  # so that the file is whole after a power cut too
            os.replace(scratch, path)
        made.clear()
    except OSError as error:
        raise RunFailed(f"can't write {path}: {error.strerror or error}. {remedy}") from error
    finally:
        for new in made:
            with suppress(OSError):  # somebody else has written into it
                new.rmdir()
