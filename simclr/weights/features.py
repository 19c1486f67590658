"""Write features of image files to Parquet or npz."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np

from simclr.data.images import Array
from simclr.errors import RunFailed, UserError, unknown

Batches = Iterator[tuple[list[str], Array]]  # names of files, and their features: float32, names x D


NOTHING = "none of the files can be read as an image: nothing to write"


def _write_parquet(path: Path, batches: Batches) -> None:
    """Columns `file` and `features` (list<float32>[D]); a row group for each batch, one in memory at a time."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    first = next(batches, None)
    if first is None:
        raise UserError(NOTHING)
    width = first[1].shape[1]
    schema = pyarrow.schema({"file": pyarrow.string(), "features": pyarrow.list_(pyarrow.float32(), width)})
    with ParquetWriter(path, schema) as writer:
        for files, features in chain([first], batches):
            lists = pyarrow.FixedSizeListArray.from_arrays(features.reshape(-1), width)
            writer.write_table(pyarrow.table([files, lists], schema=schema))


def _write_npz(path: Path, batches: Batches) -> None:
    """Arrays `files` and `features` (float32 N x D). The names are in memory; the features wait on the disk, since an
    array's file begins with its length."""
    names: list[str] = []
    with tempfile.TemporaryFile(dir=path.parent) as waiting:
        for files, features in batches:
            names += files
            waiting.write(features.tobytes())
        waiting.flush()
        if not names:
            raise UserError(NOTHING)
        rows = np.memmap(waiting, np.float32, "r").reshape(len(names), -1)
        with path.open("wb") as file:
            np.savez(file, files=np.array(names), features=rows)


WRITERS: dict[str, Callable[[Path, Batches], None]] = {".parquet": _write_parquet, ".npz": _write_npz}


def write_features(path: Path, batches: Batches) -> None:
    """Write a stream of features as its suffix says, one of WRITERS; the file appears when all of it is on the disk.

    Raises UserError for another suffix, RunFailed when it can't be written.
    """
    if path.suffix not in WRITERS:
        raise unknown("suffix of a file of features", path.suffix, WRITERS)
    scratch = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[path.suffix](scratch, batches)
        os.replace(scratch, path)
    except OSError as error:
        raise RunFailed(f"can't write the features {path}: {error}; free some space, or name another place") from error
    finally:
        with suppress(OSError):
            scratch.unlink()
