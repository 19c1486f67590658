"""Why figures of two runs can't be compared: what differs between their protocols, or between their images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.tables import is_choice, metric_label
from experiments.runs.encoders import DIVISION, UNKNOWN_DATA
from experiments.tracking.store import Record
from simclr.data.dataset import DataConfig
from simclr.evaluate.evaluations import EVALUATIONS, evaluation_of
from simclr.settings import flatten

MOST_REASONS = 3
SIZES = {  # what a protocol says about the number of images in each part
    "data.train": "the number of training images",
    "data.held out of train": "the number of images held out of training",
    "data.val": "the number of validation images",
    "data.test": "the number of test images",
}
HASHES = {"data.digest": "the digest of the images and their labels", "data.split": "the digest of their split"}
OTHER = ("normalize", "check")  # settings of images that don't change them
LABELS = ("labels", "label_column", "unlabelled")  # settings of images that an evaluation may change
DIVIDING = {f"data.{name}" for name in ("limit", *DIVISION)}  # settings on which the images of each part depend


def incomparable(records: Sequence[Record]) -> Iterator[str]:
    """A sentence for the metrics that two runs measured under protocols that differ in the same way."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for metric in dict.fromkeys(name for record in records for name in record.protocols if not is_choice(name)):
        first: dict[str, Record] = {}  # by protocol
        for record in records:
            if metric in record.protocols:
                first.setdefault(record.protocols[metric], record)
        one, *others = first.values()
        for other in others:
            found.setdefault((one.name, other.name, _difference(metric, one, other)), []).append(metric_label(metric))
    for (run, another, why), metrics in found.items():
        yield f"{', '.join(metrics)} can't be compared between {run} and {another}: {why}"


def _difference(metric: str, one: Record, other: Record) -> str:
    """What differs between the protocols of two runs, in a few words."""
    tables = [_protocol(record, metric) for record in (one, other)]
    differing = [name for name in tables[0] | tables[1] if tables[0].get(name) != tables[1].get(name)]
    if set(SIZES) & set(differing):  # a hash says less
        differing = [name for name in differing if name not in HASHES]
    words = SIZES | HASHES
    reasons = [f"{words.get(name, name)} is {tables[0].get(name)} and {tables[1].get(name)}" for name in differing]
    if differing and differing[0] in words and (settings := _data_settings(one, other)):
        reasons[0] += f" ({', '.join(settings)})"
    reasons = (reasons if all(tables) else []) or _trained_otherwise(metric, one, other)
    return _first(reasons) or f"their protocols are {one.protocols[metric]} and {other.protocols[metric]}"


def _first(reasons: Sequence[str]) -> str:
    more = f", and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
    return f"{', '.join(reasons[:MOST_REASONS])}{more}"


def image_difference(one: Record, other: Record) -> str:
    """What differs between the images that two runs are evaluated on, or classified by, as far as their records say it.

    Empty if nothing does, so that the same evaluation of both gives figures that can be compared.
    """
    settings = _data_settings(one, other)
    if settings:
        return _first([f"{key} is {_data(one, key)} and {_data(other, key)}" for key in settings])
    return "" if _same_images(one, other) else "the images or their labels have changed"


def _same_images(one: Record, other: Record) -> bool:
    """Whether two runs have the same images, or may have them: those of one folder can get labels later."""
    digests = {record.tags.get("data_digest", UNKNOWN_DATA) for record in (one, other)} - {UNKNOWN_DATA}
    labels = {tuple(_data(record, f"data.{name}") for name in LABELS) for record in (one, other)}
    return len(digests) < 2 or (len(labels) > 1 and _data(one, "data.dir") == _data(other, "data.dir"))


def _data_settings(one: Record, other: Record) -> list[str]:
    """The settings that differ between the images of two runs: those that divide them, if the images are the same."""
    names = [f"data.{name}" for name in DataConfig.model_fields if name not in OTHER]
    differing = [name for name in names if _data(one, name) != _data(other, name)]
    return [name for name in differing if name in DIVIDING] if _same_images(one, other) else differing


def _data(record: Record, setting: str) -> str:
    """A setting of a run's images. Those that are not recorded have their default."""
    default = DataConfig.model_fields[setting.removeprefix("data.")].default
    return record.params.get(setting, "not set" if default is None else str(default))


def _trained_otherwise(metric: str, one: Record, other: Record) -> list[str]:
    """The settings of their training that differ between two runs, of those that a metric depends on."""
    name = evaluation_of(metric)
    depends_on = EVALUATIONS[name].training_settings if name is not None else ()
    return [
        f"{key} is {value} and {other.params[key]}"
        for key, value in one.params.items()
        if key.startswith(depends_on) and value != other.params.get(key, value)
    ]


def _protocol(record: Record, metric: str) -> dict[str, Any]:
    """The settings that a metric depends on, as they were kept with its run; empty if they are unknown."""
    name = evaluation_of(metric)
    path = record.find_artifact("-".join([*metric.split("/")[:-1], f"{name}-protocol.json"]))
    if name is None or path is None:
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    read = ("version", "layer", "features", "data", EVALUATIONS[name].section_name, *EVALUATIONS[name].reads)
    return {key: value for key, value in flatten(table).items() if key.partition(".")[0] in read}
