"""What the paper leads to expect of the cells of a study, and of which of them it says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.configs.resolve import changed
from experiments.studies.axes import Axis
from experiments.studies.cell import Cell, is_number
from simclr.settings import flatten


def with_expectations(cells: Sequence[Cell], axis: Axis) -> list[Cell]:
    """The cells of a study, the baseline first, with the difference or direction that the paper leads to expect.

    A cell is compared with the baseline, or, if the paper did not try that, with another cell of the axis: the paper's
    best, or the lowest of those that rise. A cell to which the paper's result does not apply gets a `caveat`, why.
    Cells that don't come from the axis are compared with the baseline, whatever the axis says.
    """
    own = [cell for cell in cells if not cell.apart]
    alike = _alike(own, axis)
    return [cells[0], *(cell if cell.apart else _with_expectation(cell, own, axis, alike) for cell in cells[1:])]


def _alike(cells: Sequence[Cell], axis: Axis) -> dict[str, tuple[str, str]]:
    """What cells whose x has a rank are apart from that, by name: those with the same differ in x alone."""
    ranked = [cell for cell in cells if _rank(cell, axis) is not None]
    return {cell.name: (changed(cell.config, {str(axis.x): ranked[0].x}).key(), cell.layer) for cell in ranked}


def _with_expectation(cell: Cell, cells: Sequence[Cell], axis: Axis, alike: Mapping[str, tuple[str, str]]) -> Cell:
    plain = cell._replace(difference=None, direction=None)
    if cell.paper is None and cell.difference is None and cell.direction is None and _rank(cell, axis) is None:
        return plain._replace(caveat=axis.tried() if axis.x in cell.settings else None)
    rivals = _rivals(cell, cells, axis, alike)
    if not rivals:
        return plain._replace(caveat=f"the paper compares it with {_named(axis.reference)}")
    reference = cells[0] if cells[0] in rivals else rivals[0]
    if any(_settings(cell)[path] not in values for path, values in axis.requires.items()):
        return plain._replace(caveat=axis.because or f"the paper has {_named(axis.requires)}")
    if cell is reference:
        return plain
    found = plain._replace(against=reference.name if reference is not cells[0] else None)
    if cell.paper is not None and reference.paper is not None:
        return found._replace(difference=round(cell.paper - reference.paper, 2))
    if cell.difference is not None or cell.direction is not None:
        return found._replace(difference=cell.difference, direction=cell.direction)
    rank, other = _rank(cell, axis), _rank(reference, axis)
    if rank is None or other is None or rank == other:
        return plain
    return found._replace(direction="higher" if rank > other else "lower")


def _rivals(cell: Cell, cells: Sequence[Cell], axis: Axis, alike: Mapping[str, tuple[str, str]]) -> list[Cell]:
    """The cells, the preferred one first, with which the paper's result may compare a cell (itself among them)."""
    if cell.paper is not None:
        return sorted((each for each in cells if each.paper is not None), key=lambda each: -(each.paper or 0.0))
    if cell.difference is not None or cell.direction is not None:
        return [
            each for each in cells if each.layer == "h" and _settings(each).items() >= flatten(axis.reference).items()
        ]
    others = [each for each in cells if each.name in alike and alike[each.name] == alike[cell.name]]
    return sorted(others, key=lambda each: _rank(each, axis) or 0.0)


def _rank(cell: Cell, axis: Axis) -> float | None:
    """The place of a cell among those whose accuracy rises with x. None if the paper did not try its x."""
    if cell.x in axis.rising:
        return axis.rising.index(cell.x)
    return cell.x if axis.rising_from is not None and is_number(cell.x) and cell.x >= axis.rising_from else None


def _settings(cell: Cell) -> dict[str, Any]:
    return flatten(cell.config.model_dump(mode="json"))


def _named(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} = {value}" for path, value in settings.items())
