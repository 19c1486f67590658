"""`simclr presets`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from experiments.commands import complete
from experiments.commands.output import Json, show
from experiments.configs.presets import Preset
from experiments.configs.presets import presets as load_presets
from simclr.errors import unknown
from simclr.settings import read_toml


def presets(
    name: Annotated[
        str | None,
        typer.Argument(help="Preset to show in full.", show_default="a list of all", autocompletion=complete.presets),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the presets, or show one in full.

    Without a name, shows what each preset is for. With a name, also shows its command, its cost (measured or
    estimated), its results (measured, or reported by its source) and its settings.

    Example: simclr presets cifar10
    """
    known = load_presets()
    if name is None:
        show([_described(preset) for preset in known.values()], _contents, as_json=as_json)
    elif name in known:
        preset = known[name]
        show(_described(preset) | {"settings": read_toml(preset.path)}, lambda _: _in_full(preset), as_json=as_json)
    else:
        raise unknown("preset", name, known)


def _described(preset: Preset) -> dict[str, Any]:
    return {"name": preset.name} | {key.lower(): text for key, text in preset.header.items()}


def _contents(rows: list[dict[str, Any]]) -> str:
    from analysis.text import text_table

    table = text_table(["preset", "what it is for"], [[row["name"], row["about"]] for row in rows])
    return f"{table}\n\nOne of them with its cost, results and settings: simclr presets NAME"


def _in_full(preset: Preset) -> str:
    """The header of a preset, and its settings with their comments."""
    from analysis.text import paragraph

    lines = [paragraph(f"{key.lower() + ':':9}{text}", " " * 9) for key, text in preset.header.items()]
    content = preset.path.read_text(encoding="utf-8")
    _, _, settings = content.partition("\n\n")
    return "\n".join([preset.name, *lines, "", settings.strip()])
