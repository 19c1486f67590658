"""The axes of ablation in axes.toml, and the format of an axis in a file of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, InstanceOf, ValidationError, model_validator

from simclr.config import Config
from simclr.errors import UserError, unknown
from simclr.settings import (
    MOST_VALUES,
    Many,
    Name,
    Rate,
    Section,
    check_distinct,
    flatten,
    read_toml,
    readable,
    setting_names,
)

S = TypeVar("S", bound=Section)


MOST_CELLS = 1000  # of a study, each of which is trained


class AxisCell(Section):
    """One cell of an axis. The header of axes.toml explains the keys."""

    set: dict[str, Any] = Field(default_factory=dict)
    preset: str | None = None
    name: Name | None = None
    layer: str = "h"
    paper: float | None = None
    difference: float | None = None
    direction: Literal["lower", "higher"] | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.set and self.preset is None:
            raise ValueError('expected settings such as {set = {"optim.lr" = 0.1}}, or a preset')
        return self


class Axis(Section):
    """One axis, a table of axes.toml. The header of that file explains the keys."""

    about: str = ""
    source: str | None = None
    x: str | None = None
    log: bool = False
    cells: Annotated[Many[InstanceOf[AxisCell]], Field(max_length=MOST_CELLS)] = ()
    reference: dict[str, Any] = Field(default_factory=dict)
    rising_from: float | None = None
    rising: Many[Any] = ()
    requires: dict[str, Annotated[Many[Any], Field(min_length=1)]] = Field(default_factory=dict)
    because: str | None = None
    rates: Annotated[Many[Rate], Field(max_length=MOST_VALUES), AfterValidator(check_distinct)] = ()
    leave_out: bool = False
    lower: Many[str] = ()
    pairs: Annotated[Many[str], Field(max_length=40)] = ()  # which give 820 cells
    one_sided: bool = False

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if sum(map(bool, (self.cells, self.leave_out, self.pairs))) > 1:
            raise ValueError("expected at most one of cells, leave_out and pairs")
        known = setting_names(Config)
        for path in (*flatten(self.reference), *self.requires, *([self.x] if self.x else [])):
            if path not in known:
                raise ValueError(str(unknown("setting", path, known)))
        if (self.rising or self.rising_from is not None) and self.x is None:
            raise ValueError("rising and rising_from need x, the setting with which accuracy rises")
        return self

    def tried(self) -> str | None:
        """The values of x that the paper tried, in words, or None if this axis doesn't state them."""
        if self.rising:
            return f"the paper has {self.x} = {', '.join(map(str, self.rising))}"
        return f"the paper has {self.x} from {self.rising_from:g} up" if self.rising_from is not None else None


def axes(path: Path | None = None) -> dict[str, Axis]:
    """The axes in a file (default: those that come with the suite). Raises UserError for a mistake in the file."""
    path = path or Path(str(files("experiments") / "axes.toml"))
    return {name: _axis(name, table, path) for name, table in read_toml(path).items()}


def find_axis(name: str) -> Axis:
    """The axis with this name, or the only axis in this TOML file. Raises UserError if there is none."""
    if name.endswith(".toml"):
        found = axes(Path(name))
        if len(found) != 1:
            raise UserError(f"{name} holds {len(found)} axes: expected one table, as in experiments/axes.toml")
        return next(iter(found.values()))
    known = axes()
    if name not in known:
        raise unknown("axis", name, known)
    return known[name]


def axis_over(setting: str, values: Sequence[Any]) -> Axis:
    """An axis over some values of one setting, with what the paper reports on them according to axes.toml."""
    for axis in axes().values():
        known = [cell for cell in axis.cells if list(flatten(cell.set)) == [setting] and cell.layer == "h"]
        if axis.source and known and not any(cell.preset for cell in known):
            break
    else:
        axis, known = Axis(), []
    cells = [
        next((cell for cell in known if flatten(cell.set)[setting] == value), AxisCell(set={setting: value}))
        for value in values
    ]
    unnamed = tuple(cell.model_copy(update={"name": None}) for cell in cells)
    return axis.model_copy(update={"cells": unnamed, "rates": (), "log": False})


def _axis(name: str, table: Any, path: Path) -> Axis:
    """Validate one table of a file. Its cells come first, so that an error message can give a cell's number."""
    if not isinstance(table, Mapping):
        raise UserError(f"{path}: '{name}' is not an axis: expected a table [{name}] with cells")
    cells = table.get("cells")
    if isinstance(cells, list):
        valid = [_validate(AxisCell, cell, f"cell {n} of axis '{name}'") for n, cell in enumerate(cells, 1)]
        table = {**table, "cells": valid}
    return _validate(Axis, table, f"axis '{name}'")


def _validate(model: type[S], table: Any, place: str) -> S:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise UserError(f"{place}: {readable(error, model, 'key')}") from None
