"""`simclr ablate`: ablation studies."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands import complete
from experiments.commands.clusters import Cluster, ClusterOptions, GpusPerRun
from experiments.commands.options import (
    AUGMENTATIONS,
    BadImage,
    BatchSize,
    ConfigFile,
    DataDir,
    DatasetName,
    Device,
    Epochs,
    Labels,
    Memory,
    MicroBatch,
    Preset,
    Recheck,
    Settings,
    StudyOn,
    Threads,
    Yes,
    check_new_name,
    check_number,
    choice,
)
from experiments.commands.output import Json, show
from experiments.commands.planned import describe_plan, planned_cell
from experiments.commands.terminal import Terminal, command_line, confirm_long, resumable
from simclr.errors import UserError
from simclr.settings import read_toml

if TYPE_CHECKING:
    from experiments.studies.cell import Cell
    from experiments.studies.design import Design
    from simclr.config import Config

AXES = read_toml(Path(str(files("experiments") / "axes.toml")))
MOST_SEEDS = 20  # that --until takes, unless the user says otherwise
SMALLEST = 0.01  # points of accuracy that make sense


def ablate(  # over 60 lines, because of its signature
    drop: Annotated[
        list[str],
        typer.Option(
            metavar="AUGMENTATION",
            help="Augmentation to leave out in one cell. Can be repeated, for more cells, and is crossed with --vary. "
            f"Choices: {', '.join(AUGMENTATIONS)}.",
            show_default=False,
            autocompletion=complete.of(AUGMENTATIONS),
        ),
    ] = [],  # noqa: B006 (Typer copies it)
    alone: Annotated[
        list[str],
        typer.Option(
            "--only",
            metavar="AUGMENTATION",
            help="The only augmentation to keep in one cell. Can be repeated, for more cells. Choices: "
            f"{', '.join(AUGMENTATIONS)}.",
            show_default=False,
            autocompletion=complete.of(AUGMENTATIONS),
        ),
    ] = [],  # noqa: B006
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Use one cell for all --drop augmentations, and one for all --only augmentations.",
        ),
    ] = False,
    axis: Annotated[
        str | None,
        typer.Option(
            help=f"Prepared list of cells: {', '.join(AXES)} (the guide on ablation studies says what they vary), or a "
            "TOML file of your own.",
            show_default=False,
            autocompletion=complete.of(AXES),
        ),
    ] = None,
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="SETTING=VALUE,...",
            help="Setting to vary, such as loss.temperature=0.1,0.5, with one cell per value in addition to the "
            "baseline. Can be repeated, for one cell per combination. Cells of --drop, --only and --axis are repeated "
            "for each value.",
            show_default=False,
            autocompletion=complete.settings,
        ),
    ] = [],  # noqa: B006
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=100,
            help="Number of seeds to train each cell with, counting up from the config's seed. Three are enough for a "
            "quick look.",
        ),
    ] = 5,
    until: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            min=SMALLEST,
            max=100,
            callback=check_number,
            help="Add seeds until the 95 % interval of each difference is at most ± this many points.",
            show_default=False,
        ),
    ] = None,
    max_seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=3, max=100, help="Largest number of seeds for --until.", show_default=str(MOST_SEEDS)
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            min=SMALLEST,
            max=100,
            callback=check_number,
            help="Smallest difference that matters to you. Cells are called the same if a difference of this size can "
            "be ruled out.",
        ),
    ] = 1.0,
    on: StudyOn = None,
    resplit: Annotated[
        bool,
        typer.Option(
            "--resplit",
            help="Draw a new split of the images for each seed, the same for all cells. Validation and test sets that "
            "come with your images are kept.",
        ),
    ] = False,
    equal: Annotated[
        str | None,
        typer.Option(
            metavar="COST",
            help="Choose the number of epochs of each cell so that its training costs as much as the baseline's, in "
            "time (measured on this machine) or flops.",
            show_default=False,
            **choice("--equal", "time", "flops"),
        ),
    ] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    labels: Labels = None,
    on_bad_image: BadImage = None,
    recheck: Recheck = False,  # noqa: ARG001 (its callback does the work)
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    micro_batch: MicroBatch = None,
    device: Device = None,
    memory: Memory = None,
    threads: Threads = None,
    settings: Settings = [],  # noqa: B006
    cluster: Cluster = None,
    gpus_per_run: GpusPerRun = None,
    cluster_options: ClusterOptions = [],  # noqa: B006
    name: Annotated[
        str | None,
        typer.Option(callback=check_new_name, help="Name of the study.", show_default="the preset and what is varied"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the cells with their memory and time and the differences that the study can detect, then exit. "
            "Downloads the images, times a few steps of each cell, and evaluates once.",
        ),
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Run an ablation study and report it.

    A study trains and evaluates a baseline and variations of it (the cells), all with the same seeds. It reuses cells
    that have been trained before. Run the same command again to resume a study.

    Example: simclr ablate --preset shapes --drop color_jitter --drop grayscale
    """
    from experiments.configs.resolve import changed, resolve
    from experiments.runs.remarks import remarks
    from experiments.studies.cell import baseline_label
    from experiments.studies.equal import at_equal_cost
    from experiments.studies.execute import execute, rates_plan, rates_seed
    from experiments.studies.forecast import forecast
    from experiments.studies.opening import check_study_name, part_to_evaluate_on, with_recorded_choices
    from experiments.studies.plan import plan_study
    from experiments.studies.power import outlook
    from experiments.tracking.claims import check_unclaimed
    from experiments.tracking.store import Store, home
    from experiments.workers.engines import check_cluster, open_pool

    baseline = resolve(
        preset,
        config,
        settings,
        dataset=dataset,
        data_dir=data_dir,
        labels=labels,
        on_bad_image=on_bad_image,
        epochs=epochs,
        batch_size=batch_size,
        micro_batch=micro_batch,
        device=device,
        memory=memory,
        threads=threads,
    )
    check_cluster(cluster, gpus_per_run, baseline.threads, cluster_options)
    if name is not None:  # the runs are called after the study, too: no-blur-s0@NAME
        baseline = baseline.model_copy(update={"name": name})
    plan = plan_study(
        baseline, drop=drop, alone=alone, together=together, axis=axis, vary=vary, resplit=resplit, equal=equal
    )
    name = name or plan.name
    store, numbers = Store(home()), range(baseline.seed, baseline.seed + seeds)
    plan = plan._replace(design=_design(numbers, until, max_seeds, margin))
    most = range(baseline.seed, baseline.seed + max(seeds, plan.design.most))
    plan = plan.evaluated_on(part_to_evaluate_on(name, on, store))
    largest = rates_seed(most[0]) if plan.must_choose_rates() else most[-1]
    changed(baseline, {"seed": largest, "data.split_seed": baseline.data.split_seed + resplit * largest})
    with Terminal() as terminal:
        if not dry_run:
            check_unclaimed(store, "study", name, observer=terminal)
        plan = with_recorded_choices(name, plan, store)
        check_study_name(name, plan, store, terminal)  # before the cells are timed
        if plan.equal is not None and not plan.asked:
            plan = at_equal_cost(plan, store, terminal)
        cells = forecast(plan, store, most, terminal)
        power = outlook(plan, store, seeds)
    tries = rates_plan(name, plan).cells if plan.must_choose_rates() else []
    total = sum(
        (cell.seconds + cell.evaluation) * (len(most) - len(cell.done) + bool(tries) * len(cell.cell.rates))
        for cell in cells
    )
    planned = {
        "study": name,
        "seeds": list(numbers),
        "most_seeds": len(most),
        "on": plan.cells[0].on,
        "seconds": total,
        "crossed": bool(vary and (drop or alone or axis)),
        "remarks": remarks(baseline),
        "confounded": len(vary) > 1 and not any(_is_alone(cell, baseline) for cell in plan.cells),
        "baseline": baseline_label([(cell.name, cell.settings) for cell in plan.cells], baseline.flat(), plan.x),
        "cells": [planned_cell(each) for each in cells],
        "rates": [cell.name for cell in tries],
        "power": power,
    }
    if dry_run:
        show(planned, describe_plan, as_json=as_json)
        return
    typer.echo(describe_plan(planned), err=True)
    confirm_long(total, yes=yes)
    with (
        resumable(),
        Terminal(resumes=True, noted=terminal.noted) as terminal,
        open_pool(cluster, gpus_per_run, baseline.threads, cluster_options) as pool,
    ):
        command, form = command_line(), "json" if as_json else "terminal"
        outcome = execute(name, plan, store, numbers, command, terminal, form, pool)
    if outcome.report:
        typer.echo(outcome.report)
    outcome.check()


def _design(seeds: range, until: float | None, max_seeds: int | None, margin: float) -> Design:
    """The design of the study from its options. Raises UserError if they don't fit together."""
    from analysis.statistics import FEWEST_SEEDS
    from experiments.studies.design import Design

    if until is None:
        if max_seeds is not None:
            raise UserError("--max-seeds limits --until: add --until 1 (in points), or set the number with --seeds")
        return Design(margin=margin)
    if len(seeds) < FEWEST_SEEDS:
        raise UserError(f"--until needs the spread of {FEWEST_SEEDS} seeds or more: use --seeds {FEWEST_SEEDS}")
    most = max(MOST_SEEDS, len(seeds)) if max_seeds is None else max_seeds
    if most < len(seeds):
        raise UserError(f"--max-seeds {most} is less than --seeds {len(seeds)}, which are trained first: raise it")
    return Design(margin=margin, until=until, first=tuple(seeds), most=most)


def _is_alone(cell: Cell, baseline: Config) -> bool:
    """Whether a cell differs from the baseline in one setting."""
    theirs, own = ({"method": "simclr", **config.flat()} for config in (cell.config, baseline))  # which leaves it out
    return [theirs.get(path) != own.get(path) for path in cell.settings].count(True) == 1
