"""Checks of options and arguments that are made before a command imports what takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

from experiments.configs.presets import presets
from simclr.errors import UserError, unknown

Given = TypeVar("Given", str, str | None, list[str])


def of_known_run(*kinds: str, what: str = "run", files: bool = False) -> Callable[[typer.Context, Given], Given]:
    """A callback that raises UserError if no run of these kinds has the name, or, without a name, if there is none at
    all. With `files`, a name that looks like a weights file isn't checked. Nor is an option without its dashes: cli.py
    says what was meant.
    """

    def check(context: typer.Context, given: Given) -> Given:
        from experiments.tracking.local import check_known
        from experiments.tracking.naming import may_be_file

        for name in given if isinstance(given, list) else [given]:
            if name is not None and files and may_be_file(name):
                continue
            if not any(f"--{name}" in parameter.opts for parameter in context.command.params):
                check_known(name, kinds, what)
        return given

    return check


def known_preset(name: str | None) -> str | None:
    """Raises UserError for a preset that there isn't."""
    if name is not None and name not in presets():
        raise unknown("preset", name, presets())
    return name


def bad_image(choice: str | None) -> str | float | None:
    """The value of --on-bad-image. Raises UserError for another one than error, skip or a share."""
    if choice in (None, "error", "skip"):
        return choice
    digits = choice.isascii() and choice.replace(".", "", 1).isdigit()  # ² is a digit, too
    if not (digits and 0 < float(choice) <= 1):
        raise UserError(f"--on-bad-image '{choice}': expected error, skip or a share such as 0.5")
    return float(choice)
