"""Parquet files in the form of the Hugging Face hub: a column of encoded images, and one of labels."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from simclr.data.images import Files
from simclr.data.labels import IMAGE_NAMES, LABEL_NAMES, SPLIT_COLUMNS, contents_of, split_in, unclear
from simclr.data.layout import SPLITS, is_hidden, splits_named
from simclr.data.source import READING, Contents, Source, fingerprint, fingerprint_files
from simclr.errors import UserError
from simclr.progress import Observer

LARGEST_GROUP = 1 << 32  # bytes of images in a row group, two of which are in memory; usual ones have some 1 << 27


def load_parquet(
    path: Path,
    home: Path,
    observer: Observer,
    *,
    unlabelled: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> Source:
    """The images in a Parquet file, or in those of a folder. Their splits come from a column or the files' names."""
    root = path if path.is_dir() else path.parent
    names = [path.name] if path.is_file() else _files(path)

    def read() -> Contents:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        try:
            files = {name: ParquetFile(root / name, pre_buffer=False) for name in names}
            schema = files[names[0]].schema_arrow
            for name in names:
                if not files[name].schema_arrow.equals(schema):
                    raise UserError(f"{root / name} has other columns than {root / names[0]}: give one of them alone")
            features = features_of(schema)
            image = find_image_column(path, schema, image_column)
            label = None if unlabelled else find_label_column(path, schema, features, label_column)
            notes: list[str] = []
            split = _split_column(path, files, schema, split_column, notes)
            contents = contents_of(
                _splits(path, root, files, image, label, split), features.get(label or "", {}).get("names", ())
            )
        except pyarrow.ArrowException as error:
            raise UserError(f"can't read {path} as Parquet: {' '.join(str(error).split())}") from None
        columns = {"images": image, "labels": label, "splits": split}
        if label is None and not unlabelled and (others := _texts_and_integers(schema, {image, split})):
            notes.append(
                f"{path.name} is used without labels: no column has a usual name for them ({', '.join(LABEL_NAMES[:4])}"
                f", ...). To use one of {', '.join(others[:20])}, add --set data.label_column=NAME"
            )
        notes.append(
            f"{path.name}: " + ", ".join(f"{what} from column '{name}'" for what, name in columns.items() if name)
        )
        return contents._replace(notes=tuple(notes))

    options = unlabelled, image_column, label_column, split_column
    return Source(fingerprint(READING, fingerprint_files(root, names), options), read, origin=path.name)


def _files(folder: Path) -> list[str]:
    """The names of the Parquet files below a folder. Raises UserError if they are of several data sets."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*.parquet")))
    names = [path.as_posix() for path in paths if not any(map(is_hidden, path.parts))]
    places = sorted({name.rpartition("/")[0] for name in names if split_in(name.rpartition("/")[2])})
    if len(places) > 1:
        shown = ", ".join(repr(place) for place in places[:5])
        raise UserError(f"{folder} has Parquet files of several data sets, in {shown}: give the folder of one of them")
    return names


def features_of(schema: Any) -> dict[str, dict[str, Any]]:
    """What the library `datasets` noted about each column, such as the names of classes."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in noted.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _columns(schema: Any) -> list[str]:
    """The columns with their types, for errors."""
    return [f"{field.name} ({str(field.type)[:40]})" for field in schema]


def _one(path: Path, schema: Any, found: Sequence[str], usual: Sequence[str], what: str, setting: str) -> str | None:
    """The only column found, or the one with the most usual name."""
    best = next((name for name in usual if name in found), found[0] if len(found) == 1 else None)
    if best is None and found:
        raise unclear(
            path, f"has several columns that may hold the {what}: {', '.join(found)}", _columns(schema), setting
        )
    return best


def find_image_column(path: Path, schema: Any, name: str | None) -> str:
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = [
        field.name
        for field in schema
        if holds_bytes(field.type)
        or (types.is_struct(field.type) and any(part.name == "bytes" and holds_bytes(part.type) for part in field.type))
    ]
    if name is not None and name not in found:
        raise unclear(path, f"has no column '{name}' of encoded images", _columns(schema), "image_column")
    best = name or _one(path, schema, found, IMAGE_NAMES, "images", "image_column")
    if best is None:
        listed = ", ".join(schema.names[:20])
        raise UserError(f"{path} has no column with the bytes of image files, but {listed}: give files with images")
    return best


def _texts_and_integers(schema: Any, used: Collection[str | None] = ()) -> list[str]:
    """The columns of types that may name classes, without those that are used."""
    from pyarrow import types

    def is_label(kind: Any) -> bool:
        if types.is_dictionary(kind):
            return is_label(kind.value_type)
        tests = types.is_integer, types.is_boolean, types.is_string, types.is_large_string, types.is_string_view
        return any(test(kind) for test in tests)

    return [field.name for field in schema if field.name not in used and is_label(field.type)]


def find_label_column(path: Path, schema: Any, features: dict[str, dict[str, Any]], name: str | None) -> str | None:
    if name is not None and name not in schema.names:
        raise unclear(path, f"has no column '{name}'", _columns(schema), "label_column")
    classes = [column for column, feature in features.items() if feature.get("_type") == "ClassLabel"]
    usual = [column for column in _texts_and_integers(schema) if column.lower() in LABEL_NAMES]
    others = [field for field in schema if field.name.lower() in LABEL_NAMES and field.name not in usual]
    if name is None and not classes and not usual and others and others[0].name not in IMAGE_NAMES:
        raise UserError(
            f"column '{others[0].name}' of {path} has the type {others[0].type}, which names no classes: expected "
            f"texts or integers. Choose another column with --set data.label_column=NAME, or add --unlabelled"
        )
    return name or _one(path, schema, classes or usual, LABEL_NAMES, "labels", "label_column")


def _split_column(path: Path, files: dict[str, Any], schema: Any, name: str | None, notes: list[str]) -> str | None:
    """The column with the split of each image: the named one, or a usual one unless the names of files say it.

    Adds a note about a usual one that has no splits.
    """
    if name is not None and name not in schema.names:
        raise unclear(path, f"has no column '{name}'", _columns(schema), "split_column")
    if name is not None or len(set(map(split_in, files)) - {None}) > 1:
        return name
    usual = [column for column in _texts_and_integers(schema) if column.lower() in SPLIT_COLUMNS]
    for column in usual:
        values = _values(files, column)
        if splits_named(values):  # _splits refuses other values beside splits
            return column
        listed = ", ".join(f"'{value}'" for value in sorted(values)[:5])
        notes.append(f"warning: column '{column}' of {path.name} isn't used: {listed} are not splits")
    return None


def _values(files: dict[str, Any], column: str) -> set[str]:
    """The different values of a column, as texts."""
    return {str(value) for file in files.values() for value in file.read([column])[column].unique().to_pylist()}


def _splits(
    path: Path, root: Path, files: dict[str, Any], image: str, label: str | None, split: str | None
) -> dict[str, tuple[Files, list[object] | None]]:
    """The images and labels of each split."""
    rows: dict[str, list[str]] = {}
    labels: dict[str, list[object]] = {}
    splits = {name: split_in(name) for name in files}
    if unknown := [name for name, found in splits.items() if found is None] if any(splits.values()) else []:
        raise UserError(
            f"{root / unknown[0]} names no split, as others do: give the file or folder of one split, or rename it"
        )
    known = splits_named(_values(files, split) if split else SPLITS)
    for name, file in files.items():
        columns = [column for column in (label, split) if column is not None]
        table = file.read(columns=columns)
        own = table[split].to_pylist() if split else [splits[name] or "train"] * file.metadata.num_rows
        values = table[label].to_pylist() if label else own
        for row, (of, value) in enumerate(zip(own, values, strict=True)):
            if str(of) not in known:
                raise UserError(f"column '{split}' of {path} has '{of}': expected the splits {', '.join(SPLITS)}")
            rows.setdefault(known[str(of)], []).append(f"{name} row {row}")
            labels.setdefault(known[str(of)], []).append(value)
    read = _reader(root, files, image)
    return {of: (Files(names, read, forkable=True), labels[of] if label else None) for of, names in rows.items()}


def _reader(root: Path, files: dict[str, Any], image: str) -> Callable[[str], bytes]:
    """A function that returns the bytes of an image by its name. It keeps two row groups in memory.

    Raises UserError for a row group that is too large for that.
    """
    starts = {}
    for name, file in files.items():
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        if (largest := max((group.total_byte_size for group in groups), default=0)) > LARGEST_GROUP:
            raise UserError(
                f"{root / name} has a row group of {largest:,} bytes, more than fit into memory: write it again with "
                f"pyarrow.parquet.write_table(table, FILE, row_group_size=1000)"
            )
        starts[name] = np.cumsum([0] + [group.num_rows for group in groups]).tolist()
    lock = Lock()

    @lru_cache(maxsize=2)
    def group(process: int, name: str, index: int) -> Any:  # forked processes don't share Arrow's threads
        from pyarrow.parquet import ParquetFile

        with ParquetFile(root / name) as file:
            return file.read_row_group(index, columns=[image], use_threads=False)[image]

    def read(full_name: str) -> bytes:
        name, _, number = full_name.rpartition(" row ")
        index = bisect_right(starts[name], int(number)) - 1
        with lock:
            column = group(os.getpid(), name, index)
        value = column[int(number) - starts[name][index]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise OSError("only its path is in the file: write the images themselves, as push_to_hub does")
        return bytes(data)

    return read
