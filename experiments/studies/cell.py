"""One cell of a study."""

from __future__ import annotations

from typing import Any, NamedTuple

from simclr.config import Config

BASELINE = "baseline"  # the name of the first cell


class Cell(NamedTuple):
    """One cell of a study: its config for one seed, how that differs from the baseline, and what the paper found."""

    name: str
    config: Config
    settings: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    layer: str = "h"
    paper: float | None = None  # the paper's accuracy in percent
    difference: float | None = None  # that the paper leads to expect, in points
    direction: str | None = None  # "lower" or "higher"
    against: str | None = None  # the cell with which these compare this one (default: the baseline)
    caveat: str | None = None  # why the paper leads to expect nothing
    source: str | None = None
    pair: tuple[str, str] | None = None  # of augmentations; a single one is paired with itself
    x: Any = None  # the value on the numeric axis
    apart: bool = False  # whether --drop or --only made it, and not the study's axis, which then says nothing about it

    def of_seed(self, seed: int) -> Config:
        """The config for one seed. Its name starts with the cell's name, unless the cell is the baseline."""
        short = self.name.replace(", ", ",").replace(" ", "-")
        name = self.config.name if self.name == BASELINE else f"{short}@{self.config.name}"
        return self.config.model_copy(update={"seed": seed, "name": name})

    def identity(self) -> tuple[str, str]:
        """Cells with the same identity give the same results."""
        return self.config.key(), self.layer


def is_number(value: object) -> bool:
    """Whether a value can be drawn on a numeric axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)
