"""`simclr runs`: a table of the record of all runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from math import inf, nan
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from experiments.commands import complete
from experiments.commands.output import Json, show
from simclr.errors import UserError, nearest, unknown
from simclr.progress import TRIAL_METRIC, knn_metric

if TYPE_CHECKING:
    from experiments.tracking.store import Record

KINDS = ("pretrain", "import", "eval", "study", "cell", "search", "trial")
COLUMNS = ("name", "kind", "status", "started", "loss", "val_knn", "knn", "linear")  # to sort by: keys of the data
TITLES = ("name", "id", "kind", "status", "started", "loss", "kNN", "linear")
VALIDATION = "*"  # behind a figure on the validation images
DIGITS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def runs(
    study: Annotated[
        str | None,
        typer.Option(help="Only the runs of this study or search.", show_default=False, autocompletion=complete.groups),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help=f"Only runs of this kind: {', '.join(KINDS)}.", show_default=False, autocompletion=complete.of(KINDS)
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Show at most this many runs.", show_default=False)
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help=f"Column to sort by, the best or newest first: {', '.join(COLUMNS)}.",
            autocompletion=complete.of(COLUMNS),
        ),
    ] = "started",
    as_json: Json = False,
) -> None:
    """List all runs, newest first.

    The kind pretrain is a trained encoder, import an encoder from another program, and eval an evaluation of a file. A
    study or a search is a run too. Its cells or trials are its encoders, listed as pretrain; the kinds cell and trial
    are copies of reused runs, or failed attempts. The loss is the training loss. kNN and linear are accuracies on the
    test images (`simclr eval`). If a run has none, its accuracies on the validation images are shown, marked with *:
    from a study or a search, or from kNN during training (val_knn).

    Example: simclr runs --kind pretrain --sort linear --limit 10
    """
    from experiments.tracking.local import runs_on_disk
    from experiments.tracking.naming import no_runs
    from experiments.tracking.store import Store, home

    for what, name, names in (("kind", kind, KINDS), ("column", sort, COLUMNS)):
        if name is not None and name not in names:
            raise unknown(what, name, names)
    folder = home()
    records = [] if runs_on_disk(KINDS) == [] else Store(folder).records()  # which would create an empty record
    if study is not None:
        records = _of_study(study, records)
    rows = [_row(record) for record in records if kind in (None, record.kind)]
    rows.sort(key=lambda row: _rank(row[sort], sort))
    none = f"no run of the kind {kind}{f' in {study}' if study else ''}" if records else str(no_runs(folder))
    show(rows[:limit], _text if rows else lambda _: none, as_json=as_json)


def _of_study(name: str, records: Sequence[Record]) -> list[Record]:
    """A study or search, and its runs. Raises UserError if there is none of this name."""
    parents = [record for record in records if record.kind in ("study", "search")]
    chosen = {record.id for record in parents if record.is_called(name)}
    if not parents:
        raise UserError("there are no studies or searches yet: run one with `simclr ablate` or `simclr search`")
    if not chosen:
        raise unknown("study or search", name, nearest(name, {record.name for record in parents}))
    return [record for record in records if chosen & {record.id, record.parent}]


def _row(record: Record) -> dict[str, Any]:
    """A run as the command shows it, accuracies in percent. Unknown figures are nan."""
    from analysis.text import percent

    row: dict[str, Any] = {"id": record.id, "name": record.name, "kind": record.kind, "status": record.status}
    row |= {"started": record.started, "parent": record.parent}
    row |= {"loss": record.metrics.get("train/loss", nan), "val_knn_protocol": knn_metric(record.metrics)}
    row["val_knn"] = percent(record.metrics.get(row["val_knn_protocol"], nan))
    for key in ("knn", "linear"):
        metric = _measured(record, key)
        row[key] = percent(record.metrics.get(f"eval/{metric}", nan))
        row[f"{key}_on"] = None if metric is None else "val" if metric.startswith("val/") else "test"
        row[f"{key}_protocol"] = record.protocols.get(str(metric))
    if row["linear_on"] is None and TRIAL_METRIC in record.metrics:
        row |= {"linear": percent(record.metrics[TRIAL_METRIC]), "linear_on": "val", "linear_protocol": TRIAL_METRIC}
    return row


def _measured(record: Record, key: str) -> str | None:
    """The top-1 accuracy by a classifier that a run has, on test rather than on validation.

    That of kNN with few images is named after its k. Of several k, the largest counts.
    """
    for place in ("", "val/"):
        if (usual := f"{place}{key}_top1") in record.protocols:
            return usual
        ks = [int(k[1]) for metric in record.protocols if (k := re.fullmatch(rf"{place}{key}_k(\d+)_top1", metric))]
        if ks:
            return f"{place}{key}_k{max(ks)}_top1"
    return None


def _rank(value: Any, column: str) -> Any:
    """What a column is sorted by: texts by the alphabet, times and accuracies downwards, the lowest loss first."""
    if isinstance(value, datetime):
        return -value.timestamp()
    if isinstance(value, float):
        return inf if value != value else value if column == "loss" else -value
    return value


def _text(rows: list[dict[str, Any]]) -> str:
    from analysis.text import paragraph, text_table
    from experiments.tracking.naming import state

    measured = {key: [_accuracy(row, key) for row in rows] for key in ("knn", "linear")}
    marks = {key: _marks(accuracies) for key, accuracies in measured.items()}
    cells, now = [], datetime.now()
    for row, *accuracies in zip(rows, *measured.values(), strict=True):
        loss = "" if row["loss"] != row["loss"] else f"{row['loss']:.2f}"
        shown = [each.text() + own.get(each.protocol, "") for each, own in zip(accuracies, marks.values(), strict=True)]
        cells.append(
            [row["name"], row["id"][:8], row["kind"], state(row["status"]), _moment(row["started"], now), loss, *shown]
        )
    lines = [text_table(TITLES, cells)]
    if any(each.validation and each.text() for accuracies in measured.values() for each in accuracies):
        lines.append(f"{VALIDATION} on validation images")
    if any(marks.values()):
        lines.append(
            paragraph(
                "Values in one column with different small numbers can't be compared: their evaluations or their "
                "images differ (--json names the protocols)."
            )
        )
    stopped = [row for row in rows if row["status"] == "KILLED"]
    if any(row["kind"] == "pretrain" and row["parent"] is None for row in stopped):
        lines.append("To resume a run that was stopped, run its command again with --resume.")
    if any(row["kind"] in ("study", "search") for row in stopped):
        lines.append("To resume a study or a search that was stopped, run the same command again.")
    return "\n".join(lines)


class _Accuracy(NamedTuple):
    """An accuracy as the table shows it."""

    percent: float  # nan if it is unknown
    validation: bool  # whether it was measured on the validation images
    protocol: str | None

    def text(self) -> str:
        return "" if self.percent != self.percent else f"{self.percent:.1f}%{VALIDATION * self.validation}"


def _accuracy(row: dict[str, Any], key: str) -> _Accuracy:
    """An accuracy of a run by `simclr eval`, or the one by kNN during training if it has no other."""
    if key == "knn" and row["knn"] != row["knn"]:
        return _Accuracy(row["val_knn"], True, row["val_knn_protocol"])
    return _Accuracy(row[key], row[f"{key}_on"] == "val", row[f"{key}_protocol"])


def _marks(accuracies: Sequence[_Accuracy]) -> dict[str | None, str]:
    """A number for each protocol of a column. Empty if those on test have only one, and those on validation too."""
    found = dict.fromkeys((each.validation, each.protocol) for each in accuracies if each.protocol)
    if max(Counter(validation for validation, _ in found).values(), default=0) < 2:
        return {}
    return {protocol: str(number).translate(DIGITS) for number, (_, protocol) in enumerate(found, 1)}


def _moment(started: datetime, now: datetime) -> str:
    """When a run started: the time of a run of today, the date of another one, without the year in this year."""
    if started.date() == now.date():
        return started.strftime("%H:%M")
    return started.strftime("%m-%d" if started.year == now.year else "%Y-%m-%d")
