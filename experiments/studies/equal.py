"""Cells at equal cost: the epochs of each cell with which its training costs what the baseline's does."""

from __future__ import annotations

from experiments.runs.estimate import estimate
from experiments.runs.prepare import Prepared, prepare
from experiments.studies.plan import COSTS, StudyPlan
from experiments.tracking.store import Store
from simclr.errors import UserError
from simclr.progress import SILENT, Observer
from simclr.train.cost import count_flops

CLOSE = 0.1  # how far a cell's cost may be from the baseline's, as a share of it


def at_equal_cost(plan: StudyPlan, store: Store, observer: Observer = SILENT) -> StudyPlan:
    """The plan with the number of epochs for each cell at which its training costs as much as the baseline's, by
    `plan.equal`. The warm-up keeps its share of them.

    The time of a step is measured on this machine. Floating-point operations are those of a whole step: of both views,
    forwards and backwards, and of all networks of the method. Raises UserError if no whole number of epochs brings a
    cell's cost within CLOSE of the baseline's.
    """
    assert plan.equal is not None
    costs: dict[str, float] = {}  # of an epoch, by the key of the config: layers of one network share its training
    for count, cell in enumerate(plan.cells, 1):
        if cell.config.key() not in costs:
            prepared = prepare(cell.config, store.folder, observer)
            costs[cell.config.key()] = _step_cost(prepared, plan.equal) * prepared.steps.per_epoch
        observer.progress("timing" if plan.equal == "time" else "counting", count, len(plan.cells))
    baseline = plan.cells[0].config
    whole = costs[baseline.key()] * baseline.train.epochs
    cells = []
    for cell in plan.cells:
        each = costs[cell.config.key()]
        epochs = max(1, round(whole / each))
        if abs(epochs * each / whole - 1) > CLOSE:
            raise UserError(
                f"'{cell.name}' can't be trained at the baseline's cost: epochs are whole, and the nearest number, "
                f"{epochs}, takes {epochs * each / whole:.0%} of its {COSTS[plan.equal]}. Add more --epochs"
            )
        warmup = cell.config.optim.warmup_epochs * epochs / cell.config.train.epochs  # the same share of the training
        chosen = {"train.epochs": epochs, "optim.warmup_epochs": warmup}
        cells.append(cell.with_chosen(chosen, epochs * each / whole))
    return plan.with_cells(cells)


def _step_cost(prepared: Prepared, by: str) -> float:
    """What a training step costs: seconds, or floating-point operations."""
    if by == "time":
        return estimate(prepared).seconds_per_step
    return count_flops(prepared.fitted, prepared.data, prepared.device)
