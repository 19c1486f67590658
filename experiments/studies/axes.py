"""The axes of ablation that the suite knows (axes.toml), and the format of a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, model_validator

from simclr.config import Config
from simclr.errors import UserError, unknown
from simclr.settings import Section, flatten, read_toml, readable, settings


class AxisCell(Section):
    """A cell of an axis: see the header of axes.toml."""

    set: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)
    preset: str | None = None
    name: str | None = None
    layer: str = "h"
    paper: float | None = None
    difference: float | None = None
    direction: Literal["lower", "higher"] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.set and self.preset is None:
            raise ValueError('expected what it sets, e.g. {set = {"optim.lr" = 0.1}}, or a preset')
        return self


class Axis(Section):
    """A table of axes.toml: see its header."""

    about: str = ""
    source: str | None = None
    x: str | None = None
    log: bool = False
    cells: tuple[dict[str, Any], ...] = ()  # each an AxisCell
    reference: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)
    rising_from: float | None = None
    leave_out: bool = False
    lower: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    one_sided: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(map(bool, (self.cells, self.leave_out, self.pairs))) > 1:
            raise ValueError("expected one of cells, leave_out and pairs")
        for path in (*flatten(self.reference), *([self.x] if self.x else [])):
            if path not in settings(Config):
                raise ValueError(str(unknown("setting", path, settings(Config))))
        return self


def axes(path: Path | None = None) -> dict[str, Axis]:
    """The axes of a file (default: those that come with the suite). Raises UserError for what is not in the format."""
    found = {}
    for name, table in read_toml(path or Path(str(files("experiments") / "axes.toml"))).items():
        if not isinstance(table, Mapping):
            raise UserError(f"{path}: '{name}' is not an axis: expected a table [{name}] with cells")
        found[name] = _valid(Axis, table, f"axis '{name}'")
    return found


def _valid(model: type[Section], table: Mapping[str, Any], where: str) -> Any:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise UserError(f"{where}: {readable(error, model)}") from None


def _axis(name: str) -> Axis:
    """An axis by name, or the only one in a file."""
    if name.endswith(".toml"):
        found = axes(Path(name))
        if len(found) != 1:
            raise UserError(f"{name} holds {len(found)} axes: expected one table, as in experiments/axes.toml")
        return next(iter(found.values()))
    known = axes()
    if name not in known:
        raise unknown("axis", name, known)
    return known[name]
