"""How commands print what they found out: as text, or with --json as one document. All else goes to stderr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from analysis.text import to_json
from simclr.errors import UserError, printable

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document, for other programs.")]


def show(result: T, text: Callable[[T], str], *, as_json: bool) -> None:
    """Print a result on stdout: as the text that `text` makes of it, or as JSON."""
    typer.echo(to_json(result) if as_json else text(result))


def chosen_format(form: str, as_json: bool) -> str:
    """The format of a table by --format and --json. Raises UserError if they contradict each other."""
    if as_json and form != "terminal":
        raise UserError(f"--json and --format {form} are two formats: leave out one of them")
    return "json" if as_json else form


def describe_files(result: Mapping[str, Any]) -> str:
    """The note of a result, if there is one, and the files that were written."""
    files = printable(", ".join(map(str, result["files"])))
    return "\n".join([*filter(None, [result.get("note")]), f"wrote {files}"])
