"""One cell of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from analysis.tables import is_unused
from experiments.configs.resolve import changed, short_setting
from simclr.config import Config
from simclr.evaluate.protocol import Protocol

BASELINE = "baseline"  # the name of the first cell


class Cell(NamedTuple):
    """One cell of a study: its config for one seed, how that differs from the baseline, and what the paper found."""

    name: str
    config: Config
    settings: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    layer: str = "h"
    on: str = "test"  # the images to evaluate on: test, or val
    resplit: bool = False  # whether each seed has its own division of the images
    paper: float | None = None  # the paper's accuracy in percent
    difference: float | None = None  # that the paper leads to expect, in points
    direction: str | None = None  # "lower" or "higher"
    against: str | None = None  # the cell with which these compare this one (default: the baseline)
    caveat: str | None = None  # why the paper leads to expect nothing
    source: str | None = None
    pair: tuple[str, str] | None = None  # of augmentations; a single one is paired with itself
    x: Any = None  # the value on the numeric axis
    apart: bool = False  # whether --drop or --only made it, and not the study's axis, which then says nothing about it
    rates: tuple[float, ...] = ()  # learning rates, of which the study chooses one for it
    chosen: dict[str, Any] = {}  # noqa: RUF012  settings that the study chose for it, which its config has
    cost: float | None = None  # of its training, as a share of the baseline's, if cells cost the same

    def of_seed(self, seed: int) -> Config:
        """The config for one seed. Its name starts with the cell's name, unless the cell is the baseline.

        With `resplit`, the seed is added to `data.split_seed`, so that all cells split the images in the same way.
        """
        short = self.name.replace(", ", ",").replace(" ", "-")
        name = self.config.name if self.name == BASELINE else f"{short}@{self.config.name}"
        data = self.config.data
        if self.resplit:
            data = data.model_copy(update={"split_seed": data.split_seed + seed})
        return self.config.model_copy(update={"seed": seed, "name": name, "data": data})

    def with_chosen(self, settings: Mapping[str, Any], cost: float | None = None) -> Cell:
        """The cell with some settings chosen for it, and what it then costs."""
        config, chosen = changed(self.config, settings), {**self.chosen, **settings}
        return self._replace(config=config, chosen=chosen, cost=self.cost if cost is None else cost)

    def protocol(self) -> Protocol:
        """How the cell is evaluated."""
        return Protocol(layer=self.layer, on=self.on)

    def identity(self) -> tuple[str, str]:
        """Cells with the same identity give the same results."""
        return self.config.key(), self.layer


def baseline_label(cells: Iterable[tuple[str, Mapping[str, Any]]], own: Mapping[str, Any], x: str | None = None) -> str:
    """What readers see as the name of the baseline: `baseline (temperature=0.2)`, with its values of what is varied.

    `cells` are the names of the cells and how their settings differ from the baseline's, which are `own`. Settings are
    varied by value if the names of cells say their values, or if they are `x`, the axis of the figure.
    """
    own = {"method": "simclr", **own}  # records leave it out
    varied = dict.fromkeys(
        path
        for name, settings in cells
        for path, value in settings.items()
        if path == x or short_setting(path, value) in name
    )
    used = [path for path in varied if own.get(path) not in (None, "None") and not is_unused(path, own)]
    values = [short_setting(path, own[path]) for path in used]
    return f"{BASELINE} ({', '.join(values)})" if values else BASELINE


def is_number(value: object) -> bool:
    """Whether a value can be drawn on a numeric axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)
