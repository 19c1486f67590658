"""The files that runs started from (`init` or a teacher), which may be those of other runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simclr.settings import STARTS

if TYPE_CHECKING:  # importing MLflow takes seconds
    from experiments.tracking.store import Record


def starts_among(record: Record, runs: Collection[Record], settings: Sequence[str] = STARTS) -> list[Record]:
    """Those of some runs whose files a run started from. The path of such a file holds the run's id."""
    files = [Path(record.params[name].rpartition("@")[0]) for name in settings if "@" in record.params.get(name, "")]
    return [run for run in runs if any(run.id in file.parts for file in files)]


def start_label(record: Record, setting: str) -> str:
    """What a run started from, as a table shows it: the name of its run or file, with some digits of its weights."""
    name, at, digest = record.params[setting].rpartition("@")
    named = record.tags.get("start") if setting == "init" else None
    return f"{named or Path(name).name} ({digest[:8]})" if at else digest


def where_now(start: str, home: Path) -> str:
    """PATH@DIGEST, with the path below the home of today if the file was below a home that has moved since."""
    name, at, digest = start.rpartition("@")
    path = Path(name)
    if not at or path.is_file():
        return start
    below = (home.joinpath(*path.parts[count:]) for count in range(1, len(path.parts)))
    return f"{next((place for place in below if place.is_file()), path)}@{digest}"
