"""`simclr measures`: how well metrics that need no labels rank encoders by their accuracy."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from experiments.commands import complete
from experiments.commands.output import Json, show
from experiments.commands.terminal import open_store


def measures(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of runs or studies (default: all evaluated encoders).",
            show_default=False,
            autocompletion=complete.comparable,
        ),
    ] = None,
    accuracy: Annotated[
        str, typer.Option(metavar="METRIC", help="Accuracy to compare with, as `simclr eval` names it.")
    ] = "linear_top1",
    as_json: Json = False,
) -> None:
    """Show which label-free metrics rank your encoders best.

    Compares the order of your encoders by each metric of --no-labels, --spectrum and --lidar with their order by
    accuracy. Only encoders that were evaluated under the same protocol, on the same images, are compared. Those that
    differ only in their seed count as one.

    Example: simclr measures --accuracy knn_top1
    """
    from experiments.runs.measures import rank_measures

    ranking = rank_measures(open_store(), accuracy, runs or [])
    show(ranking._asdict(), _text, as_json=as_json)


def _text(ranking: dict[str, Any]) -> str:
    from analysis.tables import metric_label
    from analysis.text import paragraph, text_table

    cells = []
    for row in ranking["rows"]:
        interval = f"{row['low']:+.2f} to {row['high']:+.2f}"
        counts = str(row["n"]), str(row["encoders"])
        cells.append([row["measure"], f"{row['tau']:+.2f}", interval, *counts, row["protocol"]])
    title = f"Agreement with {metric_label(ranking['rows'][0]['accuracy'])}:"
    header = ["measure", "tau", "95% interval", "configs", "encoders", "protocol"]
    return "\n".join([title, text_table(header, cells), *map(paragraph, ranking["notes"])])
