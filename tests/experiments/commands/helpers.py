"""Run commands in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.testing import CliRunner, Result

import cli

Run = Callable[..., Result]


def invoke(*arguments: object, **options: Any) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], **options)


def assert_one_line(done: Result, code: int, message: str) -> None:
    """The command ended with this exit code, and with one line on stderr that holds this message."""
    assert done.exit_code == code, done.output
    kinds = ("failed: ", "error: ")
    (line,) = (line for line in done.stderr.splitlines(keepends=True) if line.startswith(kinds))
    assert line.startswith(kinds[code - 1])
    assert message in line
    assert done.stderr.endswith(line)
