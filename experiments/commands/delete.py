"""`simclr delete`: runs with their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands import complete
from experiments.commands.output import Json, show
from experiments.commands.terminal import can_ask, describe_size, open_writable
from simclr.errors import UserError, printable

if TYPE_CHECKING:
    from experiments.tracking.store import Record


def delete(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Names of runs, studies or searches, or the first 4 or more characters of their ids.",
            show_default=False,
            autocompletion=complete.reported,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Delete runs with their files.

    Weights, checkpoints, figures and pages are deleted permanently. MLflow only marks the record as deleted, and hides
    it. A study or a search is deleted with all of its runs, and a search with the study that confirms it. Runs that the
    study reused, because they had been trained before, are kept. So are finished runs that started from a deleted run
    (--init), but `simclr eval` can no longer fill their column "start". Decoded images stay in the home folder, under
    `cache`, which you may delete.

    Example: simclr delete shapes-s0
    """
    from analysis.text import paragraph
    from experiments.commands.runs import KINDS
    from experiments.tracking import local
    from experiments.tracking.deleting import bytes_of, find_deletable, started_from
    from experiments.tracking.deleting import delete as delete_runs

    for name in runs:
        local.check_known(name, KINDS, "run, study or search")
    store = open_writable("deleted")
    found = find_deletable(runs, store)
    result: dict[str, Any] = {
        "runs": [{"id": each.id, "name": each.name, "kind": each.kind, "bytes": bytes_of(each)} for each in found]
    }
    result["bytes"] = sum(each["bytes"] for each in result["runs"])
    result["files_stay_on_server"] = store.artifacts is None
    if started := started_from(found, store):
        names = printable(", ".join(each.name for each in started))
        lost = 'They are kept, but `simclr eval` can no longer fill their column "start".'
        typer.echo(paragraph(f"Runs that started from these weights: {names}. {lost}"), err=True)
    if not yes:
        typer.echo(f"to be deleted:\n{_table(result)}", err=True)
        if not can_ask():
            raise UserError("standard input is not a terminal, so you can't be asked: add --yes to delete these runs")
        typer.confirm("Delete them permanently?", abort=True, err=True)
    delete_runs(found, store, _forget_trials)
    show(result, _text, as_json=as_json)


def _forget_trials(record: Record) -> None:
    """Delete what Optuna keeps of a search."""
    if record.kind == "search":
        from experiments.search.saved import forget  # takes seconds to import

        forget(record.tags.get("search", record.name), record.store)


def _table(result: dict[str, Any]) -> str:
    from analysis.text import text_table

    rows = [[each["name"], each["id"][:8], each["kind"], describe_size(each["bytes"])] for each in result["runs"]]
    return text_table(("name", "id", "kind", "size"), rows)


def _text(result: dict[str, Any]) -> str:
    from analysis.findings import count

    names = ", ".join(each["name"] for each in result["runs"][::-1][:5])
    more = ", ..." * (len(result["runs"]) > 5)
    text = f"deleted {count(len(result['runs']), 'run')} ({describe_size(result['bytes'])}): {printable(names)}{more}"
    if result["files_stay_on_server"]:
        text += "\nweights and figures stay on the server until its owner runs `mlflow gc`"
    return text
