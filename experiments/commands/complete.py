"""What the shell completes after an option or for an argument. Imports neither torch nor MLflow, which take seconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, MutableMapping
from importlib.resources import files
from pathlib import Path

import typer

from experiments.configs.presets import presets as known_presets
from simclr.settings import read_toml

NAMES = read_toml(Path(str(files("experiments") / "settings.toml")))  # of settings, because their classes import torch
BREAK = re.compile("[=:@]+")  # signs at which bash splits words before it asks for a completion
Completion = Callable[[typer.Context, str], list[str]]  # `obj` of the context is what precedes the incomplete word


def join_words(variables: MutableMapping[str, str]) -> str:
    """Join the words that bash has split at signs such as @, in the variables by which it hands over a command line.

    The last one stays as it is, since bash puts the completion in its place. Returns what precedes it, such as
    `no-crop` for `@shapes`, whose sign @ bash replaces too. The name of an option is not part of that.
    """
    words = variables["COMP_WORDS"].split("\n")[: int(variables["COMP_CWORD"]) + 1]
    joined: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if joined and word and (BREAK.fullmatch(word) or BREAK.fullmatch(before)):
            joined[-1] += word
        else:
            joined.append(word)
    whole, last = joined.pop(), "" if BREAK.fullmatch(words[-1]) else words[-1]
    last = "@" + last if whole.removesuffix(last).endswith("@") else last
    before = whole.removesuffix(last)
    if before.startswith("-"):
        option, _, before = before.partition("=")
        joined.append(option)
    variables["COMP_WORDS"], variables["COMP_CWORD"] = "\n".join([*joined, last]), str(len(joined))
    return before


def _matching(names: Iterable[str], context: typer.Context, incomplete: str) -> list[str]:
    before = context.obj or ""
    return [name.removeprefix(before) for name in names if name.startswith(before + incomplete)]


def of(names: Iterable[str]) -> Completion:
    """Completes one of some names."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return _matching(names, context, incomplete)

    return complete


def of_settings(names: Iterable[str]) -> Completion:
    """Completes the name of a setting, and the sign = after it."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        found = _matching([f"{name}=" for name in names], context, incomplete)
        if len(found) != 1:
            return found
        # Shells add a space after the only one. Of two they add what both start with.
        return [found[0], f"{found[0]}VALUE"] if found[0] not in ("", incomplete) else []

    return complete


def of_runs(*kinds: str) -> Completion:
    """Completes the name of a run of these kinds, the newest first."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        from experiments.tracking.local import runs_on_disk

        return _matching(dict.fromkeys(run.name for run in runs_on_disk(kinds) or []), context, incomplete)

    return complete


presets = of(known_presets())
ENCODERS = ("pretrain", "import")  # kinds of runs
EVALUATED = (*ENCODERS, "eval")
COMPARABLE = (*EVALUATED, "study")
REPORTED = (*COMPARABLE, "search")
encoders = of_runs(*ENCODERS)
evaluated = of_runs(*EVALUATED)
comparable = of_runs(*COMPARABLE)
reported = of_runs(*REPORTED)
groups = of_runs("study", "search")
images = [name for name in NAMES["config"] if name.startswith("data.")]
settings = of_settings(NAMES["config"])
protocol_settings = of_settings(NAMES["protocol"] + images)
image_settings = of_settings(images)
