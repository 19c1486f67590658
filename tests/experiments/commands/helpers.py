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
    assert done.stderr.startswith({1: "failed: ", 2: "error: "}[code])
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
