"""An ablation as a list of cells: pure data, made from a baseline and what is to be varied.

The axes that come with the suite are in axes.toml.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

from simclr.augment import AUGMENTATIONS
from simclr.config import Config, make, merge, nested, parse_setting, read_toml
from simclr.errors import UserError, unknown

BASELINE = "baseline"
AXIS_KEYS = ("about", "source", "x", "log", "cells", "leave_out", "direction", "pairs", "one_sided")
CELL_KEYS = ("name", "set", "layer", "paper", "difference", "direction")


class Cell(NamedTuple):
    """One cell of a study: what it sets, the config that gives (for one seed), and what the paper found there."""

    name: str
    config: Config
    settings: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    layer: str = "h"
    paper: float | None = None  # the paper's accuracy, in percent
    difference: float | None = None  # the paper's difference to its baseline, in points
    direction: str | None = None  # "lower", "higher"
    source: str | None = None
    pair: tuple[str, str] | None = None  # of augmentations; one twice where it stands alone

    def of_seed(self, seed: int) -> Config:
        """The config of one seed."""
        return self.config.model_copy(update={"seed": seed})

    def identity(self) -> tuple[str, str]:
        """Two cells with one identity are one."""
        return self.config.key(), self.layer


class Plan(NamedTuple):
    """The cells of a study, the baseline first; `x` is the setting of its numeric axis, if it has one."""

    cells: list[Cell]
    x: str | None = None
    log: bool = False

    def digest(self) -> str:
        """What identifies the plan, whatever its seeds."""
        return hashlib.blake2b(repr([cell.identity() for cell in self.cells]).encode(), digest_size=6).hexdigest()

    def jobs(self, seeds: Sequence[int]) -> Iterator[tuple[Cell, int]]:
        """Every cell with every seed; all cells of one seed first, so that a study cut short is still paired."""
        return ((cell, seed) for seed in seeds for cell in self.cells)


def axes(path: Path | None = None) -> dict[str, dict[str, Any]]:
    """The axes of a file (default: those that come with the suite). Raises UserError for what is not in the format."""
    table = read_toml(path or Path(str(files("experiments") / "axes.toml")))
    for name, axis in table.items():
        if not isinstance(axis, Mapping):
            raise UserError(f"{path}: '{name}' is not an axis: expected a table [{name}] with cells")
        for key in axis:
            if key not in AXIS_KEYS:
                raise unknown(f"key of axis '{name}'", key, AXIS_KEYS)
        for cell in axis.get("cells", []):
            for key in cell:
                if key not in CELL_KEYS:
                    raise unknown(f"key of a cell of axis '{name}'", key, CELL_KEYS)
    return table


def settings_name(settings: Mapping[str, Any]) -> str:
    """`temperature=0.1, normalize=False`."""
    return ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in settings.items())


def _cell(baseline: Config, settings: Mapping[str, Any], name: str | None = None, **facts: Any) -> Cell:
    """The cell that differs from the baseline in some settings. Raises UserError where one is not valid."""
    table = baseline.model_dump(mode="json")
    for path, value in settings.items():
        table = merge(table, nested(path, value))
    return Cell(name or settings_name(settings), make(table), dict(settings), **facts)


def _views(baseline: Config) -> list[str]:
    return ["augment"] if baseline.augment2 is None else ["augment", "augment2"]


def _present(baseline: Config) -> list[str]:
    """The augmentations of either view, in the order in which they are applied."""
    first, second = baseline.pipelines()
    return [name for name in AUGMENTATIONS if name in first or name in second]


def _check(name: str) -> str:
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, AUGMENTATIONS)
    return name


def without(baseline: Config, names: Sequence[str], **facts: Any) -> Cell:
    """The baseline without some augmentations, in both views. UserError for one that it does not have."""
    for name in names:
        if _check(name) not in _present(baseline):
            raise UserError(f"the baseline has no '{name}' to drop: it has {', '.join(_present(baseline))}")
    settings = {f"{view}.{name}.p": 0.0 for view in _views(baseline) for name in names}
    return _cell(baseline, settings, f"no {', '.join(names)}", **facts)


def only(baseline: Config, names: Sequence[str], *, one_sided: bool = False, **facts: Any) -> Cell:
    """The baseline with these augmentations alone: as in the baseline, or always where it has them not.

    `one_sided`: the first view is only cropped, the second is cropped and has them (paper, Section 3.1).
    """

    def probability(view: str, name: str) -> float:
        return float(getattr(getattr(baseline, view), name).p) or 1.0

    chosen = {_check(name) for name in names}
    wanted = (
        {"augment": {"crop"}, "augment2": {"crop"} | chosen} if one_sided else dict.fromkeys(_views(baseline), chosen)
    )
    settings = {
        f"{view}.{name}.p": probability("augment", name) if name in keep else 0.0
        for view, keep in wanted.items()
        for name in AUGMENTATIONS
    }
    return _cell(baseline, settings, f"only {' + '.join(names)}", **facts)


def of_axis(baseline: Config, axis: Mapping[str, Any]) -> list[Cell]:
    """The cells of an axis."""
    source = axis.get("source")
    if axis.get("leave_out"):
        directions = axis.get("direction", {})
        return [
            without(baseline, [name], direction=directions.get(name), source=source if name in directions else None)
            for name in _present(baseline)
        ]
    if groups := axis.get("pairs"):
        facts = {"one_sided": axis.get("one_sided", False), "source": source}
        pairs = [(group, group) for group in groups] + list(combinations(groups, 2))
        return [only(baseline, "+".join(dict.fromkeys(pair)).split("+"), pair=pair, **facts) for pair in pairs]
    return [
        _cell(baseline, cell["set"], **{key: value for key, value in cell.items() if key != "set"}, source=source)
        for cell in axis.get("cells", [])
    ]


def of_vary(baseline: Config, texts: Sequence[str]) -> list[Cell]:
    """`loss.temperature=0.05,0.1`: a cell for each value; of several settings, for each combination.

    Values are TOML (so lists have brackets), or else plain words.
    """
    choices: list[list[tuple[str, Any]]] = []
    for text in texts:
        path, _, values = text.partition("=")
        _, parsed = parse_setting(f"{path}=[{values}]")
        if isinstance(parsed, str):  # no TOML
            parsed = [value.strip() for value in values.split(",") if value.strip()]
        if len({json.dumps(value) for value in parsed}) < 2:
            raise UserError(
                f"--vary {text} has {len(parsed)} value{'s' * (len(parsed) != 1)}: expected two or more, "
                f"e.g. loss.temperature=0.05,0.1,0.5"
            )
        choices.append([(path.strip(), value) for value in parsed])
    return [_cell(baseline, dict(combination)) for combination in product(*choices)]


def make_plan(
    baseline: Config,
    *,
    drop: Sequence[str] = (),
    alone: Sequence[str] = (),
    together: bool = False,
    axis: str | None = None,
    vary: Sequence[str] = (),
) -> Plan:
    """The plan of a study: augmentations dropped, or kept alone (each by itself, or `together`), the cells of an axis
    (a name, or a TOML file that holds one), and settings varied; the latter crossed with the former.

    A cell that equals the baseline is the baseline. Raises UserError for unknown names and for fewer than two cells.
    """
    chosen, known = _axis(axis) if axis is not None else {}, axes()["augmentations"]

    def groups(names: Sequence[str]) -> list[list[str]]:
        return [list(names)] if together and names else [[name] for name in names]

    cells = [
        *(
            without(baseline, names, source=known["source"], direction=_direction(names, known))
            for names in groups(drop)
        ),
        *(only(baseline, names) for names in groups(alone)),
        *of_axis(baseline, chosen),
    ]
    x = chosen.get("x")
    if vary:
        crossed = of_vary(baseline, vary)
        if not cells and len(vary) == 1:
            x = vary[0].partition("=")[0].strip()
        cells = crossed + [
            _cell(baseline, cell.settings | other.settings, f"{cell.name}, {other.name}", layer=cell.layer)
            for cell in cells
            for other in crossed
        ]
    plan = _with_baseline(baseline, cells)
    if len(plan) < 2:
        raise UserError("nothing differs from the baseline: name something by --drop, --only, --axis or --vary")
    return Plan(plan, x, bool(chosen.get("log")))


def _direction(names: Sequence[str], axis: Mapping[str, Any]) -> str | None:
    return "lower" if any(axis["direction"].get(name) == "lower" for name in names) else None


def _axis(name: str) -> dict[str, Any]:
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


def _with_baseline(baseline: Config, cells: Sequence[Cell]) -> list[Cell]:
    """The baseline and the cells that differ from it, without doubles; the paper's differences worked out."""
    first = Cell(BASELINE, baseline)
    same = next((cell for cell in cells if cell.identity() == first.identity()), first)
    first = first._replace(paper=same.paper)
    unique = {first.identity(): first}
    long = Counter(cell.name for cell in {cell.identity(): cell for cell in cells}.values())
    for cell in cells:
        difference = cell.difference
        if cell.paper is not None and first.paper is not None:
            difference = round(cell.paper - first.paper, 2)
        name = cell.name if long[cell.name] < 2 else ", ".join(f"{key}={value}" for key, value in cell.settings.items())
        unique.setdefault(cell.identity(), cell._replace(name=name, difference=difference))
    return list(unique.values())
