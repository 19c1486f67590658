"""`simclr search`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands import complete
from experiments.commands.clusters import Cluster, ClusterOptions, GpusPerRun
from experiments.commands.names import names_in
from experiments.commands.options import (
    BadImage,
    BatchSize,
    ConfigFile,
    DataDir,
    DatasetName,
    Device,
    Epochs,
    Labels,
    MicroBatch,
    PlannedMemory,
    Preset,
    Recheck,
    Settings,
    StudyOn,
    Threads,
    Yes,
    check_new_name,
    check_number,
)
from experiments.commands.output import Json, show
from experiments.commands.terminal import Terminal, command_line, confirm_long, describe_duration, resumable
from simclr.errors import UserError

if TYPE_CHECKING:
    from experiments.search.confirm import SearchOutcome

OBJECTIVES = names_in("experiments.search.trials.OBJECTIVES")
PRUNERS = names_in("experiments.search.trials.PRUNERS")


def search(  # over 60 lines, because of its signature
    trials: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=100_000,
            help="Total number of trials, including those of earlier calls of this search.",
        ),
    ] = 30,
    space: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with the parameters to search, in the format of the suite's own (space.toml).",
            show_default="the suite's own",
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
    memory: PlannedMemory = None,
    threads: Threads = None,
    settings: Settings = [],  # noqa: B006 (Typer copies it)
    proxy: Annotated[
        list[str],
        typer.Option(
            metavar="SETTING=VALUE",
            help="Setting that makes the trials cheaper, such as data.limit=5000. The best trials are then trained "
            "without it. Can be repeated.",
            show_default=False,
            autocompletion=complete.settings,
        ),
    ] = [],  # noqa: B006
    objectives: Annotated[
        str,
        typer.Option(
            help=f"What to optimize: {' or '.join(OBJECTIVES)} (a Pareto front).",
            autocompletion=complete.of(OBJECTIVES),
        ),
    ] = "accuracy",
    pruner: Annotated[
        str,
        typer.Option(
            help=f"Rule that stops trials with a low accuracy early: {', '.join(PRUNERS)}.",
            autocompletion=complete.of(PRUNERS),
        ),
    ] = "median",
    hours: Annotated[
        float | None,
        typer.Option(
            "--max-hours",
            metavar="N",
            min=0,
            max=8760,
            callback=check_number,
            help="Number of hours after which no new trial starts.",
            show_default="unlimited",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=100,
            help="Number of best trials to train again with fresh seeds.",
            show_default="1, or 3 with --proxy",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=100,
            help="Number of fresh seeds to train the best trials and the starting config with. 0: none.",
        ),
    ] = 3,
    on: StudyOn = None,
    cluster: Cluster = None,
    gpus_per_run: GpusPerRun = None,
    cluster_options: ClusterOptions = [],  # noqa: B006
    name: Annotated[
        str | None,
        typer.Option(callback=check_new_name, help="Name of the search.", show_default="search- and the preset"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what is varied and how long the search takes, then exit. Downloads the images, times a few "
            "training steps and one evaluation.",
        ),
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Search for better settings that fit into memory.

    Trials are compared by their accuracy on validation images. The best are then trained again with fresh seeds and
    evaluated on validation images, to see how much of the gain holds. For the final result, add --on test. Run the same
    command again to resume a search.

    Example: simclr search --preset shapes --trials 30 --max-hours 8
    """
    from experiments.configs.resolve import changed, resolve
    from experiments.search.confirm import confirm
    from experiments.search.forecast import forecast
    from experiments.search.space import load_space
    from experiments.search.trials import check_choices, open_search, reference_accuracy, run_trials
    from experiments.tracking.claims import check_unclaimed
    from experiments.tracking.store import Store, home
    from experiments.workers.engines import check_cluster, open_pool

    full = resolve(
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
    check_cluster(cluster, gpus_per_run, full.threads, cluster_options)
    changed(full, {"seed": full.seed + seeds})  # the largest fresh seed must be valid, too
    check_choices(objectives, pruner)
    if not seeds and (top is not None or on is not None):
        given = "--on" if top is None else "--top"
        raise UserError(f"{given} is for runs with fresh seeds, and --seeds 0 trains none: leave one of them out")
    name, top, store = name or f"search-{full.name}", top or (3 if proxy else 1), Store(home())
    parameters = load_space(space)
    with Terminal() as terminal:
        if not dry_run:
            check_unclaimed(store, "search", name, observer=terminal)
        cost = forecast(
            name,
            full,
            parameters,
            store,
            trials=trials,
            top=top,
            seeds=seeds,
            hours=hours,
            proxy=proxy,
            objectives=objectives,
            observer=terminal,
        )
    planned = {"name": name, **cost._asdict()}
    if dry_run:
        show(planned, _describe_plan, as_json=as_json)
        return
    typer.echo(_describe_plan(planned), err=True)
    confirm_long(cost.seconds, yes=yes)
    with (
        resumable(),
        Terminal(resumes=True, noted=terminal.noted) as terminal,
        open_pool(cluster, gpus_per_run, full.threads, cluster_options) as pool,
        open_search(
            name,
            full,
            parameters,
            store,
            proxy=proxy,
            objectives=objectives,
            pruner=pruner,
            parallel=pool.several,
            observer=terminal,
        ) as current,
    ):
        start = reference_accuracy(current, terminal, pool)
        run_trials(current, trials, hours=hours, observer=terminal, pool=pool)
        command = command_line()
        found = confirm(
            current,
            start,
            top=top,
            seeds=seeds,
            command=command,
            on=on,
            observer=terminal,
            form="json" if as_json else "terminal",
            pool=pool,
        )
        show(_data(found), lambda _: _text(found), as_json=as_json)
        if found.study is not None:
            found.study.check()  # while the search is open, so that it never looks finished


def _describe_plan(planned: dict[str, Any]) -> str:
    """What will be trained, and how long that takes."""
    from analysis.findings import count
    from analysis.text import paragraph

    done, runs = min(planned["trials"], planned["trials_done"]), planned["runs"]
    left = planned["trials"] - done
    trials = f"your config and {count(planned['trials'], 'trial')}, {done} of them done"
    if left:
        trials += f", {describe_duration(planned['trial_seconds'])} each"
    if runs:
        trials += (
            f"; then at most {count(runs, 'run')} with fresh seeds, {describe_duration(planned['run_seconds'])} each"
        )
    return paragraph(
        f"{planned['name']}: {trials}; {describe_duration(planned['seconds'])} in all, if trials take as long as your "
        "config. Trials that are stopped early take less time, and larger networks take more. The search varies "
        f"{', '.join(planned['varied'])}."
    )


def _text(found: SearchOutcome) -> str:
    """How the search ended, the best trials with fresh seeds, where the reports are, and what to do next."""
    from analysis.tables import FORMATS
    from analysis.text import paragraph
    from experiments.search.report import shown

    parts, last = ["\n".join(map(paragraph, found.summary.splitlines()))], [found.report]
    if found.study is not None and found.selection is not None:
        parts.append(FORMATS["terminal"](shown(found.selection), found.notes))
        last.append(f"report of the fresh seeds: simclr report {shlex.quote(found.study.study.name)}")
    last += [f"next: {command}" for command in found.next]
    return "\n\n".join([*parts, "\n".join([*last, *filter(None, [found.remark])])])


def _data(found: SearchOutcome) -> dict[str, Any]:
    study = found.study
    failures = [str(failure) for failure in study.failures] if study else []
    report = json.loads(study.report) if study and study.report.startswith("{") else None
    selection = None
    if found.selection is not None:
        accuracies = found.selection.drop(columns=["cell", "n"])
        selection = found.selection.assign(**(100 * accuracies).round(2))
    return {**found._asdict(), "study": report, "selection": selection, "failures": failures}
