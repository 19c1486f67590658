"""Writes what follows from the code, the reference and the names of settings: `python -m website.reference`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

import cli
from experiments.configs.resolve import TimeBudget
from simclr.config import Config
from simclr.evaluate.protocol import Protocol
from simclr.settings import setting_names

PAGES = Path(__file__).parent.parent / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from the code. Change the code, not this page. -->\n\n"
NAMES = PAGES.parent.parent / "experiments" / "settings.toml"
ABOUT_NAMES = """# The names of all settings, for a shell's completion, which can't wait for the code that defines them.
# Written by `make docs` from the code.
"""
COMMANDS = """# Commands

Every command with its arguments, options and defaults, as `simclr COMMAND --help` shows them. `simclr --help` lists the
commands. The exit code is 0 for success, 1 if a run failed, 2 if the command can't be carried out as given, and 130 if
Ctrl-C stopped it.

"""
SETTINGS = """# Settings

Every setting of a run and of an evaluation, with its default and the values that it accepts. `--set section.key=value`
changes one, and a file for `--config` holds several as TOML. [Runs and
settings](../guides/runs-and-settings.md#settings) explains how they combine. A default of *none* is explained next to
the setting. The value `none` restores it, except for texts, such as the name of a column.

"""
FAR = 1e6  # bounds from here on lie far above anything in use, and are left out
PARTS: dict[str, tuple[str, type[BaseModel], str]] = {  # prefix of the settings, model and introduction of each part
    "A run": ("", Config, "`augment2` takes the same settings as `augment`, for the second view."),
    "A time budget": (
        "time.",
        TimeBudget,
        "With a table `[time]` in a preset or a file, `simclr pretrain` chooses settings that fit into the time.",
    ),
    "An evaluation": ("", Protocol, "`--set` of `simclr eval` changes these, and with them the hash of the protocol."),
}


def help_pages() -> Iterator[tuple[str, Any, typer.Context]]:
    """The name, the command and the context of every command of the command line."""
    group: Any = typer.main.get_command(cli.app)
    for name in cli.COMMANDS:
        context = group.commands[name].make_context(name, [], resilient_parsing=True)
        yield name, context.command, context


def commands() -> str:
    """The page of commands."""
    pages = (get_docs_for_click(obj=each, ctx=ctx, indent=1, name=f"simclr {name}") for name, each, ctx in help_pages())
    with_examples = re.sub(r"^Example: (.*)$", r"```console\n$ \1\n```", "".join(pages), flags=re.MULTILINE)
    return NOTE + COMMANDS + with_examples.rstrip() + "\n"


def sections(model: type[BaseModel], name: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Each section within `model`, by its dotted name, and `model` itself as `name`. Left out is the second view."""
    yield name, model
    for key, field in model.model_fields.items():
        section = next((kind for kind in (field.annotation, *get_args(field.annotation)) if is_section(kind)), None)
        if section is not None and key != "augment2":
            yield from sections(section, f"{name}{key}.")


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def meaning(model: type[BaseModel], name: str) -> str:
    """The comments above a setting and beside it in the source of its section, or of the section that this extends."""
    for owner in model.__mro__[:-1]:
        if owner.__module__.partition(".")[0] not in ("simclr", "experiments"):
            continue
        try:
            lines = inspect.getsource(owner).splitlines()
        except OSError:  # made by create_model
            continue
        found = [number for number, line in enumerate(lines) if line.startswith(f"    {name}: ")]
        if found:
            first = found[0]
            while lines[first - 1].startswith("    # "):
                first -= 1
            above = [line.strip(" #") for line in lines[first : found[0]]]
            beside = lines[found[0]].partition("  # ")[2]
            if text := " ".join(filter(None, [*above, beside])):
                return f"{text[0].upper()}{text[1:].rstrip('.')}."
    return ""


def values(schema: dict[str, Any], field: FieldInfo | None = None) -> str:
    """What a setting accepts, in words, from its JSON schema and from the tables of names that validate it."""
    for check in field.metadata if field else ():
        if "choices" in (named := getattr(getattr(check, "func", None), "keywords", {})):
            names = list(named["choices"]())
            return ", ".join(f"`{name}`" for name in names) if len(names) < 20 else f"a name of a {named['kind']}"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(filter(None, map(values, schema["anyOf"]))))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        each = schema.get("items") or schema["prefixItems"][0]
        count = f"{len(schema['prefixItems'])} of: " if "prefixItems" in schema else "a list of: "
        return count + (values(each) if isinstance(each, dict) else "tables")
    words = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "object": "table"}
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    limits = [f"{word} {schema[key]:g}" for key, word in bounds.items() if key in schema and schema[key] < FAR]
    return " ".join([words.get(schema.get("type", ""), ""), *limits]).strip()


def row(model: type[BaseModel], schema: dict[str, Any], prefix: str, name: str) -> str:
    """The line of a setting in the table of its section."""
    field = model.model_fields[name]
    default = field.get_default(call_default_factory=True)
    shown = "required" if field.is_required() else "*none*" if default is None else f"`{plain(default)}`"
    cells = [f"`{prefix}{name}`", shown, values(schema["properties"][name], field), meaning(model, name)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def plain(value: Any) -> str:
    """A default as TOML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(plain, value))}]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def settings() -> str:
    """The page of settings."""
    page = NOTE + SETTINGS
    for title, (start, model, about) in PARTS.items():
        page += f"## {title}\n\n{about}\n\n"
        for prefix, section in sections(model, start):
            inner = {key.removeprefix(prefix).partition(".")[0] for key, _ in sections(section, prefix)}
            names = [name for name in section.model_fields if name not in inner | {"augment2"}]
            if prefix != start:
                page += f"### `{prefix.rstrip('.')}`\n\n{inspect.cleandoc(section.__doc__ or '')}\n\n"
            if names:
                schema = section.model_json_schema()
                page += "| setting | default | values | |\n| --- | --- | --- | --- |\n"
                page += "".join(row(section, schema, prefix, name) for name in names) + "\n"
    return page.rstrip() + "\n"


def setting_lists() -> str:
    """The file of all names of settings, which `experiments/commands/complete.py` reads."""
    parts = {"config": setting_names(Config), "protocol": setting_names(Protocol)}
    return ABOUT_NAMES + "".join(
        "\n".join([f"{part} = [", *(f'    "{name}",' for name in names), "]\n"]) for part, names in parts.items()
    )


if __name__ == "__main__":
    NAMES.write_text(setting_lists(), encoding="utf-8")
    PAGES.joinpath("commands.md").write_text(commands(), encoding="utf-8")
    PAGES.joinpath("settings.md").write_text(settings(), encoding="utf-8")
