"""Decode all images of a data set into one array, with one range of values for all images of more than 8 bits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from simclr.data.images import (
    SAMPLED,
    Array,
    BadFile,
    Decoding,
    Files,
    Outcome,
    crop_square,
    decode_files,
    measure_range,
)
from simclr.data.source import Contents, Split
from simclr.data.wide import find_range, kind_of_array, sample_array, scale
from simclr.errors import UserError
from simclr.progress import Observer


class Filled(NamedTuple):
    """How images were decoded, the rows whose images can't be read, and sentences about what was done."""

    decoding: Decoding
    bad: dict[int, BadFile]
    notes: list[str]


def fill(contents: Contents, images: Array, decoding: Decoding, observer: Observer) -> Filled:
    """Decode all splits, one after the other, into the rows of `images`.

    If there are images of more than 8 bits and no range is set, it is measured on the training images, and returned. If
    there are none, the range that is returned is None.
    Raises UserError if the images don't have the same kind of values then.
    """
    outcomes = _fill_splits(contents, images, decoding, observer)
    notes = []
    kinds = {kind for outcome in outcomes.values() for kind in outcome.wide.values()}
    if kinds and decoding.range is None:
        images_to_measure = contents.splits["train"].images
        if isinstance(images_to_measure, Files):
            _refuse_mixture(contents, outcomes)
            limits = measure_range(images_to_measure, observer)
        else:
            sampled = images_to_measure[:: max(1, len(images_to_measure) // SAMPLED)]
            limits = find_range([sample_array(image.transpose(1, 2, 0)) for image in sampled])
        notes.append(
            f"values {limits[0]:g} to {limits[1]:g} of {' and '.join(sorted(kinds))} images are mapped to 0 to 255 "
            f"(data.range)"
        )
        decoding = decoding._replace(range=limits)
        outcomes = _fill_splits(contents, images, decoding, observer)
    bad, start = {}, 0
    for name, split in contents.splits.items():
        for row, reason in outcomes[name].failed.items():
            bad[start + row] = BadFile(_files(split).names[row], reason)
        start += len(split.labels)
    if pages := sum(len(outcome.more_pages) for outcome in outcomes.values()):
        notes.append(f"{pages:,} of {len(images):,} files have several pages or frames: only the first is used")
    return Filled(decoding if kinds else decoding._replace(range=None), dict(sorted(bad.items())), notes)


def _files(split: Split) -> Files:
    assert isinstance(split.images, Files)
    return split.images


def _fill_splits(contents: Contents, images: Array, decoding: Decoding, observer: Observer) -> dict[str, Outcome]:
    outcomes, end = {}, 0
    for name, split in contents.splits.items():
        start, end = end, end + len(split.labels)
        outcomes[name] = _fill_split(split, images[start:end], decoding, observer, f"decoding {name}")
    return outcomes


def _fill_split(split: Split, out: Array, decoding: Decoding, observer: Observer, what: str) -> Outcome:
    if isinstance(split.images, Files):
        return decode_files(split.images, out, decoding, observer, what)
    kind = kind_of_array(split.images.dtype)
    if kind is not None and decoding.range is None:
        return Outcome({}, {0: kind}, [])
    if kind is None and split.images.shape[2:] == (decoding.side, decoding.side):
        out[:] = split.images
        return Outcome({}, {}, [])
    for row, image in enumerate(split.images):
        pixels = image if kind is None or decoding.range is None else scale(image, decoding.range)
        out[row] = crop_square(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), decoding.side)
    return Outcome({}, {} if kind is None else {0: kind}, [])


def _refuse_mixture(contents: Contents, outcomes: dict[str, Outcome]) -> None:
    """Raise UserError, naming a file of each kind, unless all images have integers of more than 8 bits or fractions."""
    examples: dict[str, str] = {}
    counts: dict[str, int] = {}
    for name, outcome in outcomes.items():
        files = _files(contents.splits[name])
        kinds = dict.fromkeys(np.setdiff1d(np.arange(len(files.names)), list(outcome.failed)).tolist(), "8-bit")
        for row, kind in sorted((kinds | outcome.wide).items()):
            examples.setdefault(kind, files.names[row])
            counts[kind] = counts.get(kind, 0) + 1
    if len(examples) > 1 and {"8-bit", "floating-point"} & set(examples):
        listed = ", ".join(f"{count:,} {kind} (such as {examples[kind]})" for kind, count in counts.items())
        (rarest, few) = min(counts.items(), key=lambda item: item[1])
        those = "it" if few == 1 else f"these {few:,}"
        out = f"Leave {those} out ({examples[rarest]}{', ...' * (few > 1)})" if 2 * few < sum(counts.values()) else ""
        raise UserError(
            f"the images have different kinds of values: {listed}. {out + ', or convert' if out else 'Convert'} all to "
            f"one kind. Or say which value is black and which is white in images of more than 8 bits, such as --set "
            f"'data.range=[0, 65535]'"
        )
