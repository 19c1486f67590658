"""The command line: parse, call, print. Heavy modules are imported inside commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from rich.progress import Progress

    from experiments.runs.encoders import Found
    from experiments.tracking import Store

app = typer.Typer(
    name="simclr",
    help="Pre-train SimCLR on your images, and find out why it works.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Start with: simclr pretrain --preset shapes",
)


def _tables() -> dict[str, str]:
    """The names that help texts list. They come from the tables themselves, which import torch."""
    from experiments.configs.presets import presets
    from experiments.studies.axes import axes
    from simclr.augment import AUGMENTATIONS
    from simclr.data.dataset import NORMALIZATIONS
    from simclr.data.sources import DATASETS
    from simclr.model import HEADS, STEMS
    from simclr.weights.export import EXPORTS
    from simclr.weights.foreign import LAYOUTS

    tables: dict[str, Any] = {
        "augmentations": AUGMENTATIONS,
        "datasets": DATASETS,
        "heads": HEADS,
        "stems": STEMS,
        "axes": axes(),
        "layouts": LAYOUTS,
        "exports": EXPORTS,
        "normalizations": NORMALIZATIONS,
        "presets": presets(),
    }
    return {key: ", ".join(table) for key, table in tables.items()}


class Command(TyperCommand):
    """A command whose help texts name the choices that exist; they are looked up only when help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        texts = [p for p in self.params if "{" in (getattr(p, "help", None) or "")]
        tables = _tables() if texts else {}
        for parameter in texts:
            parameter.help = parameter.help.format_map(tables)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


@contextmanager
def plain_errors() -> Iterator[None]:
    """One line for what a person can act on: exit code 2 for a mistake in the request, 1 for a run that failed."""
    from simclr.errors import RunFailed, UserError

    try:
        yield
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except RunFailed as error:
        typer.echo(f"failed: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # of `simclr runs | head`, which is Click's to end
        raise
    except OSError as error:
        file = f" {error.filename}" if error.filename else ""
        typer.echo(
            f"failed: can't read or write{file}: {error.strerror or error}; see to the rights on its folder and the "
            f"space on its disk, or name another place",
            err=True,
        )
        raise typer.Exit(1) from None


@contextmanager
def progress_bars() -> Iterator[tuple[Progress | None, Callable[[str, int, int], None]]]:
    """Bars on a terminal, nothing elsewhere; and a callback that moves the bar of a name."""
    if not sys.stderr.isatty():
        yield None, lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    # What is cut off where the terminal is narrow is the end of the description.
    columns = (BarColumn(bar_width=6), TimeRemainingColumn(compact=True), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield bars, advance


def _say(bars: Progress | None, text: str) -> None:
    """Print a line, above the bars where there are any."""
    if bars is None:
        typer.echo(text)
    else:
        bars.console.print(text, markup=False, highlight=False)


@contextmanager
def stop_on_signal(training: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came; before training has begun, and the second time, one ends the program at once."""
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        if not training():
            raise KeyboardInterrupt
        received.append(number)
        typer.echo("\nstopping: saving a checkpoint (again to stop at once)", err=True)
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, previous[name])

    previous = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def on_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def _drawable(out: Path, suffixes: Sequence[str] = (".png", ".svg", ".pdf")) -> None:
    """Refuse what no picture can be written to, before the work; without suffixes, one will be added to `out`."""
    from simclr.errors import UserError

    if out.is_dir() or not out.parent.is_dir() or (suffixes and out.suffix not in suffixes):
        raise UserError(f"can't draw to {out}: expected a {' or '.join(suffixes) or 'file'} in a folder that exists")


Preset = Annotated[str | None, typer.Option(help="A recipe: {presets}.", show_default="shapes, or none with --config")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file in the format of the presets.")]
Settings = Annotated[list[str], typer.Option("--set", help="Any other setting (repeatable): optim.weight_decay=1e-4.")]
DatasetName = Annotated[str | None, typer.Option("--dataset", help="{datasets}.")]
DataDir = Annotated[Path | None, typer.Option(help="The folder of images, or where a downloaded archive is.")]
BadImage = Annotated[str | None, typer.Option("--on-bad-image", help="error or skip, for files that are no images.")]
Seed = Annotated[int | None, typer.Option(help="Of weights, order and views.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...", show_default="auto")]
Backbone = Annotated[str | None, typer.Option(help="resnet10, resnet18, ..., or another torchvision classifier.")]
Head = Annotated[str | None, typer.Option(help="{heads}.")]
BatchSize = Annotated[int | None, typer.Option(help="Images a step; each gives two views.")]
MicroBatch = Annotated[
    str | None,
    typer.Option(help="Images in memory at a time, in groups of train.norm_batch.", show_default="what fits the GPU"),
]
Memory = Annotated[str | None, typer.Option(help="To plan for, e.g. 8GiB.", show_default="the GPU's at hand")]
PlannedMemory = Annotated[
    str | None, typer.Option(help="To plan for, e.g. 8GiB.", show_default="the GPU's at hand, else an RTX 4060's")
]
Precision = Annotated[str | None, typer.Option(help="auto, bf16, fp16 or fp32.", show_default="auto")]
Drop = Annotated[list[str], typer.Option(help="Leave out an augmentation (repeatable): {augmentations}.")]


@app.command(cls=Command)
def pretrain(
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    on_bad_image: BadImage = None,
    backbone: Backbone = None,
    head: Head = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
    hours: Annotated[float | None, typer.Option(help="Instead: as many epochs as fit, by measured speed.")] = None,
    batch_size: BatchSize = None,
    temperature: Annotated[float | None, typer.Option(help="Of the loss.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, before scaling with the batch size.")] = None,
    drop: Drop = [],  # noqa: B006 (typer copies it)
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    micro_batch: MicroBatch = None,
    memory: Memory = None,
    name: Annotated[
        str | None,
        typer.Option(help="Of the run; -s and its seed are added.", show_default="the preset's, and what was changed"),
    ] = None,
    settings: Settings = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this config's unfinished run.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Train even if this config has a finished run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Fetch the images, time a few steps, show all; no run.")
    ] = False,
) -> None:
    """Train an encoder. Settings: preset, then --config, then --set, then the other options."""
    with plain_errors():
        from experiments.configs.resolve import resolve_timed

        chosen, clock = resolve_timed(
            preset,
            config,
            settings,
            drop,
            dataset=dataset,
            data_dir=data_dir,
            on_bad_image=on_bad_image,
            backbone=backbone,
            head=head,
            epochs=epochs,
            hours=hours,
            batch_size=batch_size,
            temperature=temperature,
            lr=lr,
            seed=seed,
            device=device,
            precision=precision,
            micro_batch=micro_batch,
            memory=memory,
            name=name,
        )
        from experiments import tracking
        from experiments.configs import time_budget as timed
        from experiments.runs import estimate, train
        from simclr.config import to_toml
        from simclr.data.dataset import stored_side
        from simclr.methods.ntxent import chance_loss
        from simclr.train.memory import gib

        store, tags = tracking.Store(tracking.home()), {}
        if clock is not None:
            with progress_bars() as (_, advance):
                chosen, tags["request"] = timed.within(
                    chosen, clock, store, resume=resume, again=again, progress=advance
                )
            model, side = chosen.model, stored_side(chosen.data)
            typer.echo(
                f"by the clock: {model.backbone} of width {model.width:g}, {model.stem} stem, images of {side} px, "
                f"{chosen.train.epochs} epochs of batches of {chosen.train.batch_size}"
            )
        if dry_run:
            with progress_bars() as (_, advance):
                facts = estimate.estimate(chosen, store, advance)
            typer.echo(to_toml(facts["config"]))
            typer.echo(f"key         {facts['config'].key()}")
            typer.echo(f"images      {facts['images']}")
            typer.echo(f"steps       {facts['steps']} ({facts['steps_per_epoch']} an epoch)")
            typer.echo(f"parameters  {facts['parameters']:,}")
            typer.echo(f"device      {facts['device']}")
            parts = facts["micro_batch"] < facts["config"].train.batch_size
            how = f"in micro-batches of {facts['micro_batch']}" if parts else "each batch whole"
            typer.echo(f"memory      {gib(facts['memory'])}, {how} (predicted)")
            typer.echo(
                f"time        about {_duration(facts['seconds'])} ({facts['seconds_per_step']:.3f} s a step, timed)"
            )
            return

        from simclr.train.loop import Interrupted

        epochs = chosen.train.epochs
        chance = chance_loss(chosen.train.batch_size, include_self=chosen.loss.include_self)
        latest: dict[str, float] = {}
        total = 0
        try:
            with progress_bars() as (bars, advance), stop_on_signal(lambda: total > 0) as stop:

                def began(steps: int, run_id: str, reused: bool) -> None:
                    nonlocal total
                    total = steps
                    if reused:
                        typer.echo(f"run {run_id[:8]} has trained this config: --again or another --seed for a new one")
                    else:
                        called = f"{chosen.name}-s{chosen.seed} ({run_id[:8]})"
                        typer.echo(f"run {called}: {steps} steps; a loss of {chance:.2f} is chance")

                def show(metrics: dict[str, float], step: int) -> None:
                    latest.update(metrics)
                    status = _status(latest, chance, step / total * epochs, epochs)
                    if bars is not None:
                        advance("training", step, total)
                        bars.update(bars.task_ids[-1], description=status)
                    elif "val/knn_top1" in metrics:
                        typer.echo(status)

                run_id = train.train(
                    chosen,
                    store,
                    resume=resume,
                    again=again,
                    tags=tags,
                    progress=advance,
                    show=show,
                    began=began,
                    stop=stop,
                )
        except Interrupted as stopped:
            typer.echo(f"{stopped}: the same command with --resume goes on from there", err=True)
            raise typer.Exit(130) from None
        if latest:
            typer.echo(f"done: {_status(latest, chance, epochs, epochs)}")
        typer.echo(f"next: simclr eval {run_id[:8]} --knn --linear (without labels: --no-labels)   or   simclr ui")


def _status(latest: dict[str, float], chance: float, epoch: float, epochs: int) -> str:
    parts = [f"epoch {epoch:.1f}/{epochs}"]
    if "train/loss" in latest:
        parts.append(f"loss {latest['train/loss']:.2f} (chance {chance:.2f})")
        parts.append(f"top-1 {latest['train/contrastive_top1']:.0%}")
    if "val/knn_top1" in latest:
        parts.append(f"kNN {latest['val/knn_top1']:.1%}")
    if "perf/images_per_second" in latest:
        parts.append(f"{latest['perf/images_per_second']:.0f} img/s")
    return " ".join(parts)


Format = Annotated[str, typer.Option("--format", help="terminal, markdown, csv or latex.")]


@app.command(cls=Command)
def ablate(
    drop: Annotated[list[str], typer.Option(help="Without an augmentation (repeatable): {augmentations}.")] = [],  # noqa: B006
    alone: Annotated[list[str], typer.Option("--only", help="With one augmentation alone (repeatable).")] = [],  # noqa: B006
    together: Annotated[bool, typer.Option("--together", help="All of --drop, or of --only, as one cell.")] = False,
    axis: Annotated[str | None, typer.Option(help="{axes}, or a TOML file of your own.")] = None,
    vary: Annotated[list[str], typer.Option(help="A setting's values (repeatable): loss.temperature=0.1,0.5.")] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="How many seeds, from the config's own on.")] = 3,
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
    batch_size: BatchSize = None,
    device: Device = None,
    memory: Memory = None,
    settings: Settings = [],  # noqa: B006
    name: Annotated[str | None, typer.Option(help="Of the study.", show_default="what it varies")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and their time; run nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before a study of over an hour.")] = False,
) -> None:
    """Run a study and report it. A baseline, and what differs from it in one thing, with the same seeds."""
    with plain_errors():
        import shlex

        from experiments import tracking
        from experiments.configs.resolve import resolve, short
        from experiments.studies import report, run
        from experiments.studies.plan import plan_study
        from simclr.errors import RunFailed, UserError
        from simclr.train.loop import Interrupted
        from simclr.train.memory import gib

        if seeds < 1:
            raise UserError(f"--seeds {seeds}: expected 1 or more")
        baseline = resolve(
            preset,
            config,
            settings,
            dataset=dataset,
            data_dir=data_dir,
            epochs=epochs,
            batch_size=batch_size,
            device=device,
            memory=memory,
        )
        plan = plan_study(baseline, drop=drop, alone=alone, together=together, axis=axis, vary=vary)
        varied = [
            *(f"no-{one}" for one in drop),
            *(f"only-{one}" for one in alone),
            *([Path(axis).stem] if axis else []),
        ]
        varied += [short(text.partition("=")[0].strip()) for text in vary]
        name = name or "-".join([baseline.name, *(["together"] if together else []), *varied])
        store, places = tracking.Store(tracking.home()), range(baseline.seed, baseline.seed + seeds)
        with progress_bars() as (_, advance):
            run.same_study(name, plan, store, advance)
            cells = run.forecast(plan, store, places, advance)
        total = sum(cell.seconds * (seeds - len(cell.done)) for cell in cells)
        typer.echo(
            f"study {name}: {len(cells)} cells x {seeds} seeds ({places[0]} to {places[-1]}), "
            f"about {_duration(total)} of training to go, and the evaluations"
        )
        widest = max(len(each.cell.name) for each in cells)
        for each in cells:
            typer.echo(
                f"  {each.cell.name:{widest}} {len(each.done)} of {seeds} done, {_duration(each.seconds)} a seed, "
                f"{gib(each.memory)}"
            )
        if dry_run:
            return
        if total > 3600 and not yes and on_terminal():
            typer.confirm("go on?", abort=True)
        tracker = run.open_study(name, plan, store, shlex.join(["simclr", *sys.argv[1:]]))
        try:
            with tracker.finishing(Interrupted):
                with progress_bars() as (bars, advance), stop_on_signal(lambda: True) as stop:
                    failures = run.ablate(
                        tracker.run_id,
                        plan,
                        store,
                        places,
                        progress=advance,
                        began=lambda cell, seed: _say(bars, f"{cell}, seed {seed}"),
                        stop=stop,
                    )
                if len(failures) < len(cells) * seeds:
                    typer.echo(report.report(tracker.run_id, store))
                if failures:
                    raise RunFailed("; ".join(failures))
        except (Interrupted, KeyboardInterrupt) as stopped:
            typer.echo(f"{str(stopped) or 'stopped'}: the same command goes on from there", err=True)
            raise typer.Exit(130) from None


@app.command(cls=Command)
def report(
    study: Annotated[str, typer.Argument(help="A study's name, or the first letters of its id.")],
    form: Format = "terminal",
    out: Annotated[Path | None, typer.Option(help="Also copy its tables, figures and page to this folder.")] = None,
) -> None:
    """Report a study anew. Its tables, figures and page are made from its records."""
    with plain_errors():
        from analysis.tables import FORMATS
        from experiments import tracking
        from experiments.studies import report
        from simclr.errors import unknown

        if form not in FORMATS:
            raise unknown("format", form, FORMATS)
        store = tracking.Store(tracking.home())
        typer.echo(report.report(store.find_study(study).info.run_id, store, form, out))


@app.command(cls=Command)
def plot(
    metric: Annotated[str, typer.Argument(help="loss, knn, top1, top5, rate, or a metric by its name.")],
    runs: Annotated[list[str], typer.Argument(help="Names of runs, or the first letters of their ids.")],
    out: Annotated[Path, typer.Option(help="Where to; .png, .svg and .csv are written.")] = Path("curves"),
    smooth: Annotated[int, typer.Option(min=0, help="Running mean over so many points (0: none).")] = 0,
) -> None:
    """Draw curves of runs over each other."""
    with plain_errors():
        from experiments import tracking
        from experiments.runs import compare

        _drawable(out, ())
        written = compare.plot(metric, runs, tracking.Store(tracking.home()), out, smooth)
        typer.echo(f"wrote {', '.join(map(str, written))}")


Run = Annotated[
    str | None,
    typer.Argument(help="A run's name, the first letters of its id, or a file of weights.", show_default="the newest"),
]
Transfer = Annotated[str | None, typer.Option(help="Another data set to judge it on ({datasets}), or a folder.")]
Layer = Annotated[str | None, typer.Option(help="h, z, or head.N: module N of the head.", show_default="h")]
ProtocolSettings = Annotated[
    list[str], typer.Option("--set", help="A setting of the protocol, e.g. --set knn.k=[20,200].")
]


def _found(run: str | None, store: Store) -> Found:
    """The encoder that was named, or else the newest, of which it says which one that is."""
    from experiments.runs import encoders

    found = encoders.find(run, store)
    if run is None and found.run_id is not None:
        typer.echo(f"the newest run: {found.config.name}-s{found.config.seed} ({found.run_id[:8]})", err=True)
    return found


@app.command("eval", cls=Command)
def evaluate(
    run: Run = None,
    knn: Annotated[bool, typer.Option("--knn", help="Weighted k nearest neighbours.")] = False,
    linear: Annotated[bool, typer.Option("--linear", help="Logistic regression on frozen features.")] = False,
    linear_sgd: Annotated[bool, typer.Option("--linear-sgd", help="The paper's probe: SGD on random crops.")] = False,
    finetune: Annotated[
        str | None, typer.Option(help="Train all of it on these fractions of the labels, e.g. 0.01,0.1,1.0.")
    ] = None,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="Contrastive accuracy, alignment, uniformity, effective rank.")
    ] = False,
    transfer: Transfer = None,
    layer: Layer = None,
    data_dir: DataDir = None,
    on_bad_image: BadImage = None,
    device: Device = None,
    settings: ProtocolSettings = [],  # noqa: B006
) -> None:
    """Judge a frozen encoder. Beside it stand chance, raw pixels and an untrained one. Default: --knn --linear."""
    with plain_errors():
        from experiments import tracking
        from experiments.runs import encoders, evaluate
        from simclr.evaluate.protocol import make_protocol

        asked = {
            "knn": knn,
            "linear": linear,
            "linear-sgd": linear_sgd,
            "finetune": finetune is not None,
            "no-labels": no_labels,
        }
        names = [name for name, wanted in asked.items() if wanted] or ["knn", "linear"]
        fractions = [f"finetune.fractions=[{finetune}]"] if finetune is not None else []
        protocol = make_protocol([*fractions, *settings], layer=layer)
        store = tracking.Store(tracking.home())
        found = _found(run, store)
        with progress_bars() as (_, advance):
            subject = encoders.place(
                found,
                store,
                protocol,
                data_dir=data_dir,
                on_bad_image=on_bad_image,
                transfer=transfer,
                device=device,
                progress=advance,
            )
            report = evaluate.evaluate_encoder(found, subject, store, names, transfer)
        data = report.protocol["data"]
        held = [f"{data[part]} {part}" for part in ("train", "val", "test") if data[part]]
        images = ", ".join(held or [f"{len(subject.data.parts['pretrain'])} to pre-train on"])
        typer.echo(
            f"run {report.run_id[:8]} on {data['name']} (digest {data['digest'][:8]}; {images}), "
            f"layer {protocol.layer}, protocol {protocol.version}"
        )
        typer.echo(_evaluation_table(report.table))
        for warning in report.warnings:
            typer.echo(f"warning: {warning}", err=True)


def _evaluation_table(table: Any) -> str:
    """Accuracies in percent with their 95 % intervals; other figures as they are."""
    from math import isnan

    from tabulate import tabulate

    def number(value: float, accuracy: bool) -> str:
        return "" if isnan(value) else f"{value:.2%}" if accuracy else f"{value:.4g}"

    rows = []
    for row in table.itertuples():
        accuracy = row.metric.endswith(("_top1", "_top5", "_std"))
        interval = "" if isnan(row.low) else f"{row.low:.2%} to {row.high:.2%}"
        others = [number(value, accuracy) for value in (row.untrained, row.pixels, row.chance)]
        rows.append([row.metric, number(row.trained, accuracy), interval, *others, row.protocol])
    headers = ["", "trained", "95 % interval", "untrained", "pixels (kNN)", "chance", "protocol"]
    filled = [column for column, cells in enumerate(zip(*rows, strict=True)) if any(cells)]
    rows, headers = [[row[column] for column in filled] for row in rows], [headers[column] for column in filled]
    return str(tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * (len(filled) - 1))))


@app.command(cls=Command)
def compare(
    runs: Annotated[list[str], typer.Argument(help="Names of runs, or the first letters of their ids.")],
    form: Format = "terminal",
) -> None:
    """Compare evaluated runs. Settings that differ, figures with intervals, McNemar's test of each pair."""
    with plain_errors():
        from analysis.tables import FORMATS
        from experiments import tracking
        from experiments.runs import compare as comparison
        from simclr.errors import unknown

        if form not in FORMATS:
            raise unknown("format", form, FORMATS)
        result = comparison.compare(runs, tracking.Store(tracking.home()))
        typer.echo(FORMATS[form](result.table, [] if len(result.tests) else result.notes))
        if len(result.tests):
            typer.echo(FORMATS[form](result.tests, result.notes))


@app.command(cls=Command)
def tsne(
    run: Run = None,
    out: Annotated[Path, typer.Option(help="Where to; .png, .svg and .csv are written.")] = Path("tsne"),
    part: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    images: Annotated[int, typer.Option(min=4, help="At most so many, picked by the seed.")] = 5000,
    thumbnails: Annotated[bool, typer.Option("--thumbnails", help="Draw some of the images themselves.")] = False,
    perplexity: Annotated[float, typer.Option(help="About how many neighbours an image has.")] = 30,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    transfer: Transfer = None,
    layer: Layer = None,
    data_dir: DataDir = None,
    device: Device = None,
) -> None:
    """Draw a t-SNE map of features. Below it stands how far it can be trusted."""
    with plain_errors():
        from experiments import tracking
        from experiments.runs import encoders, pictures
        from simclr.evaluate.evaluations import check
        from simclr.evaluate.protocol import make_protocol

        _drawable(out, ())
        store = tracking.Store(tracking.home())
        found = _found(run, store)
        with progress_bars() as (_, advance):
            subject = encoders.place(
                found,
                store,
                make_protocol([], layer=layer),
                data_dir=data_dir,
                transfer=transfer,
                device=device,
                progress=advance,
            )
            check(subject, [])
            note, written = pictures.tsne(
                subject, out, part=part, images=images, perplexity=perplexity, seed=seed, thumbnails=thumbnails
            )
        typer.echo(note)
        typer.echo(f"wrote {', '.join(map(str, written))}")


Encoder = Annotated[str, typer.Argument(help="A run's name, the first letters of its id, or a file of weights.")]


@app.command(cls=Command)
def neighbours(
    run: Encoder,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("neighbours.png"),
    count: Annotated[int, typer.Option(min=1, max=50, help="Neighbours of each image.")] = 8,
    layer: Layer = None,
    data_dir: DataDir = None,
    device: Device = None,
) -> None:
    """Draw the training images nearest to an image."""
    with plain_errors():
        from experiments import tracking
        from experiments.runs import encoders, pictures
        from simclr.evaluate.evaluations import check
        from simclr.evaluate.protocol import make_protocol

        _drawable(out)
        store, protocol = tracking.Store(tracking.home()), make_protocol([], layer=layer)
        with progress_bars() as (_, advance):
            subject = encoders.place(
                encoders.find(run, store), store, protocol, data_dir=data_dir, device=device, progress=advance
            )
            check(subject, [])
            pictures.neighbours(subject, images, out, count)
        typer.echo(f"wrote {out}")


@app.command(cls=Command)
def embed(
    run: Encoder,
    folder: Annotated[Path, typer.Argument(help="A folder of images; all below it are taken.")],
    out: Annotated[Path, typer.Option(help="A .parquet or .npz file.")] = Path("features.parquet"),
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    on_bad_image: BadImage = None,
    device: Device = None,
) -> None:
    """Write the features of a folder of images. They are h, with file names."""
    with plain_errors():
        from experiments import tracking
        from experiments.runs import encoders
        from simclr import device as devices
        from simclr.data.images import walk
        from simclr.errors import UserError, unknown
        from simclr.weights.encoder import Encoder, embed_files
        from simclr.weights.features import write_features

        if on_bad_image not in (None, "error", "skip"):
            raise unknown("way with a bad image", on_bad_image, ["error", "skip"])

        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: expected one with images in it")
        found = encoders.find(run, tracking.Store(tracking.home()))
        encoder = Encoder(found.config, found.weights).to(devices.resolve(device or found.config.device))
        files = [Path(name) for name in walk(str(folder))]
        remedy = f"lower --batch-size (now {batch_size}), or use --device cpu"
        with progress_bars() as (_, advance), devices.memory_errors(remedy):
            left_out: list[str] | None = [] if on_bad_image == "skip" else None
            write_features(out, embed_files(encoder, files, batch_size, advance, left_out))
        for file in left_out or []:
            typer.echo(f"left out: {file}", err=True)
        typer.echo(f"wrote {out}: {len(files) - len(left_out or [])} images, {encoder.features} numbers each")


@app.command("import", cls=Command)
def import_(
    file: Annotated[Path, typer.Argument(help="Weights of another program (.pth, .ckpt, .safetensors, ...).")],
    form: Annotated[str, typer.Option("--format", help="auto, {layouts}.")] = "auto",
    dataset: Annotated[str, typer.Option(help="To judge it on: {datasets}.")] = "cifar10",
    data_dir: DataDir = None,
    side: Annotated[int | None, typer.Option(help="Pixels of the images.", show_default="the data set's")] = None,
    normalize: Annotated[str, typer.Option(help="Of the images it was trained on: {normalizations}.")] = "imagenet",
    backbone: Annotated[str | None, typer.Option(help="Where it is no ResNet.", show_default="found")] = None,
    stem: Annotated[str | None, typer.Option(help="{stems}.", show_default="found")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Accept missing and unknown entries.")] = False,
    name: Annotated[str | None, typer.Option(help="Of the run.", show_default="the file's")] = None,
) -> None:
    """Take in another program's encoder. It can then be judged as our own. Nothing in the file is run."""
    with plain_errors():
        from experiments import tracking
        from experiments.runs import exchange
        from simclr.config import make

        where = data_dir and str(data_dir.expanduser().resolve())
        data = make({"data": {"dataset": dataset, "dir": where, "side": side, "normalize": normalize}}).data
        with progress_bars() as (_, advance):
            run_id, imported = exchange.bring_in(
                file,
                tracking.Store(tracking.home()),
                data=data,
                name=name,
                layout=form,
                backbone=backbone,
                stem=stem,
                partial=partial,
                progress=advance,
            )
        model = imported.model
        typer.echo(f"run {run_id[:8]}: {model['backbone']}, stem {model['stem']}, width {model['width']:g}")
        typer.echo(f"images are normalised by '{normalize}': if it was trained otherwise, say so with --normalize")
        for what in ("left_out", "missing", "unmatched"):
            if keys := getattr(imported, what):
                typer.echo(f"{what.replace('_', ' ')}: {', '.join(keys)}")
        typer.echo(f"next: simclr eval {run_id[:8]}")


@app.command(cls=Command)
def export(
    run: Run = None,
    form: Annotated[str, typer.Option("--format", help="{exports}.")] = "safetensors",
    out: Annotated[Path, typer.Option(help="A folder, or a file.")] = Path(),
) -> None:
    """Write an encoder for other programs. With a card; checked by loading it as they do."""
    with plain_errors():
        from experiments import tracking
        from experiments.runs import exchange

        store = tracking.Store(tracking.home())
        parity = exchange.hand_out(_found(run, store), store, out, form)
        typer.echo(f"wrote {parity.file}, and {parity.file.with_suffix('.md').name}: how to load it")
        typer.echo(
            f"checked: its features differ by {parity.difference:.1e} of the largest (at most {parity.tolerance:g})"
        )


@app.command(cls=Command)
def search(
    trials: Annotated[int, typer.Option(min=1, help="How many in all, with those already done.")] = 30,
    space: Annotated[Path | None, typer.Option(help="A TOML file of parameters.", show_default="the suite's")] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
    device: Device = None,
    memory: PlannedMemory = None,
    settings: Settings = [],  # noqa: B006
    proxy: Annotated[list[str], typer.Option(help="A setting for the trials only (repeatable): data.limit=5000.")] = [],  # noqa: B006
    objectives: Annotated[str, typer.Option(help="accuracy, or accuracy,time for a Pareto front.")] = "accuracy",
    pruner: Annotated[str, typer.Option(help="median, hyperband or none.")] = "median",
    hours: Annotated[
        float | None, typer.Option("--max-hours", min=0, help="Begin no new trial after so many hours.")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="How many of the best trials to train anew.", show_default="1; 3 with --proxy"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Fresh seeds to train the best and the start with; 0: none.")] = 3,
    name: Annotated[str | None, typer.Option(help="Of the search.", show_default="the preset's")] = None,
) -> None:
    """Search settings by validation accuracy within the memory, then judge the best with fresh seeds."""
    with plain_errors():
        import shlex

        from analysis.tables import FORMATS
        from experiments import tracking
        from experiments.configs.resolve import resolve
        from experiments.search import confirm, trials
        from experiments.search.space import space as load_space
        from experiments.studies import report, run
        from simclr.errors import RunFailed
        from simclr.train.loop import Interrupted

        full = resolve(
            preset, config, settings, dataset=dataset, data_dir=data_dir, epochs=epochs, device=device, memory=memory
        )
        store, name = tracking.Store(tracking.home()), name or f"search-{full.name}"
        opened = searching.open_search(
            name,
            full,
            load_space(space),
            store,
            proxy=proxy,
            objectives=objectives,
            pruner=pruner,
        )
        try:
            with progress_bars() as (bars, advance), stop_on_signal(lambda: True) as stop, opened as found:
                say = partial(_say, bars)
                start = searching.reference(found, store, advance, stop)
                searching.search(
                    found,
                    store,
                    trials,
                    hours=hours,
                    progress=advance,
                    say=say,
                    stop=stop,
                )
                say(confirm.record(found, start, store))
                if not seeds:
                    return
                plan = confirm.confirmation(found, top or (3 if proxy else 1))
                places = range(full.seed + 1, full.seed + 1 + seeds)
                confirmed = "-".join([name, *(cell.name.replace(" ", "-") for cell in plan.cells[1:])])
                tracker = run.open_study(confirmed, plan, store, shlex.join(["simclr", *sys.argv[1:]]))
                with tracker.finishing(Interrupted):
                    failures = run.ablate(
                        tracker.run_id,
                        plan,
                        store,
                        places,
                        progress=advance,
                        began=lambda cell, seed: say(f"{cell}, seed {seed}"),
                        stop=stop,
                    )
                    if len(failures) == len(plan.cells) * seeds:
                        raise RunFailed("; ".join(failures))
                    say(report.report(tracker.run_id, store))
                    table = confirm.selection(found, plan, start, places, store)
                    found.tracker.artifact("selection.csv", lambda path: table.to_csv(path, index=False))
                    say(FORMATS["terminal"](table, confirm.notes(found, table)))
                    if failures:
                        raise RunFailed("; ".join(failures))
        except Interrupted as stopped:
            typer.echo(f"{stopped}: the same command goes on from there", err=True)
            raise typer.Exit(130) from None


@app.command(cls=Command)
def budget(
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    backbone: Backbone = None,
    head: Head = None,
    batch_size: BatchSize = None,
    precision: Precision = None,
    micro_batch: MicroBatch = None,
    memory: PlannedMemory = None,
    images: Annotated[int, typer.Option(min=0, help="How many the data set stores, to see if they fit too.")] = 0,
    device: Device = None,
    settings: Settings = [],  # noqa: B006
) -> None:
    """Predict a config's memory, part by part, and what fits. Needs neither a GPU nor the images."""
    with plain_errors():
        from experiments.configs.resolve import resolve
        from simclr import device as devices
        from simclr.build import check_images
        from simclr.train import budget
        from simclr.train import memory as predicted

        chosen = resolve(
            preset,
            config,
            settings,
            dataset=dataset,
            backbone=backbone,
            head=head,
            batch_size=batch_size,
            precision=precision,
            micro_batch=micro_batch,
            memory=memory,
            device=device,
        )
        check_images(chosen)
        limit = budget.budget(chosen.memory, devices.resolve(chosen.device))
        plan = budget.plan_memory(chosen, images, limit)
        parts = f" in micro-batches of {plan.micro_batch}" if plan.micro_batch < chosen.train.batch_size else ", whole"
        typer.echo(f"{chosen.name}: a batch of {chosen.train.batch_size}{parts}")
        for part, size in plan.parts.items():
            unknown = "   not counted: --images N" if part == "data" and not images else ""
            typer.echo(f"  {part:12} {predicted.gib(size):>10}{unknown}")
        typer.echo(f"  {'sum':12} {predicted.gib(plan.peak):>10}   at the peak of a step, predicted")
        for part, size in limit.reserved.items():
            typer.echo(f"  {part:12} {predicted.gib(size):>10}   of {predicted.gib(limit.total)}, reserved")
        lost = limit.total - sum(limit.reserved.values()) - limit.usable
        typer.echo(f"  {'pieces':12} {predicted.gib(lost):>10}   reserved, {budget.FRAGMENTATION:.0%} of the rest")
        typer.echo(f"  {'usable':12} {predicted.gib(limit.usable):>10}   is left for the sum")
        work = predicted.flops(chosen, plan.micro_batch)
        typer.echo(f"  {'work':12} {work / 1e9:>6.3g} GFLOP   an image")
        if images:
            speed, epochs = f"{budget.SPEED / 1e12:g} TFLOP/s", chosen.train.epochs
            typer.echo(f"the {images} stored images are kept on the {'device' if plan.on_device else 'host'}")
            typer.echo(
                f"{epochs} epochs of them take about {_duration(work * images * epochs / budget.SPEED)} at {speed}: a "
                f"guess at an RTX 4060, on which nothing has been measured"
            )
        sizes, table = budget.grid(chosen, limit, plan.micro_batch)
        typer.echo("\npeak by batch (rows) and micro-batch (columns); - does not fit")
        typer.echo(f"{'':8}" + "".join(f"{size:>10}" for size in sizes))
        for batch, peaks in table.items():
            shown = {m: predicted.gib(peak) if peak else "-" for m, peak in peaks.items()}
            typer.echo(f"{batch:>8}" + "".join(f"{shown.get(size, ''):>10}" for size in sizes))


@app.command()
def presets() -> None:
    """List the recipes, with what each costs and gives."""
    with plain_errors():
        from experiments.configs.presets import presets as load

        for preset in load().values():
            typer.echo(preset.name)
            for key, text in preset.header.items():
                typer.echo(f"    {key.lower():8} {text}")


@app.command(cls=Command)
def views(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("views.png"),
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    drop: Drop = [],  # noqa: B006
    seed: Seed = None,
    settings: Settings = [],  # noqa: B006
) -> None:
    """Draw what the network sees. Originals, both views, and each operation alone."""
    with plain_errors():
        from experiments import tracking
        from experiments.configs.resolve import resolve
        from experiments.runs import pictures
        from simclr.data.dataset import open_dataset

        _drawable(out)
        chosen = resolve(preset, config, settings, drop, dataset=dataset, data_dir=data_dir, seed=seed)
        with progress_bars() as (_, advance):
            data = open_dataset(chosen.data, tracking.home(), advance)
        pictures.view_grid(chosen, data, out)
        typer.echo(f"wrote {out}")


RUN_COLUMNS = {
    "train/loss": "loss",
    "val/knn_top1": "val kNN",
}
JUDGED = {"knn_top1": "test kNN", "linear_top1": "test linear"}


@app.command()
def runs() -> None:
    """List all runs, newest first. Of kind cell (trial) are a study's (search's) copies of runs, and failures."""
    with plain_errors():
        import pandas as pd

        from experiments import tracking

        table = tracking.Store(tracking.home()).table()
        if table.empty:
            typer.echo("no runs yet: simclr pretrain --preset shapes")
            return
        columns = {name: name for name in ("id", "name", "kind", "status", "started")} | RUN_COLUMNS
        for metric, title in JUDGED.items():
            identities = table.get(f"{tracking.PROTOCOL_TAG}{metric}", pd.Series(dtype=str))
            for identity in identities.dropna().unique():  # figures of different protocols stand in different columns
                table[f"{metric} {identity}"] = table[f"eval/{metric}"].where(identities == identity)
                columns[f"{metric} {identity}"] = f"{title} ({identity})"
        shown = table.reindex(columns=list(columns)).rename(columns=columns)
        typer.echo(shown.to_string(index=False, na_rep="", float_format="{:.4f}".format))


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """Open MLflow's pages on this machine. At http://127.0.0.1:5000; Ctrl-C ends it."""
    with plain_errors():
        from experiments import tracking

        folder = tracking.home()
        tracking.Store(folder)
        command, environment = tracking.ui_command(folder, port)
        typer.echo(f"MLflow: http://127.0.0.1:{port}  (Ctrl-C to stop)")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with subprocess.Popen(command, env=environment, start_new_session=True) as server:
            try:
                raise typer.Exit(server.wait())
            except KeyboardInterrupt:
                raise typer.Exit(0) from None
            finally:  # the server has processes of its own
                if sys.platform == "win32":
                    server.terminate()
                else:
                    with suppress(ProcessLookupError):  # they may have ended by themselves
                        os.killpg(server.pid, signal.SIGTERM)


if __name__ == "__main__":
    app()
