"""Write features of image files to a Parquet, npz or CSV file, and read them from Parquet."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile, is_zipfile

import numpy as np

from simclr.data.images import Array
from simclr.errors import UserError
from simclr.files import written_whole

Batches = Iterator[tuple[list[str], Array]]  # file names, and their features: float32, names x D
COLUMNS = ["file", "features"]
ENCODER = b"simclr_encoder"  # the key of the encoder's fingerprint in the metadata of a Parquet file


class Features(NamedTuple):
    """Features of image files (float32, names x D), and the fingerprint of the encoder, "" if the file has none."""

    names: list[str]
    features: Array
    encoder: str


def _write_parquet(path: Path, batches: Batches, encoder: str) -> None:
    """Columns `file` and `features` (list<float32>[D]). Each batch is a row group, and only one is in memory."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    first = next(batches, None)
    if first is None:
        raise _no_images()
    width = first[1].shape[1]
    types = [pyarrow.string(), pyarrow.list_(pyarrow.float32(), width)]
    schema = pyarrow.schema(zip(COLUMNS, types, strict=True), metadata={ENCODER: encoder})
    with ParquetWriter(path, schema) as writer:
        for files, features in chain([first], batches):
            lists = pyarrow.FixedSizeListArray.from_arrays(features.reshape(-1), width)
            writer.write_table(pyarrow.table([files, lists], schema=schema))


def _write_npz(path: Path, batches: Batches, encoder: str) -> None:
    """Arrays `files`, `features` (float32 N x D) and `encoder`, a text.

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
            np.savez(file, files=np.array(names), features=rows, encoder=np.array(encoder))


def _write_csv(path: Path, batches: Batches, encoder: str) -> None:  # noqa: ARG001 (it has no place for it)
    """Columns `file`, `0`, `1`, ..., one for each feature."""
    first = next(batches, None)
    if first is None:
        raise _no_images()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *range(first[1].shape[1])])
        for files, features in chain([first], batches):
            writer.writerows([name, *row] for name, row in zip(files, features.astype(str).tolist(), strict=True))


def _no_images() -> UserError:
    return UserError("none of the files can be read as an image: give at least one that can")


# By suffix of the file.
WRITERS: dict[str, Callable[[Path, Batches, str], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".csv": _write_csv,
}


def write_features(path: Path, batches: Batches, encoder: str) -> None:
    """Write features to a file whose suffix is one of WRITERS. The file gets its name once it is complete on disk.

    `encoder` is the fingerprint of the encoder, by which readers of the file recognise it. Raises UserError for any
    other suffix, and RunFailed if the file can't be written.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"can't write '{path.name}': expected a name ending in {' or '.join(WRITERS)}")
    with written_whole(path) as scratch:
        WRITERS[path.suffix](scratch, batches, encoder)


def holds_features(path: Path) -> bool:
    """Whether a path is a Parquet file of features, as `write_features` writes it.

    Raises UserError for features in another of its forms, which can't be read.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema

    if path.is_file() and _starts_as_features(path):
        raise UserError(f"{path} is a table of features: expected the .parquet file that `simclr embed` writes")
    try:
        return path.suffix == ".parquet" and path.is_file() and bool(read_schema(path).names == COLUMNS)
    except ArrowException:
        return False


def _starts_as_features(path: Path) -> bool:
    """Whether a .csv or .npz file is one of `write_features`."""
    if path.suffix == ".csv":
        with path.open("rb") as file:
            return file.readline(20).startswith(b"file,0")
    if path.suffix == ".npz" and is_zipfile(path):
        with ZipFile(path) as archive:
            return archive.namelist() == ["files.npy", "features.npy", "encoder.npy"]
    return False


def read_features(path: Path) -> Features:
    """Read a Parquet file of features. Raises UserError if it is damaged."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        table = read_table(path)
        rows = table["features"].combine_chunks()
        features = np.array(rows.flatten(), np.float32).reshape(len(rows), -1)
    except (ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"can't read the features in {path}: {reason}. Write them again with `simclr embed`") from None
    return Features(table["file"].to_pylist(), features, (table.schema.metadata or {}).get(ENCODER, b"").decode())
