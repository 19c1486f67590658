"""How well figures that need no labels order the user's own encoders by their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple

from analysis.agreement import FEWEST_PAIRS, kendall
from analysis.findings import count
from analysis.tables import is_on_validation, metric_label
from experiments.tracking.store import ENCODERS, GROUPS, Record, Store
from simclr.errors import UserError

# How the names of figures without labels start: those of --no-labels, --spectrum and --lidar.
LABEL_FREE = ("contrastive_", "softmax_", "alignment_", "uniformity_", "effective_rank_", "spectrum_", "lidar_")
KINDS = (*ENCODERS, "eval")  # of runs with figures of an encoder
REPEATED = ("seed", "data.split_seed", "name")  # settings in which the seeds of one config differ


class Ranking(NamedTuple):
    """Agreement of each measure with an accuracy, the best first, and what can't be said."""

    rows: list[dict[str, Any]]  # measure, accuracy, tau, low, high, n, encoders, protocol
    notes: list[str]


def rank_measures(store: Store, accuracy: str, names: Sequence[str] = ()) -> Ranking:
    """Kendall's tau of each measure with the accuracy, over finished encoders: all, or those of runs or studies.

    Only encoders with equal protocols of the measure, and of the accuracy, are ordered together, which implies the same
    images. Those that differ only in their seed count as one, with their means, because an interval that took them for
    independent would be far too narrow. Raises UserError if a name is unknown, or if nothing can be ordered.
    """
    everything = store.records()
    records = [each for each in everything if each.kind in KINDS and each.finished]
    if names:
        records = _named(names, records, everything, store)
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        for measure, protocol in record.protocols.items():
            if measure.startswith(LABEL_FREE) and accuracy in record.protocols:
                groups.setdefault((measure, protocol, record.protocols[accuracy]), []).append(record)
    if not groups:
        raise UserError(
            f"no encoder has both {accuracy} and a label-free metric: evaluate some with {_commands(accuracy)}"
        )
    rows = []
    for (measure, protocol, _), members in groups.items():
        found = kendall(_means(members, f"eval/{measure}"), _means(members, f"eval/{accuracy}"))._asdict()
        row = {"measure": measure, "accuracy": accuracy, **found, "encoders": len(members), "protocol": protocol}
        rows.append(row)
    enough = [row for row in rows if row["tau"] == row["tau"]]
    if not enough:
        most = max(row["n"] for row in rows)
        raise UserError(
            f"ranking needs at least {FEWEST_PAIRS} encoders that differ in more than their seed, with "
            f"{metric_label(accuracy)} and a label-free metric under the same protocols, not all equal, but there are "
            f"at most {most}: evaluate more of them"
        )
    return Ranking(sorted(enough, key=lambda row: -abs(row["tau"])), _notes(rows, enough))


def _means(records: Sequence[Record], metric: str) -> list[float]:
    """The mean of a metric over the seeds of each config."""
    values: dict[object, list[float]] = {}
    for record in records:
        settings = tuple(sorted((name, value) for name, value in record.params.items() if name not in REPEATED))
        config = settings if "config_key" in record.tags else record.id  # an imported encoder has none
        values.setdefault(config, []).append(record.metrics[metric])
    return [mean(each) for each in values.values()]


def _commands(accuracy: str) -> str:
    """The commands that measure an accuracy and the label-free metrics, which are the same whatever images the accuracy
    is measured on."""
    if is_on_validation(accuracy):
        return "`simclr eval RUN --linear --knn --on val` and `simclr eval RUN --no-labels --spectrum --lidar`"
    return "`simclr eval RUN --linear --knn --no-labels --spectrum --lidar`"


def _named(names: Sequence[str], records: Sequence[Record], everything: Sequence[Record], store: Store) -> list[Record]:
    """The encoders of these runs and studies, also those that a study or search took over from another."""
    found: dict[str, Record] = {}
    for name in names:
        groups = {each.id for each in everything if each.kind in GROUPS and each.is_called(name)}
        members = [each for each in everything if each.parent in groups]
        encoders = {each.tags.get("copied_from", each.id) for each in members}
        chosen = [each for each in records if each.is_called(name) or each.id in encoders]
        found |= {each.id: each for each in chosen or [store.find(name, KINDS)]}
    return list(found.values())


def _notes(rows: Sequence[dict[str, Any]], enough: Sequence[dict[str, Any]]) -> list[str]:
    """How to read the table, and what was left out."""
    notes = [
        "Kendall's tau is 1 if a metric ranks the encoders as the accuracy does, -1 if it ranks them the other way "
        "round, and about 0 if it says nothing. Encoders that differ only in their seed count as one, with the mean of "
        "their figures."
    ]
    sizes = [row["n"] for row in rows if row not in enough]
    if sizes:
        span = " to ".join(map(str, sorted({min(sizes), max(sizes)})))
        notes.append(
            f"Left out: {count(len(sizes), 'group')} of encoders ({span} in each) that share a protocol, because fewer "
            f"than {FEWEST_PAIRS} can't be ranked, or because all of their values are equal."
        )
    return notes
