"""WebDataset: tar archives in which the files of a sample share a key, such as 0001.jpg and 0001.cls."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from simclr.data.images import Files
from simclr.data.labels import LABEL_NAMES, as_text, contents_of, split_in
from simclr.data.layout import is_hidden
from simclr.data.source import Contents
from simclr.data.suffixes import IMAGE_SUFFIXES
from simclr.errors import UserError

LABEL_KINDS = ("cls", "json", "txt")  # of files that may hold a label, the surest one first
LONGEST_LABEL = 100  # characters; a longer text is a caption


class _Sample(NamedTuple):
    shard: str
    files: dict[str, str]  # the name of each kind of file: jpg, cls, left.png
    image: str = ""

    @property
    def images(self) -> list[str]:
        """The kinds of its files that are images."""
        return [kind for kind in self.files if f".{kind.rpartition('.')[2]}" in IMAGE_SUFFIXES]


def is_shard(names: Sequence[str]) -> bool:
    """Whether the files of a single archive are samples: most images have a file with the same key for their label.

    Texts and JSON lie beside images in other archives too, so with them the images must lie in one folder.
    """
    found = [sample for sample in _samples("", names) if sample.images]
    one_folder = len({sample.files[sample.images[0]].rpartition("/")[0] for sample in found}) == 1
    kinds = set(LABEL_KINDS if one_folder else LABEL_KINDS[:1])
    return 2 * sum(not kinds.isdisjoint(sample.files) for sample in found) > len(found)


def contents_of_shards(
    shards: Mapping[str, Files],
    *,
    unlabelled: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[Contents, str]:
    """The images and labels in shards by name, and a sentence that says what was understood.

    Splits come from the names of the shards. `image_column` is the kind of file that is the image (jpg, left.png), and
    `label_column` the kind that holds the label, or a key in its JSON. Raises UserError where they are unclear.
    """
    samples = _with_image(
        [each for shard, files in shards.items() for each in _samples(shard, files.names)], image_column
    )
    found = None if unlabelled else _labels(shards, samples, label_column)
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(split_in(sample.shard) or "train", []).append(row)
    names = [f"{sample.shard}/{sample.image}" for sample in samples]
    places = dict(zip(names, samples, strict=True))

    def read(name: str) -> bytes:
        return shards[places[name].shard].read(places[name].image)

    splits = {
        split: (
            Files([names[row] for row in own], read, forkable=True),
            [found[1][row] for row in own] if found else None,
        )
        for split, own in rows.items()
    }
    origin = f"labels from {found[0]}" if found else "without labels"
    plural = "s" * (len(shards) != 1)
    return contents_of(splits), f"{len(samples):,} samples in {len(shards):,} shard{plural}, {origin}"


def _samples(shard: str, names: Sequence[str]) -> list[_Sample]:
    """The samples of a shard. Their key is the folder and all before the first dot of the name."""
    samples: dict[str, _Sample] = {}
    for name in names:
        if not any(is_hidden(part) for part in name.split("/")):
            folder, _, own = name.rpartition("/")
            key, _, kind = own.partition(".")
            samples.setdefault(f"{folder}/{key}", _Sample(shard, {})).files[kind.lower()] = name
    return list(samples.values())


def _with_image(samples: Sequence[_Sample], kind: str | None) -> list[_Sample]:
    """The samples that have an image. It is the file of a kind, or by default the only image of the sample."""
    if kind is None and any(len(sample.images) > 1 for sample in samples):
        kinds = ", ".join(sorted({kind for sample in samples for kind in sample.images}))
        raise UserError(f"samples have several images ({kinds}): choose one with --set data.image_column=KIND")
    found = [
        sample._replace(image=sample.files[own])
        for sample in samples
        if (own := kind or next(iter(sample.images), "")) in sample.files
    ]
    if not found:
        raise UserError(f"no sample has {f'a file of kind {kind}' if kind else 'an image'}: check data.image_column")
    return found


def _labels(
    shards: Mapping[str, Files], samples: Sequence[_Sample], column: str | None
) -> tuple[str, list[str]] | None:
    """What the labels come from, and the label of each sample. None if no kind of file holds labels."""
    kinds = Counter(kind for sample in samples for kind in sample.files)
    for kind in [column] if column in kinds else [kind for kind in LABEL_KINDS if kind in kinds]:
        assert kind is not None
        texts = [
            shards[sample.shard].read(sample.files[kind]).decode(errors="replace").strip()
            if kind in sample.files
            else ""
            for sample in samples
        ]
        if kind == "json":
            parsed = [_parse(text) for text in texts]
            keys = {key for each in parsed for key in each}
            key = next((name for name in (column, *LABEL_NAMES) if name in keys), None)
            if key is not None and (column is None or key == column):
                return f"'{key}' in .json files", [as_text(each.get(key)) for each in parsed]
        elif kind != "txt" or kind == column or _are_classes(texts):
            return f".{kind} files", texts
    if column is not None:
        raise UserError(f"no sample has labels called '{column}': expected one of {', '.join(sorted(kinds))}, or a key")
    return None


def _are_classes(texts: Sequence[str]) -> bool:
    """Whether texts repeat and are short, unlike captions."""
    return 2 * len(set(texts)) <= len(texts) and max(map(len, texts)) <= LONGEST_LABEL


def _parse(text: str) -> dict[str, object]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        raise UserError(f"the .json file of a sample is not JSON: {text[:60]}") from None
    return found if isinstance(found, dict) else {"label": found}
