"""An ablation study as a list of cells: pure data, derived from a baseline and from what to vary."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments.configs.resolve import (
    changed,
    check_augmentation,
    check_distinct,
    check_method,
    preset_on,
    shared,
    short_name,
    short_setting,
)
from experiments.studies.axes import MOST_CELLS, Axis, AxisCell, axes, axis_over, find_axis
from experiments.studies.cell import BASELINE, Cell, is_number
from experiments.studies.design import Design
from experiments.studies.expect import with_expectations
from simclr.augment import AUGMENTATIONS
from simclr.config import Config
from simclr.errors import UserError, printable
from simclr.settings import flatten, get_value, parse_setting, parse_value

STUDY_EVALUATIONS = ["linear", "knn"]  # of every cell
COSTS = {"time": "time", "flops": "floating-point operations"}  # of training, which --equal can make equal
RATE = "optim.lr"  # the setting that `rates` of an axis choose
DECADE = 10  # if the values of --vary span this factor or more, the axis of the figure is logarithmic


class StudyPlan(NamedTuple):
    """The cells of a study, with the baseline first, and the numeric axis of its figure if it has one."""

    cells: list[Cell]
    x: str | None = None  # the setting on the axis
    log: bool = False
    lines: dict[str, dict[str, float]] = {}  # noqa: RUF012  {line: {cell: x}}; a line for each value of other settings
    name: str = ""  # of the study, unless the user chooses another
    equal: str | None = None  # what all cells cost alike: one of COSTS
    asked: Sequence[Cell] = ()  # the cells as they were before settings were chosen for them, if any were
    design: Design = Design()

    def digest(self, data: str, auto: str | None = None) -> str:
        """A hash of the plan and of the digest of its data. The design and seeds after the first don't change it.

        Settings that the study chooses don't change it either. `auto` is what the precision "auto" stands for (default:
        what it does on this machine).
        """
        cells = self.asked or self.cells
        configs = [cell.config for cell in cells]
        keys = [config.key(auto if config.train.precision == "auto" else None) for config in configs]
        parts: list[object] = [data, *((cell.name, key, cell.layer) for cell, key in zip(cells, keys, strict=True))]
        parts += [(cell.name, cell.rates) for cell in cells if cell.rates]
        parts += ["resplit"] * cells[0].resplit + [f"equal {self.equal}"] * (self.equal is not None)
        return hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()

    def evaluated_on(self, on: str) -> StudyPlan:
        """The same plan, evaluated on the images of "test" or "val"."""
        return self._replace(cells=[cell._replace(on=on) for cell in self.cells])

    def with_cells(self, cells: Sequence[Cell]) -> StudyPlan:
        """The same plan after settings were chosen for its cells. Raises UserError if two are the same then."""
        names: dict[tuple[str, str], str] = {}
        for cell in cells:
            if (other := names.setdefault(cell.identity(), cell.name)) != cell.name:
                raise UserError(
                    f"'{other}' and '{cell.name}' differ only in {', '.join(cell.chosen)}, which the study chooses: "
                    f"vary something else"
                )
        return self._replace(cells=list(cells), asked=self.asked or self.cells)

    def must_choose_rates(self) -> bool:
        """Whether its cells have learning rates to try, of which none was chosen yet."""
        return any(cell.rates and RATE not in cell.chosen for cell in self.cells)

    def jobs(self, seeds: Sequence[int]) -> Iterator[tuple[Cell, int]]:
        """Every cell with every seed, all cells of a seed first: an unfinished study can still be paired by seed."""
        return ((cell, seed) for seed in seeds for cell in self.cells)


def plan_study(
    baseline: Config,
    *,
    drop: Sequence[str] = (),
    alone: Sequence[str] = (),
    together: bool = False,
    axis: str | Axis | None = None,
    vary: Sequence[str] = (),
    resplit: bool = False,
    equal: str | None = None,
) -> StudyPlan:
    """Plan a study around a baseline.

    `drop` names augmentations to leave out, `alone` augmentations to keep as the only ones: each in a cell of its own,
    or all in one cell with `together`. `axis` is an axis, its name, or a TOML file with one. `vary` lists settings with
    their values, such as "loss.temperature=0.1,0.5"; they are crossed with all other cells, which the study also has
    with the baseline's own values. Cells that equal the baseline are merged into it. With `resplit`, each seed has its
    own split of the images. `equal` is the cost that is the same for all cells, one of COSTS (see `at_equal_cost`).
    Raises UserError for unknown names, invalid values, and a plan with nothing to compare.
    """
    if together and not drop and not alone:
        raise UserError("--together has nothing to combine: name augmentations with --drop or --only")
    check_distinct("--drop", drop)
    check_distinct("--only", alone)
    chosen = find_axis(axis) if isinstance(axis, str) else axis or Axis()
    known = axes()["augmentations"]
    cells = [
        *(_dropped(baseline, names, known)._replace(apart=True) for names in _groups(drop, together)),
        *(_only(baseline, names, apart=True) for names in _groups(alone, together)),
        *axis_cells(baseline, chosen),
    ]
    x, log = chosen.x, chosen.log
    if vary:
        varied = _varied(baseline, vary)
        if not cells and len(vary) == 1:
            x = vary[0].partition("=")[0].strip()
            log = _spans_decade([value for cell in varied for value in cell.settings.values()])
            if all(list(cell.settings) == [x] for cell in varied):
                own = get_value(baseline.model_dump(mode="json"), x)
                chosen = axis_over(x, [own, *(cell.settings[x] for cell in varied)])
                varied = axis_cells(baseline, chosen)
        cells = _crossed(baseline, cells, varied) if cells else varied
    plan = _with_baseline(baseline, cells, chosen.model_copy(update={"x": x}))
    lowest = min((cell.x for cell in plan if is_number(cell.x)), default=1.0)
    if chosen.log and lowest <= 0:
        raise UserError(f"{x} = {lowest:g} can't be drawn on a logarithmic axis: set log = false")
    for cell in plan:
        changed(cell.config, {"name": cell.of_seed(0).name})  # a name that is too long must not end the study later
    if len(plan) < 2:
        raise UserError("nothing differs from the baseline: use --drop, --only, --axis or --vary")
    parts = [baseline.name, *(["together"] if together else [])]
    parts += [f"no-{name}" for name in drop] + [f"only-{name}" for name in alone]
    parts += [printable(Path(axis).stem)] if isinstance(axis, str) else []
    parts += [short_name(text.partition("=")[0].strip()) for text in vary]
    parts += [*["resplit"] * resplit, *[f"equal-{equal}"] * (equal is not None)]
    plan = [cell._replace(resplit=resplit) for cell in plan]
    return StudyPlan(plan, x, log and lowest > 0, _lines(plan, cells, x) if x else {}, "-".join(parts), equal)


def settings_name(changes: Mapping[str, Any]) -> str:
    """The name of a cell with these changes, e.g. `temperature=0.1, loss.normalize=False`."""
    return ", ".join(short_setting(path, value) for path, value in changes.items())


def refuse_fixed(path: str) -> None:
    """Raise UserError for a setting that no study or search may vary."""
    if path == "name":
        raise UserError("name can't be varied: it changes no result")
    if shared(path):
        raise UserError(
            f"{path} can't be varied: runs can only be compared on the same images and machine, with the same seeds"
        )


def _cell(
    start: Config,
    changes: Mapping[str, Any],
    name: str | None = None,
    layer: str = "h",
    before: Mapping[str, Any] = MappingProxyType({}),
    **facts: Any,
) -> Cell:
    """The cell whose config is `start` with some changes. `before` are the changes that led from the baseline to it.

    Raises UserError for settings that are invalid or may not be varied.
    """
    changes = flatten(changes)
    for path in changes:
        refuse_fixed(path)
    settings = {**before, **changes}
    suffix = f", layer {layer}" if layer != "h" else ""
    config = changed(start, changes)
    check_method(config, changes)
    return Cell(name or settings_name(settings) + suffix, config, settings, layer, **facts)


# --- augmentations ----------------------------------------------------------------------------------------------------


def _groups(names: Sequence[str], together: bool) -> list[list[str]]:
    return [list(names)] if together and names else [[name] for name in names]


def _views(baseline: Config) -> list[str]:
    return ["augment"] if baseline.augment2 is None else ["augment", "augment2"]


def _present(baseline: Config) -> list[str]:
    """The augmentations of either view, in the order in which they are applied."""
    views = [getattr(baseline, view) for view in _views(baseline)]
    return [name for name in AUGMENTATIONS if any(getattr(view, name).p for view in views)]


def _dropped(baseline: Config, names: Sequence[str], axis: Axis) -> Cell:
    """The baseline without some augmentations in either view. `axis` lists those that matter according to the paper.

    Raises UserError for an augmentation that the baseline doesn't have.
    """
    present = _present(baseline)
    for name in names:
        check_augmentation(name)
        if name not in present:
            raise UserError(
                f"the baseline doesn't use '{name}', so it can't be dropped: choose from {', '.join(present)}"
            )
    changes = {f"{view}.{name}.p": 0.0 for view in _views(baseline) for name in names}
    matters = bool(set(names) & set(axis.lower))
    return _cell(
        baseline,
        changes,
        f"no {', '.join(names)}",
        direction="lower" if matters else None,
        source=axis.source if matters else None,
    )


def _only(baseline: Config, names: Sequence[str], *, one_sided: bool = False, **facts: Any) -> Cell:
    """The baseline with these augmentations alone. Those that it doesn't have are always applied.

    With `one_sided`, both views start with the same crop, and only the second is augmented (paper, Section 3.1).
    """
    for name in names:
        check_augmentation(name)
    views, chosen = _views(baseline), set(names)
    both, crop = {"shared_crop"} if one_sided else chosen, baseline.augment.crop
    kept = {"augment": both, "augment2": both | chosen} if one_sided else dict.fromkeys(views, both)

    def probability(view: str, name: str) -> float:
        if name not in kept[view]:
            return 0.0
        own = {each: float(getattr(getattr(baseline, each), name).p) for each in views}
        if one_sided:
            return own.get(view, own["augment"]) or AUGMENTATIONS[name]().p or 1.0
        return own.get(view, own["augment"]) or (0.0 if any(own.values()) else 1.0)

    changes: dict[str, Any] = {f"{view}.{name}.p": probability(view, name) for view in kept for name in AUGMENTATIONS}
    if one_sided:
        same = {"scale": list(crop.scale), "ratio": list(crop.ratio)}
        changes |= {f"{view}.shared_crop.{key}": value for view in kept for key, value in same.items()}
    return _cell(baseline, changes, f"only {' + '.join(names)}", **facts)


# --- axes and varied settings -----------------------------------------------------------------------------------------


def axis_cells(baseline: Config, axis: Axis) -> list[Cell]:
    """The cells of an axis around a baseline, in its order. Some may equal each other, or the baseline."""
    if axis.leave_out:
        return [_dropped(baseline, [name], axis) for name in _present(baseline)]
    pairs = [(group, group) for group in axis.pairs] + list(combinations(axis.pairs, 2))
    if pairs:
        names = {pair: "+".join(dict.fromkeys(pair)).split("+") for pair in pairs}
        return [_only(baseline, names[pair], one_sided=axis.one_sided, pair=pair, source=axis.source) for pair in pairs]
    return [_axis_cell(baseline, cell, axis.source) for cell in axis.cells]


def _axis_cell(baseline: Config, cell: AxisCell, source: str | None) -> Cell:
    return _cell(
        preset_on(cell.preset, baseline) if cell.preset else baseline,
        cell.set,
        cell.name,
        cell.layer,
        {"preset": cell.preset} if cell.preset else {},
        paper=cell.paper,
        difference=cell.difference,
        direction=cell.direction,
        source=source,
    )


def _varied(baseline: Config, texts: Sequence[str]) -> list[Cell]:
    """A cell for each value of "loss.temperature=0.05,0.1", or for each combination of values of several settings.

    Values are read as TOML, so lists need brackets. Text that isn't TOML is split at its commas.
    """
    choices: dict[str, list[Any]] = {}
    own = baseline.model_dump(mode="json")
    for text in texts:
        path, equals, values = text.partition("=")
        path = path.strip()
        if not path or not equals:
            raise UserError(f"--vary {text}: expected SETTING=VALUE,VALUE, e.g. loss.temperature=0.05,0.1,0.5")
        _, parsed = parse_setting(f"{path}=[{values}]")
        if isinstance(parsed, str):  # it isn't TOML
            parsed = [parse_value(value.strip(), path) for value in values.split(",") if value.strip()]
        if not parsed:
            raise UserError(f"--vary {text} has no value: expected one or more, e.g. loss.temperature=0.05,0.1,0.5")
        if all(value == get_value(own, path) for value in parsed):
            raise UserError(f"--vary {text} is the baseline's own value: give another one")
        if path in choices:
            raise UserError(f"--vary {path} is given twice: list all of its values in one --vary")
        choices[path] = parsed
    _check_count(math.prod(map(len, choices.values())))
    return [_cell(baseline, dict(zip(choices, values, strict=True))) for values in product(*choices.values())]


def _check_count(cells: int) -> None:
    if cells > MOST_CELLS:
        raise UserError(f"the study would have {cells} cells: expected at most {MOST_CELLS}. Vary fewer values at once")


def _spans_decade(values: Sequence[Any]) -> bool:
    return all(map(is_number, values)) and 0 < DECADE * min(values) <= max(values)


def _crossed(baseline: Config, cells: Sequence[Cell], varied: Sequence[Cell]) -> list[Cell]:
    """The cells in `varied`, those in `cells`, and every combination of both: with the baseline, a whole table."""
    columns, first = list(varied), Cell(BASELINE, baseline)
    if baseline not in (cell.config for cell in varied):
        columns.insert(0, first)
    _check_count((len(cells) + 1) * len(columns))
    for cell in cells:
        if twice := sorted(set(cell.settings) & set(varied[0].settings)):
            raise UserError(f"--vary {twice[0]} and '{cell.name}' change the same setting: remove one of them")
    return [
        *varied,
        *(
            cell
            if other is first
            else _cell(
                cell.config,
                other.settings,
                f"{cell.name}, {other.name}",
                cell.layer,
                cell.settings,
                apart=cell.apart,
            )
            for cell in cells
            for other in columns
        ),
    ]


# --- the plan ---------------------------------------------------------------------------------------------------------


def _with_baseline(baseline: Config, cells: Sequence[Cell], axis: Axis) -> list[Cell]:
    """The baseline, then the cells that differ from it, each once. Adds what to expect according to the paper."""

    def with_x(cell: Cell) -> Cell:
        return cell._replace(x=get_value(cell.config.model_dump(mode="json"), axis.x)) if axis.x else cell

    first = with_x(Cell(BASELINE, baseline))
    same = next((cell for cell in cells if cell.identity() == first.identity()), first)
    first = first._replace(paper=same.paper, pair=same.pair)
    unique = {first.identity(): first}
    for cell in cells:
        unique.setdefault(cell.identity(), with_x(cell))
    counts = Counter(cell.name for cell in unique.values())
    differing = [
        cell if counts[cell.name] == 1 else cell._replace(name=", ".join(f"{k}={v}" for k, v in cell.settings.items()))
        for cell in list(unique.values())[1:]
    ]
    for name, count in Counter([BASELINE, *(cell.name for cell in differing)]).items():
        if count > 1:
            raise UserError(f"{count} cells have the name '{name}': give each a name of its own")
    return with_expectations(_with_rates([first, *differing], axis.rates), axis)


def _with_rates(cells: Sequence[Cell], factors: Sequence[float]) -> list[Cell]:
    """The cells with the learning rates that each tries, as factors of its own. Raises UserError if some differ in it.

    All cells, including the baseline, try the same number, so that none is better because it was tuned more.
    """
    if not factors:
        return list(cells)
    if len({(changed(cell.config, {RATE: 1.0}).key(), cell.layer) for cell in cells}) < len(cells):
        raise UserError(f"some cells differ in {RATE} alone, which the axis' rates choose: vary something else")
    rates = {cell.name: tuple(float(f"{factor * cell.config.optim.lr:.6g}") for factor in factors) for cell in cells}
    for cell in cells:
        changed(cell.config, {RATE: max(rates[cell.name])})  # it must be valid
    return [cell._replace(rates=rates[cell.name]) for cell in cells]


def _lines(plan: Sequence[Cell], cells: Sequence[Cell], x: str) -> dict[str, dict[str, float]]:
    """The lines of the figure over x, {line: {cell: x}}: one for each combination of the other varied settings.

    `cells` are the cells before duplicates were merged. A merged cell is on the lines of all its duplicates.
    """
    names = {cell.identity(): cell.name for cell in plan}
    others = list(dict.fromkeys(path for cell in cells for path in cell.settings if path != x))
    points: list[tuple[dict[str, Any], str, float]] = []
    for cell in cells if plan[0].identity() in map(Cell.identity, cells) else (plan[0], *cells):
        table = cell.config.model_dump(mode="json")
        if is_number(value := get_value(table, x)):
            rest = {"layer": cell.layer} | {path: get_value(table, path) for path in others}
            points.append((rest, names[cell.identity()], float(value)))
    differing = [path for path in ("layer", *others) if any(rest[path] != points[0][0][path] for rest, _, _ in points)]
    lines: dict[str, dict[str, float]] = {}
    for rest, name, value in points:
        lines.setdefault(settings_name({path: rest[path] for path in differing}), {})[name] = value
    return lines
