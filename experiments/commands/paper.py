"""`simclr paper`: the tables and figures of the SimCLR paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands.clusters import Cluster, ClusterOptions, GpusPerRun
from experiments.commands.options import (
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
    Threads,
    Yes,
    check_new_name,
    check_out,
)
from experiments.commands.output import Json, show
from experiments.commands.terminal import Terminal, command_line, confirm_long, describe_duration, resumable

if TYPE_CHECKING:
    from experiments.studies.paper import Cost


def paper(  # over 60 lines, because of its signature
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Make only two of the tables with one seed, for a quick look. One seed is too few for verdicts.",
        ),
    ] = False,
    only: Annotated[
        list[str],
        typer.Option(
            "--table",
            metavar="TABLE",
            help="Make only this table or figure: table1, fig8, ... (--dry-run lists them). Can be repeated. The page "
            "also shows those that were made before.",
            show_default="all",
        ),
    ] = [],  # noqa: B006 (Typer copies it)
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
    settings: Settings = [],  # noqa: B006 (Typer copies it)
    cluster: Cluster = None,
    gpus_per_run: GpusPerRun = None,
    cluster_options: ClusterOptions = [],  # noqa: B006
    name: Annotated[
        str | None,
        typer.Option(
            callback=check_new_name,
            help="First part of the names of the studies. Each table is a study.",
            show_default="paper- and the preset",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html, and for the same results as Markdown, CSV and LaTeX.",
            show_default="the --name",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the tables with their runs and time, then exit. Downloads the images, times a few steps of each "
            "config and one evaluation.",
        ),
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Reproduce tables of the SimCLR paper with your images.

    Reproduces Figures 5, 7, 8 and 9 and Tables 1, 3, 4 and 5 with a network of your choice. Compares the directions and
    the order of differences with the paper's, but not their sizes. Each table or figure is a study, and a run that
    several of them need is trained only once. Run the same command again to resume.

    Example: simclr paper --preset shapes --quick
    """
    from analysis.tables import FORMATS
    from experiments.configs.resolve import changed, resolve
    from experiments.studies.paper import choose, plan_paper, predict, run_part
    from experiments.studies.paper_report import FILES, numbers, overview, report
    from experiments.tracking.store import Store, home
    from experiments.workers.engines import check_cluster, open_pool
    from simclr.errors import RunFailed, first_few

    base = resolve(
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
    check_cluster(cluster, gpus_per_run, base.threads, cluster_options)
    name = name or f"paper-{base.name}" + "-quick" * quick  # whose page has fewer tables and seeds
    page = check_out((out or Path(name)) / "report.html")
    store, parts = Store(home()), plan_paper(base, name, quick=quick)
    chosen = choose(parts, only)
    changed(base, {"seed": max(part.seeds[-1] for part in parts)})  # the largest seed must be valid, too
    with Terminal() as terminal:
        costs = predict(chosen, store, terminal)
    total = sum(cost.seconds for cost in costs)
    planned = {
        "name": name,
        "seconds": total,
        "tables": [_planned(cost) for cost in costs],
    }
    if dry_run:
        show(planned, _describe_plan, as_json=as_json)
        return
    typer.echo(_describe_plan(planned), err=True)
    confirm_long(total, yes=yes)
    command, failures = command_line(), []
    with (
        resumable(),
        Terminal(resumes=True, noted=terminal.noted) as terminal,
        open_pool(cluster, gpus_per_run, base.threads, cluster_options) as pool,
    ):
        for part in sorted(chosen, key=lambda part: -len(part.seeds)):
            terminal.say(f"{part.table.title}: {part.table.about}")
            failures += run_part(part, store, command, terminal, pool)
            found = report(parts, store, command, page.parent, quick=quick)
    result = {"tables": overview(found), "results": numbers(found), "files": [page.with_name(name) for name in FILES]}
    show(result, lambda _: FORMATS["terminal"](overview(found), [f"report: {page}"]), as_json=as_json)
    if failures:
        raise RunFailed(first_few(failures, "; "))


def _planned(cost: Cost) -> dict[str, Any]:
    part = cost.part
    return {
        "key": part.key,
        "table": part.table.title,
        "about": part.table.about,
        "study": part.study,
        "rows": [row.name for row in part.rows],
        "seeds": list(part.seeds),
        "runs": cost.runs,
        "runs_done": cost.done,
        "seconds": cost.seconds,
    }


def _describe_plan(planned: dict[str, Any]) -> str:
    """What will be trained, and how long that will take."""
    from analysis.text import paragraph, text_table

    tables = planned["tables"]
    rows = [
        [
            each["key"],
            str(len(each["rows"])),
            str(len(each["seeds"])),
            str(each["runs"]),
            str(each["runs_done"]),
            describe_duration(each["seconds"]),
        ]
        for each in tables
    ]
    runs, done = (sum(each[key] for each in tables) for key in ("runs", "runs_done"))
    summary = (
        f"{planned['name']}: {runs} runs, {done} of them done; {describe_duration(planned['seconds'])} of training and "
        "evaluation left, all evaluated on test images. A run that several tables need is counted in the first of them."
    )
    return f"{paragraph(summary)}\n{text_table(['table', 'rows', 'seeds', 'runs', 'done', 'time left'], rows)}"
