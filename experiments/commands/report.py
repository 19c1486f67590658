"""`simclr report`: the page of a run, a study or a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands import complete
from experiments.commands.checks import of_known_run
from experiments.commands.options import Format
from experiments.commands.output import Json, chosen_format
from experiments.commands.terminal import open_store
from simclr.errors import UserError


def _check_folder(path: Path | None) -> Path | None:
    """Raises UserError, before any work, for a path that looks like that of a page."""
    if path is not None and path.suffix.lower() == ".html":
        raise UserError(f"--out is the folder to write the page to: leave out the name {path.name}")
    return path


def report(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a run, a study or a search, or the first 4 or more characters of its id.",
            callback=of_known_run(*complete.REPORTED, what="run, study or search"),
            autocompletion=complete.reported,
        ),
    ],
    form: Format = "terminal",
    out: Annotated[
        Path | None,
        typer.Option(
            callback=_check_folder,
            help="Folder to which the tables, the figures and the HTML page are also copied.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the page of a run, a study or a search.

    Writes one HTML file with tables and figures from the record of runs, and prints the tables. Trains nothing. With
    --format latex or csv, stdout contains only the table.

    Example: simclr report shapes-no-color_jitter-no-grayscale --format latex
    """
    from experiments.runs.pages import PAGE
    from experiments.runs.report import report as report_run

    form = chosen_format(form, as_json)
    store = open_store()
    record = store.find_reported(name)
    if record.kind == "study":
        from experiments.studies.report import report as report_study

        text, notes = report_study(record, store, form, out)
    elif record.kind == "search":
        from experiments.search.report import report as report_search  # imports Optuna

        text, notes = report_search(record, store, form, out)
    else:
        text, notes = report_run(record, store, form, out)
    if text:
        typer.echo(text)
    copied = [] if out is None else [f"copied to {out / PAGE}"]
    for note in (*notes, *copied):
        typer.echo(note, err=form != "terminal")
