"""`simclr compare`: runs side by side, or the cells of a study."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands import complete
from experiments.commands.checks import of_known_run
from experiments.commands.options import Format
from experiments.commands.output import Json, chosen_format, show
from experiments.commands.terminal import open_store
from simclr.errors import UserError

if TYPE_CHECKING:
    from experiments.runs.compare import Comparison


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Names of finished runs, or of studies, or the first 4 or more characters of their ids.",
            show_default=False,
            callback=of_known_run(*complete.COMPARABLE, what="run or study"),
            autocompletion=complete.comparable,
        ),
    ],
    form: Format = "terminal",
    as_json: Json = False,
) -> None:
    """Compare evaluated runs, or the cells of a study.

    For runs, shows the settings that differ, the accuracies with their intervals, and McNemar's test for each pair. For
    a study, shows the table of its cells. With --format csv, all results are plain numbers, and McNemar's test of runs
    is left out.

    Example: simclr compare shapes-s0 shapes-s1 --format markdown
    """
    from experiments.runs.compare import compare as compare_runs
    from experiments.studies.report import tables, what_of

    store = open_store()
    studies = store.studies_among(runs)
    form = chosen_format(form, as_json)
    if len(studies) > 1 and form not in ("terminal", "markdown"):
        raise UserError("--json and the formats csv and latex show only one study: name one")
    if studies:
        for study in studies:
            text, notes = tables(study, store, form)
            if len(studies) > 1:
                typer.echo(f"Study {study.name}: {what_of(study, store)}\n")
            typer.echo(text)
            for note in notes:
                typer.echo(note, err=form != "terminal")
        if len(studies) > 1:
            typer.echo(f"{len(studies)} studies are shown one by one. To compare runs, name the runs.", err=True)
        return
    result = compare_runs(runs, store)
    data = {"runs": [_compared(run) for run in result.runs], "tests": result.tests, "notes": result.notes}
    show(data, lambda _: _tables(result, form), as_json=as_json)


def _compared(run: dict[str, Any]) -> dict[str, Any]:
    """A run with its settings and results, accuracies in percent."""
    from analysis.tables import as_shown

    results = []
    for metric, value in run["metrics"].items():
        low, high = run["intervals"].get(metric, (nan, nan))
        shown = {key: as_shown(metric, each) for key, each in {"value": value, "low": low, "high": high}.items()}
        results.append({"metric": metric, **shown, "protocol": run["protocols"][metric]})
    return {"run": run["name"], "id": run["id"], "settings": run["config"], "results": results}


def _tables(result: Comparison, form: str) -> str:
    """Both tables of a comparison, with the notes below the last. CSV has the first only, as numbers."""
    from analysis.tables import FORMATS, comparison

    if form == "csv":
        return FORMATS[form](comparison(result.runs, numbers=True), [])
    if not len(result.tests):
        return FORMATS[form](result.table, result.notes)
    tests, notes = result.tests, result.notes
    if len(names := [run["name"] for run in result.runs]) == 2:  # which the table needn't repeat in each row
        tests = tests.drop(columns=["run A", "run B"])
        notes = ["A is {}, B is {}.".format(*names), *notes]
    caption = ["The settings in which the runs differ, and their results."] * (form == "latex")
    return "\n".join([FORMATS[form](result.table, caption), FORMATS[form](tests, notes)])
