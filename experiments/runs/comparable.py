"""Why figures of two runs can't be compared: what differs between the protocols under which they were measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.tables import is_choice, metric_label
from experiments.tracking.store import Record
from simclr.evaluate.evaluations import EVALUATIONS, evaluation_of
from simclr.settings import flatten

MOST_REASONS = 3
SIZES = ("data.train", "data.val", "data.test")  # of a protocol: how many images each part has


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
    if "data.split" in differing and set(SIZES) & set(differing):  # a hash, which says less
        differing.remove("data.split")
    reasons = [f"{name} is {tables[0].get(name)} and {tables[1].get(name)}" for name in differing]
    reasons = (reasons if all(tables) else []) or _trained_otherwise(metric, one, other)
    if not reasons:
        return f"their protocols are {one.protocols[metric]} and {other.protocols[metric]}"
    more = f", and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
    return f"{', '.join(reasons[:MOST_REASONS])}{more}"


def _trained_otherwise(metric: str, one: Record, other: Record) -> list[str]:
    """The settings of their training that differ between two runs, of those that a metric depends on."""
    name = evaluation_of(metric)
    reads = EVALUATIONS[name].config if name is not None else ()
    return [
        f"{key} is {value} and {other.params[key]}"
        for key, value in one.params.items()
        if key.startswith(reads) and value != other.params.get(key, value)
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
