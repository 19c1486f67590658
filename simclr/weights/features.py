"""Write features of image files to a Parquet or npz file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from simclr.data.images import Array
from simclr.errors import UserError
from simclr.files import written_whole

Batches = Iterator[tuple[list[str], Array]]  # file names, and their features: float32, names x D


def _write_parquet(path: Path, batches: Batches) -> None:
    """Columns `file` and `features` (list<float32>[D]). Each batch is a row group, and only one is in memory."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    first = next(batches, None)
    if first is None:
        raise _no_images()
    width = first[1].shape[1]
    schema = pyarrow.schema({"file": pyarrow.string(), "features": pyarrow.list_(pyarrow.float32(), width)})
    with ParquetWriter(path, schema) as writer:
        for files, features in chain([first], batches):
            lists = pyarrow.FixedSizeListArray.from_arrays(features.reshape(-1), width)
            writer.write_table(pyarrow.table([files, lists], schema=schema))


def _write_npz(path: Path, batches: Batches) -> None:
    """Arrays `files` and `features` (float32 N x D).

    An array's file starts with its length, so the features are first collected in a temporary file.
    """
    names: list[str] = []
    with tempfile.TemporaryFile(dir=path.parent) as scratch:
        for files, features in batches:
            names += files
            scratch.write(features.tobytes())
        scratch.flush()
        if not names:
            raise _no_images()
        rows = np.memmap(scratch, np.float32, "r").reshape(len(names), -1)
        with path.open("wb") as file:
            np.savez(file, files=np.array(names), features=rows)


def _no_images() -> UserError:
    return UserError("none of the files can be read as an image: give at least one that can")


# By suffix of the file.
WRITERS: dict[str, Callable[[Path, Batches], None]] = {".parquet": _write_parquet, ".npz": _write_npz}


def write_features(path: Path, batches: Batches) -> None:
    """Write features to a file whose suffix is one of WRITERS. The file gets its name once it is complete on disk.

    Raises UserError for any other suffix, and RunFailed if the file can't be written.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"can't write '{path.name}': expected a name ending in {' or '.join(WRITERS)}")
    with written_whole(path) as scratch:
        WRITERS[path.suffix](scratch, batches)
