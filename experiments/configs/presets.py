"""The presets that come with the suite, and what their headers say. Imports nothing heavy."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple


class Preset(NamedTuple):
    """A preset's file, and the fields of its header (About, Command, Cost, Result)."""

    name: str
    path: Path
    header: dict[str, str]


def presets() -> dict[str, Preset]:
    """The presets that come with the suite, by name."""
    folder = Path(str(files("experiments") / "presets"))
    return {
        path.stem: Preset(path.stem, path, _read_header(path))
        for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)
    }


def _read_header(path: Path) -> dict[str, str]:
    """The `# Key: text` lines at the top of a file. A line without a key continues the one before."""
    header: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        key, colon, text = line[1:].strip().partition(": ")
        if colon and key.isalpha():
            header[key] = text.strip()
        elif header:
            header[list(header)[-1]] += " " + line[1:].strip()
    return header
