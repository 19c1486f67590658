"""Mistakes in the options and arguments of a command, in words. Imported when there is one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.commands.names import names_in
from experiments.configs.flags import FLAGS
from experiments.configs.presets import presets
from simclr.errors import unknown
from simclr.settings import expected

AUGMENTATIONS = names_in("simclr.augment.AUGMENTATIONS")


def _file_called(start: str) -> str | None:
    """A file of the current folder whose name starts like this, if there is one and the folder can be listed."""
    with suppress(OSError):
        return min((path.name for path in Path().iterdir() if path.name.startswith(start)), default=None)
    return None


def describe(error: Any, command: str, load: Callable[[str], Any], commands: Iterable[str]) -> str:
    """A mistake in the options or arguments of a command, in one sentence. `load` loads one of all `commands`."""
    if hasattr(error, "possibilities"):
        parameters = error.ctx.command.get_params(error.ctx)  # with --help
        given = error.option_name
        if given.lstrip("-") in (each.name for each in parameters if not _is_option(each)):
            return f"{given} is an argument, not an option: write the value without {given}, see simclr {command} -h"
        options = _options(parameters)
        owners = [other for other in commands if given in _options(load(other).params)]
        if owners and given.startswith("--"):
            instead = _instead(given, command, parameters) or f"see simclr {command} --help"
            return f"{command} has no option {given}, unlike {', '.join(owners)}: {instead}"
        if file := _file_called(given):
            return f"{command} has no option {given}: if a file is meant, write ./{file} instead of {file}"
        return str(unknown("option", given, options))
    if isinstance(error.__cause__, ValueError) and hasattr(error.__cause__, "errors"):  # pydantic's
        (details, *_) = error.__cause__.errors()
        wanted = "a number" if str(details["input"]).strip().lower() == "nan" else expected(details)
        return f"{error.param.opts[-1]} '{details['input']}': expected {wanted}"
    message = error.format_message().rstrip(".").replace("argument(s)", "argument")
    if meant := _meant(error, message):
        return f"did you mean {meant}? See simclr {command} --help"
    if "unexpected extra argument" in message:
        message += " (put a path with spaces in quotes)"
    return f"{message[0].lower()}{message[1:]}: see simclr {command} --help"


def _options(parameters: Iterable[Any]) -> list[str]:
    return [name for each in parameters for name in each.opts if name.startswith("--")]


def _instead(option: str, command: str, parameters: Sequence[Any]) -> str:
    """What a command has instead of an option that only others have, if that is known."""
    options = _options(parameters)
    if option in ("--preset", "--config") and any(each.name in ("run", "runs") for each in parameters):
        return f"give the name of a run, as in simclr {command} shapes-s0"
    setting = FLAGS.get(option.removeprefix("--").replace("-", "_"))
    if setting in (None, "time.hours") or not {"--preset", "--set"} <= set(options):
        return ""
    compare = f", or --vary {setting}=VALUE,VALUE to compare values" * ("--vary" in options)
    return f"use --set {setting}=VALUE{compare}"


def _repeated(option: str, values: Iterable[str]) -> str:
    return " ".join(f"{option} {value}" for value in values)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _meant(error: Any, message: str) -> str:
    """What was probably meant by words for which a command has no argument; empty if nobody can tell."""
    extra = re.fullmatch(r"Got unexpected extra arguments? \((.*)\)", message)
    if extra is None:
        return ""
    words, values = extra[1].split(), error.ctx.params
    options = {option: each.name for each in error.ctx.command.params if _is_option(each) for option in each.opts}
    given = {option: values.get(name) or [] for option, name in options.items()}
    for option in ("--drop", "--only"):
        if set(words) <= set(AUGMENTATIONS) and given.get(option):
            return _repeated(option, [*given[option], *words])
    for option in ("--set", "--vary", "--proxy"):
        last = ["", *given.get(option, [])][-1]
        if last and "=" not in last:  # its value is the first of the words
            return f"{option} {last}={','.join(words)}"
        if last and all("=" in word for word in words):
            return _repeated(option, [last, *words])
        if last and option == "--vary" and not set(words) & set(presets()):
            return f"{option} {','.join(value.strip(',') for value in [last, *words])}"
    arguments = [values[each.name] for each in error.ctx.command.params if not _is_option(each)]
    for word in [*(str(each) for each in arguments if each is not None), *words]:
        if f"--{word}" in options:
            return f"--{word}"
        if "--preset" in options and word in presets():
            return f"--preset {word}"
    return ""
