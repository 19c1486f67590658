"""An ablation as a list of cells: pure data, made from a baseline and what is to be varied.

The axes that come with the suite are in axes.toml.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments.configs.resolve import at, changed, preset_on, shared, short
from experiments.studies.axes import Axis, AxisCell, _axis, _valid, axes
from simclr.augment import AUGMENTATIONS
from simclr.config import Config
from simclr.errors import UserError, unknown
from simclr.settings import flatten, parse_setting

BASELINE = "baseline"


DECADE = 10  # values of --vary that are so many times apart are drawn on a logarithmic axis


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
    x: Any = None  # its place on the numeric axis

    def of_seed(self, seed: int) -> Config:
        """The config of one seed, called by the cell too; the baseline keeps its name."""
        name = self.config.name if self.name == BASELINE else f"{self.config.name}-{self.name.replace(' ', '-')}"
        return self.config.model_copy(update={"seed": seed, "name": name})

    def identity(self) -> tuple[str, str]:
        """Two cells with one identity are one."""
        return self.config.key(), self.layer


class StudyPlan(NamedTuple):
    """The cells of a study, the baseline first; `x` is the setting of its numeric axis, if it has one.

    `lines` are the cells on that axis, {cell: number} for each choice of what else is varied.
    """

    cells: list[Cell]
    x: str | None = None
    log: bool = False
    lines: dict[str, dict[str, float]] = {}  # noqa: RUF012 (never written to)

    def digest(self, data: str) -> str:
        """What identifies the plan, from its first seed on, on some data (by their digest)."""
        parts = [data, *((cell.name, *cell.identity()) for cell in self.cells)]
        return hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()

    def jobs(self, seeds: Sequence[int]) -> Iterator[tuple[Cell, int]]:
        """Every cell with every seed; all cells of one seed first, so that a study cut short is still paired."""
        return ((cell, seed) for seed in seeds for cell in self.cells)


def is_number(value: object) -> bool:
    """Whether it has a place on a numeric axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def settings_name(changes: Mapping[str, Any]) -> str:
    """`temperature=0.1, loss.normalize=False`."""
    return ", ".join(f"{short(path)}={value}" for path, value in changes.items())


def refuse_fixed(path: str) -> None:
    """Raises UserError for a setting that no study or search may vary."""
    if shared(path):
        raise UserError(f"{path} can't be varied: what is compared has the same seeds and the same images")


def _cell(
    start: Config,
    changes: Mapping[str, Any],
    name: str | None = None,
    layer: str = "h",
    before: Mapping[str, Any] = MappingProxyType({}),
    **facts: Any,
) -> Cell:
    """The cell that differs in some settings from its start: the baseline, or what `before` has made of it.

    Raises UserError where one is not valid.
    """
    changes = flatten(changes)
    for path in changes:
        refuse_fixed(path)
    judged = f", {layer} judged" if layer != "h" else ""
    whole = {**before, **changes}
    return Cell(name or settings_name(whole) + judged, changed(start, changes), whole, layer, **facts)


def _views(baseline: Config) -> list[str]:
    return ["augment"] if baseline.augment2 is None else ["augment", "augment2"]


def _present(baseline: Config) -> list[str]:
    """The augmentations of either view, in the order in which they are applied."""
    views = [getattr(baseline, view) for view in _views(baseline)]
    return [name for name in AUGMENTATIONS if any(getattr(view, name).p for view in views)]


def _check(name: str) -> str:
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, AUGMENTATIONS)
    return name


def without(baseline: Config, names: Sequence[str], axis: Axis) -> Cell:
    """The baseline without some augmentations, in both views; `axis` knows of which the paper expects a fall.

    Raises UserError for one that the baseline does not have.
    """
    for name in names:
        if _check(name) not in _present(baseline):
            raise UserError(f"the baseline has no '{name}' to drop: it has {', '.join(_present(baseline))}")
    changes = {f"{view}.{name}.p": 0.0 for view in _views(baseline) for name in names}
    falls = bool(set(names) & set(axis.lower))
    return _cell(
        baseline,
        changes,
        f"no {', '.join(names)}",
        direction="lower" if falls else None,
        source=axis.source if falls else None,
    )


def only(baseline: Config, names: Sequence[str], *, one_sided: bool = False, **facts: Any) -> Cell:
    """The baseline with these augmentations alone: as in the baseline, or always where it has them not.

    `one_sided`: the first view is only cropped, the second is cropped and has them (paper, Section 3.1).
    """

    def probability(view: str, name: str) -> float:
        own = {each: float(getattr(getattr(baseline, each), name).p) for each in _views(baseline)}
        has = any(own.values()) and not one_sided
        return own.get(view, own["augment"]) or (0.0 if has else 1.0)

    chosen = {_check(name) for name in names}
    wanted = (
        {"augment": {"crop"}, "augment2": {"crop"} | chosen} if one_sided else dict.fromkeys(_views(baseline), chosen)
    )
    changes = {
        f"{view}.{name}.p": probability(view, name) if name in keep else 0.0
        for view, keep in wanted.items()
        for name in AUGMENTATIONS
    }
    return _cell(baseline, changes, f"only {' + '.join(names)}", **facts)


def of_axis(baseline: Config, axis: Axis) -> list[Cell]:
    """The cells of an axis."""
    if axis.leave_out:
        return [without(baseline, [name], axis) for name in _present(baseline)]
    if axis.pairs:
        pairs = [(group, group) for group in axis.pairs] + list(combinations(axis.pairs, 2))
        return [
            only(
                baseline,
                "+".join(dict.fromkeys(pair)).split("+"),
                one_sided=axis.one_sided,
                pair=pair,
                source=axis.source,
            )
            for pair in pairs
        ]
    cells: list[AxisCell] = [_valid(AxisCell, cell, f"cell {n} of the axis") for n, cell in enumerate(axis.cells, 1)]
    return [
        _cell(
            preset_on(cell.preset, baseline) if cell.preset else baseline,
            cell.set,
            cell.name,
            cell.layer,
            {"preset": cell.preset} if cell.preset else {},
            paper=cell.paper,
            difference=cell.difference,
            direction=cell.direction,
            source=axis.source,
        )
        for cell in cells
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
        if path.strip() in {setting for ((setting, _), *_) in choices}:
            raise UserError(f"--vary {path.strip()} stands there twice: give all of its values at once")
        choices.append([(path.strip(), value) for value in parsed])
    return [_cell(baseline, dict(combination)) for combination in product(*choices)]


def plan_study(
    baseline: Config,
    *,
    drop: Sequence[str] = (),
    alone: Sequence[str] = (),
    together: bool = False,
    axis: str | None = None,
    vary: Sequence[str] = (),
) -> StudyPlan:
    """The plan of a study: augmentations dropped, or kept alone (each by itself, or `together`), the cells of an axis
    (a name, or a TOML file that holds one), and settings varied; the latter crossed with the former.

    A cell that equals the baseline is the baseline. Raises UserError for unknown names and for fewer than two cells.
    """
    if together and not drop and not alone:
        raise UserError("--together has nothing to join: name augmentations by --drop or --only")
    chosen = _axis(axis) if axis is not None else Axis()

    def groups(names: Sequence[str]) -> list[list[str]]:
        return [list(names)] if together and names else [[name] for name in names]

    known = axes()["augmentations"]
    cells = [
        *(without(baseline, names, known) for names in groups(drop)),
        *(only(baseline, names) for names in groups(alone)),
        *of_axis(baseline, chosen),
    ]
    x, log = chosen.x, chosen.log
    if vary:
        crossed = of_vary(baseline, vary)
        if not cells and len(vary) == 1:
            x = vary[0].partition("=")[0].strip()
            values = [value for cell in crossed for value in cell.settings.values() if is_number(value)]
            log = len(values) == len(crossed) and 0 < DECADE * min(values) <= max(values)
        for cell in cells:
            if twice := sorted(set(cell.settings) & set(crossed[0].settings)):
                raise UserError(f"--vary {twice[0]} and '{cell.name}' set the same: leave one of them out")
        cells = crossed + [
            _cell(cell.config, other.settings, f"{cell.name}, {other.name}", cell.layer, cell.settings)
            for cell in cells
            for other in crossed
        ]
    plan = _with_baseline(baseline, cells, chosen.model_copy(update={"x": x}))
    lowest = min((cell.x for cell in plan if is_number(cell.x)), default=1.0)
    if chosen.log and lowest <= 0:
        raise UserError(f"the axis is logarithmic, and {x} = {lowest:g} has no place on it: set log = false")
    if len(plan) < 2:
        raise UserError("nothing differs from the baseline: name something by --drop, --only, --axis or --vary")
    return StudyPlan(plan, x, log and lowest > 0, _lines(plan, cells, x) if x else {})


def _lines(plan: Sequence[Cell], cells: Sequence[Cell], x: str) -> dict[str, dict[str, float]]:
    """Where cells stand on the axis of x: a line {cell: number} for each choice of the other settings, by its name.

    `cells` are those of the plan before doubles were taken out: what equals several cells stands on all their lines.
    """
    called = {cell.identity(): cell.name for cell in plan}
    others = list(dict.fromkeys(path for cell in cells for path in cell.settings if path != x))
    placed = []
    for cell in cells if plan[0].identity() in map(Cell.identity, cells) else (plan[0], *cells):
        table = cell.config.model_dump(mode="json")
        if is_number(number := at(table, x)):
            rest = {"layer": cell.layer} | {path: at(table, path) for path in others}
            placed.append((rest, called[cell.identity()], float(number)))
    differing = [path for path in ("layer", *others) if any(rest[path] != placed[0][0][path] for rest, _, _ in placed)]
    lines: dict[str, dict[str, float]] = {}
    for rest, name, number in placed:
        lines.setdefault(settings_name({path: rest[path] for path in differing}), {})[name] = number
    return lines


def _with_baseline(baseline: Config, cells: Sequence[Cell], axis: Axis) -> list[Cell]:
    """The baseline and the cells that differ from it, without doubles; what the paper expects of each worked out."""

    def placed(cell: Cell) -> Cell:
        return cell._replace(x=at(cell.config.model_dump(mode="json"), axis.x)) if axis.x else cell

    first = placed(Cell(BASELINE, baseline))
    same = next((cell for cell in cells if cell.identity() == first.identity()), first)
    first = first._replace(paper=same.paper, pair=same.pair)
    table = baseline.model_dump(mode="json")
    holds = all(at(table, path) == value for path, value in flatten(axis.reference).items())
    unique = {first.identity(): first}
    for cell in map(placed, cells):
        if not holds:
            cell = cell._replace(difference=None, direction=None)
        if cell.paper is not None and first.paper is not None:
            cell = cell._replace(difference=round(cell.paper - first.paper, 2))
        nothing_else = all(at(table, path) == value for path, value in cell.settings.items() if path != axis.x)
        placed_both = is_number(cell.x) and is_number(first.x) and cell.x != first.x
        if axis.rising_from is not None and nothing_else and placed_both and min(cell.x, first.x) >= axis.rising_from:
            cell = cell._replace(direction="higher" if cell.x > first.x else "lower")
        unique.setdefault(cell.identity(), cell)
    count_of = Counter(cell.name for cell in unique.values())
    named = [first] + [
        cell
        if count_of[cell.name] == 1
        else cell._replace(name=", ".join(f"{k}={v}" for k, v in cell.settings.items()))
        for cell in list(unique.values())[1:]
    ]
    for name, count in Counter(cell.name for cell in named).items():
        if count > 1:
            raise UserError(f"{count} cells are called '{name}': give each a name of its own")
    return named


EVALUATE = {"linear": "linear_top1", "knn": "knn_top1"}  # evaluations, and the figure of each that a report is about


PARENT = "mlflow.parentRunId"  # how MLflow nests runs
