"""How well figures that need no labels order the user's own encoders by their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from analysis.agreement import FEWEST, kendall
from analysis.tables import metric_label
from experiments.tracking.store import ENCODERS, Record, Store
from simclr.errors import UserError

# How the names of figures without labels start: those of --no-labels, --spectrum and --lidar.
LABEL_FREE = ("contrastive_", "alignment_", "uniformity_", "effective_rank_", "spectrum_", "lidar_")


KINDS = (*ENCODERS, "eval")  # of runs with figures of an encoder


class Ranking(NamedTuple):
    """Agreement of each measure with an accuracy, the best first, and what can't be said."""

    rows: list[dict[str, Any]]  # measure, accuracy, tau, low, high, n, protocol
    notes: list[str]


def rank_measures(store: Store, accuracy: str, names: Sequence[str] = ()) -> Ranking:
    """Kendall's tau of each measure with the accuracy, over finished encoders: all, or those of runs or studies.

    Only encoders with equal protocols of the measure, and of the accuracy, are ordered together, which implies the same
    images. Raises UserError if a name is unknown, or if nothing can be ordered.
    """
    records = [each for each in store.records() if each.kind in KINDS and each.finished]
    if names:
        records = _named(names, records, store)
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        for measure, protocol in record.protocols.items():
            if measure.startswith(LABEL_FREE) and accuracy in record.protocols:
                groups.setdefault((measure, protocol, record.protocols[accuracy]), []).append(record)
    if not groups:
        raise UserError(
            f"no encoder has both {accuracy} and a figure without labels: evaluate some with `simclr eval RUN --linear "
            f"--knn --no-labels --spectrum --lidar`"
        )
    rows = []
    for (measure, protocol, _), members in groups.items():
        figures, accuracies = ([each.metrics[f"eval/{name}"] for each in members] for name in (measure, accuracy))
        found = kendall(figures, accuracies)._asdict()
        rows.append({"measure": measure, "accuracy": accuracy, **found, "protocol": protocol})
    enough = [row for row in rows if row["tau"] == row["tau"]]
    if not enough:
        most = max(row["n"] for row in rows)
        raise UserError(
            f"at most {most} encoders have {metric_label(accuracy)} and a figure without labels under the same "
            f"protocols, which is too few to order (at least {FEWEST}, not all equal): evaluate more of them"
        )
    return Ranking(sorted(enough, key=lambda row: -abs(row["tau"])), _notes(rows, enough))


def _named(names: Sequence[str], records: Sequence[Record], store: Store) -> list[Record]:
    """The encoders of these runs and studies."""
    found: dict[str, Record] = {}
    for name in names:
        groups = {each.id for each in store.records() if each.kind in ("study", "search") and each.is_called(name)}
        chosen = [each for each in records if each.is_called(name) or each.parent in groups]
        found |= {each.id: each for each in chosen or [store.find(name, KINDS)]}
    return list(found.values())


def _notes(rows: Sequence[dict[str, Any]], enough: Sequence[dict[str, Any]]) -> list[str]:
    """How to read the table, and what was left out."""
    notes = [
        "Kendall's tau is 1 if a measure orders the encoders as the accuracy does, -1 if it orders them the other way "
        "round, and about 0 if it says nothing. The interval has 95 % confidence, and treats encoders as independent: "
        "those that differ only in their seed say less than their number."
    ]
    sizes = [row["n"] for row in rows if row not in enough]
    if sizes:
        notes.append(
            f"Left out: {len(sizes)} groups of {min(sizes)} to {max(sizes)} encoders that were measured under other "
            f"protocols (images, views or settings), because they are fewer than {FEWEST} or all equal."
        )
    return notes
