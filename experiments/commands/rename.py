"""`simclr rename`: another name for a run."""

from __future__ import annotations

from typing import Annotated

import typer

from experiments.commands import complete
from experiments.commands.checks import of_known_run
from experiments.commands.options import check_new_name
from experiments.commands.output import Json, show
from experiments.commands.terminal import open_writable
from simclr.errors import UserError


def rename(
    run: Annotated[
        str,
        typer.Argument(
            help="Name of a finished run, or the first 4 or more characters of its id.",
            callback=of_known_run(*complete.ENCODERS, what="run"),
            autocompletion=complete.encoders,
        ),
    ],
    name: Annotated[str, typer.Argument(help="Its new name, which no other run has.", callback=check_new_name)],
    as_json: Json = False,
) -> None:
    """Give a run another name.

    Its id, its config and its files stay the same. Studies, searches and their runs can't be renamed, because they
    refer to one another by name.

    Example: simclr rename shapes-s0 first-try
    """
    from experiments.tracking.writing import Tracker

    store = open_writable("renamed")
    record = store.find(run)
    if record.parent is not None:
        raise UserError(
            f"{record.name} belongs to a study or a search, which refers to it by its name: choose another run"
        )
    if any(each.name == name for each in store.records()):
        raise UserError(f"there is already a run called {name}: choose another name")
    Tracker(store, record.id).rename(name)
    result = {"id": record.id, "before": record.name, "name": name}
    show(result, lambda _: f"{record.name} ({record.short_id}) is now called {name}", as_json=as_json)
