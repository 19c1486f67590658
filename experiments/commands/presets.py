"""`simclr presets`."""

from __future__ import annotations

import typer

from experiments.configs.presets import presets as load_presets


def presets() -> None:
    """List the presets, with their cost and results.

    Shows what each preset is for, its command, its cost (measured or estimated) and its results (measured, or reported
    by its source).

    Example: simclr presets
    """
    for preset in load_presets().values():
        typer.echo(preset.name)
        for key, text in preset.header.items():
            typer.echo(f"    {key.lower():8} {text}")
