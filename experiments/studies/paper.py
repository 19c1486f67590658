"""The tables and figures of the paper (arXiv 2002.05709) as studies around one config, whose equal runs are shared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from experiments.configs.resolve import changed
from experiments.runs.encoders import encoder_of, load_subject
from experiments.runs.evaluate import evaluate_encoder, prefix
from experiments.runs.prepare import Prepared, check_labels, prepare
from experiments.studies.axes import Axis, AxisCell
from experiments.studies.cell import Cell
from experiments.studies.execute import execute
from experiments.studies.forecast import forecast, with_seed
from experiments.studies.opening import check_study_name, study_named
from experiments.studies.plan import StudyPlan, axis_cells, plan_study
from experiments.studies.results import Job, read_results
from experiments.tracking.store import Store
from experiments.workers.pool import HERE, Pool
from simclr.config import Config
from simclr.data.dataset import open_dataset
from simclr.errors import UserError, unknown
from simclr.evaluate.evaluations import check
from simclr.evaluate.protocol import identity
from simclr.progress import SILENT, Observer
from simclr.settings import Many, Name, Section, flatten, get_value, read_toml

LINEAR = "linear_top1"
Direction = Literal["lower", "higher", "same"]


class Row(Section):
    """One row of a table. The header of paper.toml explains the keys."""

    name: Name
    set: dict[str, Any] = Field(default_factory=dict)
    times: dict[str, float] = Field(default_factory=dict)
    layer: str = "h"
    paper: dict[str, float] = Field(default_factory=dict)
    against: str | None = None
    difference: float | None = None
    direction: Direction | None = None

    def changes(self, base: Config) -> dict[str, Any]:
        """The settings in which the row differs from a config."""
        values = flatten(base.model_dump(mode="json"))
        scaled = {path: factor * values[path] for path, factor in self.times.items()}
        whole = {path: max(1, round(value)) for path, value in scaled.items() if isinstance(values[path], int)}
        return self.set | scaled | whole


class Claim(Section):
    """What the paper says of several rows. The header of paper.toml explains the keys."""

    says: str
    weights: dict[str, float]
    metric: str | None = None
    direction: Direction | None = None


class Table(Section):
    """A table or figure of the paper. The header of paper.toml explains the keys."""

    title: str
    about: str
    passage: str
    note: str = ""
    seeds: int = 3
    quick: bool = False
    set: dict[str, Any] = Field(default_factory=dict)
    rows: Many[Row] = ()
    pairs: Many[str] = ()
    against: str | None = None
    direction: Direction | None = None
    evaluate: str | None = None
    columns: dict[str, str] = Field(default_factory=lambda: {LINEAR: "linear top-1 (%)"})
    compared: Many[str] = ()
    claims: Many[Claim] = ()
    orders: Many[Many[str]] | None = None
    least: dict[str, float] = Field(default_factory=dict)


class Part(NamedTuple):
    """A table of the paper around a config, as a study."""

    key: str  # its name in paper.toml
    table: Table
    study: str  # its name
    plan: StudyPlan
    seeds: range
    rows: tuple[Row, ...]
    cells: dict[str, str]  # the cell of the study that each row is, by their names
    caveat: str | None  # why the paper's results can't be compared with it


def tables() -> dict[str, Table]:
    """The tables that paper.toml describes, in the paper's order."""
    found = read_toml(Path(str(files("experiments") / "paper.toml")))
    return {name: Table.model_validate(table) for name, table in found.items()}


def plan_paper(config: Config, name: str, *, quick: bool = False) -> list[Part]:
    """The tables of the paper around a config, in studies whose names begin with `name`.

    `quick` takes few of them, with one seed. Raises UserError if a setting that a row multiplies leaves its range.
    """
    chosen = {key: table for key, table in tables().items() if table.quick or not quick}
    parts = []
    for key, table in chosen.items():
        try:
            parts.append(_part(key, f"{name}-{key}", table, config, 1 if quick else table.seeds))
        except UserError as error:
            raise UserError(f"{table.title} can't be made around {config.name}: {error}") from None
    return parts


def choose(parts: Sequence[Part], keys: Sequence[str]) -> list[Part]:
    """The tables with these names in paper.toml, or all if there are no names.

    Raises UserError for an unknown name, and for one that --quick leaves out.
    """
    known = [part.key for part in parts]
    for key in keys:
        if key not in tables():
            raise unknown("table", key, known)
        if key not in known:
            raise UserError(f"--quick makes only {' and '.join(known)}: leave out --quick to make {key}")
    return [part for part in parts if part.key in keys or not keys]


def _part(key: str, study: str, table: Table, config: Config, seeds: int) -> Part:
    base = changed(config, table.set)
    cells = tuple(AxisCell(set=row.changes(base), name=row.name, layer=row.layer) for row in table.rows)
    axis = Axis(pairs=table.pairs, one_sided=bool(table.pairs), cells=cells)
    plan = plan_study(base, axis=axis)
    names = {cell.identity(): cell.name for cell in plan.cells}
    found = {cell.name: names[cell.identity()] for cell in axis_cells(base, axis)}
    values = base.model_dump(mode="json")
    below = [f"{path} from {least:g} up" for path, least in table.least.items() if get_value(values, path) < least]
    return Part(
        key=key,
        table=table,
        study=study,
        plan=plan,
        seeds=range(config.seed, config.seed + seeds),
        rows=table.rows or tuple(Row(name=row) for row in found),
        cells=found,
        caveat=f"the paper has {', '.join(below)}" if below else None,
    )


# --- time -------------------------------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """What a table takes beyond the tables before it."""

    part: Part
    runs: int  # that no table before it has
    done: int  # of these runs
    seconds: float  # of training and evaluating the others


def predict(parts: Sequence[Part], store: Store, observer: Observer = SILENT) -> list[Cost]:
    """Predict the time of each table. Raises UserError if a study has another plan, or a cell can't run."""
    config = parts[0].plan.cells[0].config
    check_labels(config, open_dataset(config.data, store.folder, observer), "paper")
    cells: dict[tuple[str, str], Cell] = {}
    for part in parts:
        check_study_name(part.study, part.plan, store, observer)
        for cell in part.plan.cells:
            cells.setdefault(cell.identity(), cell._replace(name=f"{part.table.title}: {cell.name}"))
    seeds = max((part.seeds for part in parts), key=len)
    seconds: dict[str, float] = {}
    done: dict[str, list[int]] = {}
    evaluation = 0.0
    for found in forecast(StudyPlan(list(cells.values())), store, seeds, observer):
        key = found.cell.config.key()
        seconds[key], done[key] = max(seconds.get(key, 0.0), found.seconds), found.done
        evaluation = found.evaluation
    counted: set[tuple[str, int]] = set()
    costs = []
    for part in parts:
        jobs = {(cell.config.key(), seed) for cell, seed in part.plan.jobs(part.seeds)} - counted
        left = [key for key, seed in jobs if seed not in done[key]]
        time = sum(seconds[key] + evaluation for key in left)
        costs.append(Cost(part, len(jobs), len(jobs) - len(left), time))
        counted |= jobs
    return costs


# --- runs -------------------------------------------------------------------------------------------------------------


def run_part(part: Part, store: Store, command: str, observer: Observer = SILENT, pool: Pool = HERE) -> list[str]:
    """Run a table's study, or what is missing of it, and its own evaluation. Returns a sentence for each failure.

    Raises as `execute` does.
    """
    outcome = execute(part.study, part.plan, store, part.seeds, command, observer, pool=pool)
    if part.table.evaluate is not None and outcome.report:
        _evaluate(part, part.table.evaluate, store, observer)
    return [f"{part.table.title}: {failure}" for failure in outcome.failures]


def _evaluate(part: Part, name: str, store: Store, observer: Observer) -> None:
    """Run an evaluation on the runs of a table that lack it."""
    study = study_named(part.study, store)
    assert study is not None  # it has a report
    wanted = {part.cells[row.name] for row in part.rows}
    runs, metrics = read_results(study, store).runs, [metric for metric in part.table.columns if metric != LINEAR]
    for cell, prepared in _jobs(part, store, observer):
        run = runs.get((cell.name, prepared.config.seed))
        if cell.name not in wanted or run is None or not run.finished:
            continue
        protocol, own = cell.protocol(), _identity(name, cell, prepared)
        if any(run.protocols.get(prefix(protocol.layer) + metric) != own for metric in metrics):
            encoder = encoder_of(run)
            subject = load_subject(encoder, prepared.data, protocol, prepared.device, observer)
            check(subject, [name])
            evaluate_encoder(encoder, subject, store, [name])


def _jobs(part: Part, store: Store, observer: Observer) -> Iterator[tuple[Cell, Prepared]]:
    """The cells of a table's study with each seed."""
    first = prepare(part.plan.cells[0].of_seed(part.seeds[0]), store.folder, observer)
    for cell, seed in part.plan.jobs(part.seeds):
        yield cell, with_seed(first, cell, seed, store, observer)


def _identity(name: str, cell: Cell, prepared: Prepared) -> str:
    return identity(name, cell.protocol(), prepared.config, prepared.data, prepared.device)


def own_protocols(part: Part, store: Store) -> dict[Job, str]:
    """The identity of the protocol of a table's own evaluation for each cell and seed, if it has one."""
    name = part.table.evaluate
    if name is None:
        return {}
    return {(cell.name, each.config.seed): _identity(name, cell, each) for cell, each in _jobs(part, store, SILENT)}
