"""How commands print what they found out: as text, or with --json as one document. All else goes to stderr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from analysis.text import to_json
from simclr.errors import printable

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document, for other programs.")]


def show(result: T, text: Callable[[T], str], *, as_json: bool) -> None:
    """Print a result on stdout: as the text that `text` makes of it, or as JSON."""
    typer.echo(to_json(result) if as_json else text(result))


def describe_files(result: Mapping[str, Any]) -> str:
    """The note of a result, if there is one, and the files that were written."""
    files = printable(", ".join(map(str, result["files"])))
    return "\n".join([*filter(None, [result.get("note")]), f"wrote {files}"])
