"""Data sets of the Hugging Face hub, or saved by the library `datasets`, which the extra `hf` installs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simclr.data.images import Files, join_files
from simclr.data.labels import contents_of, split_in
from simclr.data.parquet import features_of, find_image_column, find_label_column
from simclr.data.source import READING, Contents, Source, fingerprint, fingerprint_files
from simclr.errors import UserError
from simclr.progress import Observer

PREFIX = "hf:"


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    if (folder / "dataset_dict.json").is_file():
        return True
    return all((folder / name).is_file() for name in ("state.json", "dataset_info.json"))


def load_hub(
    path: Path,
    home: Path,
    observer: Observer,
    *,
    unlabelled: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """The images of hf:NAME, or hf:NAME:CONFIG, or of a folder that `save_to_disk` wrote.

    A name on the hub identifies its images, so later versions of it are not noticed.
    """
    name, _, config = str(path).removeprefix(PREFIX).partition(":")
    folder = Path(name)
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    place = fingerprint_files(folder, files) if folder.is_dir() else name

    def read() -> Contents:
        splits = _open(path, name, config)
        first = next((data for split, data in splits.items() if split_in(split) == "train"), None)
        first = first if first is not None else next(iter(splits.values()))
        schema = first.features.arrow_schema
        image = find_image_column(path, schema, image_column)
        label = None if unlabelled else find_label_column(path, schema, features_of(schema), label_column)
        notes = []
        parts: dict[str, list[str]] = {}  # names of splits
        for split in splits:
            if (own := split_in(split)) is None and len(splits) > 1:
                notes.append(f"left out the split '{split}' of {path}, which is none of train, val and test")
            else:
                parts.setdefault(own or "train", []).append(split)
        found = {}
        for part, names in parts.items():
            if len(names) > 1:
                notes.append(f"the splits {' and '.join(names)} of {path} are all {part}: they are joined")
            if label and (without := [split for split in names if label not in splits[split].column_names]):
                notes.append(f"the split {without[0]} of {path} has no column '{label}', so it has no labels")
            for split in names:
                _check_features(path, first, splits[split], split, image, label)
            found[part] = (
                join_files(_files(splits[split], split, image) for split in names),
                ([each for split in names for each in _labels(splits[split], label)] if label else None),
            )
        labels = f"labels from column '{label}'" if label else "without labels"
        notes.append(f"{path}: images from column '{image}', {labels}")
        contents = contents_of(found, features_of(schema).get(label or "", {}).get("names", ()))
        return contents._replace(notes=tuple(notes))

    options = config, unlabelled, image_column, label_column
    return Source(fingerprint(PREFIX, READING, place, options), read, origin=str(path))


def _open(path: Path, name: str, config: str) -> dict[str, Any]:
    """The splits of a data set by name. Raises UserError where the library can't load it."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{path} is read with the library datasets: pip install 'simclr-suite[hf]'") from None
    try:
        found = datasets.load_from_disk(name) if is_saved(Path(name)) else datasets.load_dataset(name, config or None)
    except Exception as error:  # of many kinds: no network, an unknown name, a script, several configs
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"can't load {path} with the library datasets: {reason}. Expected hf:NAME or hf:NAME:CONFIG as on the hub, "
            f"or hf:FOLDER"
        ) from None
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _check_features(path: Path, first: Any, data: Any, split: str, image: str, label: str | None) -> None:
    """Raise UserError if a split lacks images, or has other class names than the first split."""
    if image not in data.column_names:
        raise UserError(f"the split '{split}' of {path} has no column '{image}', which has the images of the others")
    names = getattr(first.features.get(label), "names", None)
    if label in data.column_names and getattr(data.features[label], "names", None) != names:
        raise UserError(
            f"the split '{split}' of {path} has other class names in column '{label}' than the first split: save all "
            f"splits with the same class names"
        )


def _labels(data: Any, label: str) -> Sequence[object]:
    """The labels of a split, all None if it has none."""
    return data[label] if label in data.column_names else [None] * len(data)


def _files(data: Any, split: str, image: str) -> Files:
    from datasets import Image

    encoded = data.select_columns([image])
    if isinstance(data.features[image], Image):
        encoded = encoded.cast_column(image, Image(decode=False))
    rows = {f"{split} row {row}": row for row in range(len(data))}

    def read(name: str) -> bytes:
        value = encoded[rows[name]][image]
        if isinstance(value, dict):
            value = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
        return bytes(value)

    return Files(list(rows), read)
