"""`simclr pretrain`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands.options import (
    FROM_PRESET,
    Backbone,
    BadImage,
    BatchSize,
    ConfigFile,
    DataDir,
    DatasetName,
    Device,
    Drop,
    Epochs,
    Head,
    Init,
    Labels,
    Memory,
    Method,
    MicroBatch,
    Precision,
    Preset,
    Recheck,
    Seed,
    Settings,
    Threads,
    Unlabelled,
)
from experiments.commands.output import Json, show
from experiments.commands.several import Follower, Processes, starts_processes
from experiments.commands.terminal import Terminal, describe_duration, describe_metrics, offer_unlabelled, resuming
from simclr.errors import UserError
from simclr.progress import knn_metric

if TYPE_CHECKING:
    from experiments.configs.resolve import TimeBudget
    from experiments.runs.estimate import Estimate
    from experiments.tracking.store import Record
    from simclr.config import Config


LOG_LINES = 20  # about a run, where there are no progress bars
LATE = 0.2  # share of the time left by which a run may exceed its time budget without a warning
LIST = re.compile(r"\[\n(.*?)\]", re.DOTALL)  # a list that TOML has over several lines


def pretrain(  # over 60 lines, because of its signature
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    unlabelled: Unlabelled = False,
    labels: Labels = None,
    on_bad_image: BadImage = None,
    recheck: Recheck = False,  # noqa: ARG001 (its callback does the work)
    init: Init = None,
    method: Method = None,
    backbone: Backbone = None,
    head: Head = None,
    epochs: Epochs = None,
    hours: Annotated[
        float | None,
        typer.Option(
            help="Time budget in hours, instead of --epochs. The number of epochs is chosen from the measured speed.",
            show_default=FROM_PRESET,
        ),
    ] = None,
    batch_size: BatchSize = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Temperature of SimCLR's loss. Other methods have their own, such as --set moco.temperature=0.2.",
            show_default=FROM_PRESET,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate, before it is scaled with the batch size.", show_default=FROM_PRESET),
    ] = None,
    drop: Drop = [],  # noqa: B006 (Typer copies it)
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    micro_batch: MicroBatch = None,
    memory: Memory = None,
    threads: Threads = None,
    processes: Processes = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the run. -s and the seed are appended to it.", show_default="the preset and what you changed"
        ),
    ] = None,
    settings: Settings = [],  # noqa: B006
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the unfinished run of this config from its last checkpoint.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Start a new run even if this config has been trained before.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show all settings and the memory and time that a run would take, then exit. "
            "Downloads the images and times a few steps.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train an encoder on images.

    SimCLR and most other methods don't use their labels.
    Settings come from the preset. --config overrides some of them, and --set and the other options override these.

    Example: simclr pretrain --preset cifar10 --temperature 0.2 --dry-run
    """
    from experiments.configs.resolve import resolve_timed
    from simclr.processes import joined

    if resume and again:
        raise UserError("--resume continues a run and --again starts a new one: leave out one of them")
    with joined():
        asked, time = resolve_timed(
            preset,
            config,
            settings,
            drop,
            dataset=dataset,
            data_dir=data_dir,
            unlabelled=unlabelled or None,
            labels=labels,
            on_bad_image=on_bad_image,
            init=init,
            method=method,
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
            threads=threads,
            name=name,
        )
        if processes is None or not starts_processes(processes):
            _pretrain(asked, time, resume=resume, again=again, dry_run=dry_run, as_json=as_json)


def _pretrain(
    asked: Config, time: TimeBudget | None, *, resume: bool, again: bool, dry_run: bool, as_json: bool
) -> None:
    """Train a config, or estimate what that takes, and show it."""
    from experiments.configs.time_budget import choose_config
    from experiments.runs.encoders import weights_of
    from experiments.runs.estimate import estimate
    from experiments.runs.prepare import prepare
    from experiments.runs.train import train
    from experiments.tracking.store import Store, home
    from simclr import processes
    from simclr.evaluate.evaluations import has_test_labels
    from simclr.train.loop import Interrupted

    alone = processes.count() == 1
    if time is not None and not alone:
        raise UserError(
            "a time budget (--hours) works only in one process: choose a preset without a time budget, and set --epochs"
        )
    if not processes.is_first():
        _follow(asked, dry_run=dry_run)
        return
    store, tags = Store(home()), {}
    ends = monotonic() + time.hours * 3600 if time is not None else inf
    with Terminal(alone=alone) as terminal:
        if time is not None:
            asked, tags["request"] = choose_config(asked, time, store, resume=resume, again=again, observer=terminal)
            terminal.say(_describe_choice(asked))
        prepared = prepare(asked, store.folder, terminal)
        offer_unlabelled(prepared.data, terminal)
        if dry_run:
            estimated = estimate(prepared, in_fp32=True)
    if dry_run:
        describe = partial(_describe_estimate, config=prepared.fitted)
        show(_estimated(estimated), describe, as_json=as_json)
        return
    # torchrun starts it again with the same options
    resumes = None if processes.restarts() or (processes.restartable() and not again) else resume
    try:
        with TrainingTerminal(asked, alone=alone, ends=ends) as terminal:
            record = train(prepared, store, resume=resumes, again=again, tags=tags, observer=terminal)
    except Interrupted as stopped:
        raise KeyboardInterrupt(f"{stopped}: resume it with `{resuming()}`") from None
    weights_of(record)  # those of a run that was trained before may be gone
    trained, chance = _trained(record, has_test_labels(prepared.data)), _chance(prepared.config)
    show(trained, lambda run: _describe_run(run, record.metrics, chance), as_json=as_json)


def _follow(asked: Config, *, dry_run: bool) -> None:
    """What a process does that is not the first: compute its share, and leave the record and the terminal alone."""
    from experiments.runs.estimate import estimate
    from experiments.runs.prepare import prepare
    from experiments.runs.train import follow
    from experiments.tracking.store import home
    from simclr.train.loop import Interrupted

    with Follower() as observer:
        prepared = prepare(asked, home(), observer)
        if dry_run:
            estimate(prepared, in_fp32=True)
            return
        try:
            follow(prepared, observer)
        except Interrupted:
            raise typer.Exit(130) from None


class TrainingTerminal(Terminal):
    """Shows the progress of one run, with the epochs and the loss of a network that has learned nothing.

    `ends` is when its time budget is over. A run that will take longer says so once.
    """

    def __init__(self, config: Config, *, alone: bool = True, ends: float = inf) -> None:
        from experiments.runs.remarks import remarks
        from simclr.methods import METHODS

        super().__init__(alone=alone)
        self.config, self.ends = config, ends
        self.seconds: list[float] = []  # for each step of every stretch so far
        self.chance = _chance(config).get("train/loss")
        self.labels = ", trained on labels" if METHODS[config.method].reads_labels else ""
        self.remarks = remarks(config)

    def began(self, run_id: str, steps: int) -> None:
        super().began(run_id, steps)
        self.seconds = []
        facts = f"{steps} step{'s' * (steps != 1)}{self.labels}"
        facts += f"; guessing gives a loss of {self.chance:.2f}" if self.chance is not None else ""
        self.say(f"run {self.config.run_name()} ({run_id[:8]}): {facts}")
        for remark in self.remarks:
            self.say(remark)

    def reused(self, run_id: str, name: str) -> None:
        unused = f" (so the name {self.config.run_name()} is not used)" if name != self.config.run_name() else ""
        remedy = "add --again or another --seed to train a new one"
        self.say(f"run {name} ({run_id[:8]}) has already trained this config{unused}: {remedy}")

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        before = self.step
        super().metrics(metrics, step)
        if (speed := metrics.get("perf/images_per_second")) is not None:
            self.seconds.append(self.config.train.batch_size / speed)
        left = (self.steps - step) * (sum(self.seconds) / len(self.seconds) if self.seconds else 0.0)
        due = LOG_LINES * before // self.steps < LOG_LINES * step // self.steps
        if self.bars is None and (due or before == 0):
            self.say(self.status() + (f", {describe_duration(left)} left" if left else ""))
            if name := knn_metric(self.latest):
                del self.latest[name]  # the next line would show it as if it was measured again
        if due and before and (late := monotonic() + left - self.ends) > LATE * left:
            self.ends = inf
            self.say(
                f"this machine has become slower since its speed was measured: training takes "
                f"{describe_duration(left)} more, and ends {describe_duration(late)} after the time budget"
            )

    def status(self) -> str:
        epochs = self.config.train.epochs
        return f"epoch {self.step / self.steps * epochs:.1f}/{epochs} {describe_metrics(self.latest)}"


def _chance(config: Config) -> dict[str, float]:
    """What a network that has learned nothing reaches while it trains, where that is known."""
    from simclr.methods import METHODS

    return METHODS[config.method].chance(config.method_settings(), config.train.batch_size, config.view_count())


def _trained(record: Record, labelled: bool) -> dict[str, Any]:
    """A run that was trained, its newest metrics, and what to do with it next."""
    from analysis.tables import as_shown

    run = record.handle
    following = (
        [f"simclr eval {run}", "simclr ui"]
        if labelled
        else [f"simclr eval {run} --no-labels", f"simclr explore {run}", f"simclr neighbours {run} PHOTO"]
    )
    metrics = {metric: as_shown(metric, value) for metric, value in record.metrics.items()}
    return {"run": record.name, "id": record.id, "metrics": metrics, "next": following}


def _describe_run(run: dict[str, Any], metrics: Mapping[str, float], chance: Mapping[str, float]) -> str:
    figures = describe_metrics(metrics, chance.get("train/contrastive_top1"))
    return f"done: {run['run']}: {figures}\nnext: {'   or   '.join(run['next'])}"


def _describe_choice(config: Config) -> str:
    """What a time budget chose."""
    from simclr.data.dataset import stored_side

    model, train = config.model, config.train
    return (
        f"chosen for the time budget: {model.backbone} of width {model.width:g}, {model.stem} stem, images of "
        f"{stored_side(config.data)} px, {train.epochs} epoch{'s' * (train.epochs != 1)}, "
        f"batches of {train.batch_size}"
    )


def _estimated(found: Estimate) -> dict[str, Any]:
    """The data of a dry run."""
    from experiments.runs.remarks import remarks
    from simclr import processes

    prepared = found.prepared
    return {
        "config": prepared.fitted.model_dump(mode="json"),
        "key": prepared.config.key(),
        "images": len(prepared.data.parts["pretrain"]),
        "steps": prepared.steps.total,
        "steps_per_epoch": prepared.steps.per_epoch,
        "parameters": found.parameters,
        "device": found.device,
        "memory_bytes": found.memory,
        "micro_batch": found.micro_batch,
        "processes": processes.count(),
        "seconds": found.seconds,
        "seconds_per_step": found.seconds_per_step,
        "seconds_per_step_in_fp32": found.seconds_in_fp32,
        "snapshots": prepared.config.train.snapshots(),
        "snapshot_bytes": found.snapshot_bytes,
        "remarks": remarks(prepared.config),
    }


def _describe_estimate(found: dict[str, Any], config: Config) -> str:
    """What a dry run prints: all settings, then what the run would take."""
    from simclr.config import to_toml
    from simclr.train.memory import format_bytes

    count = found["processes"]
    split = found["micro_batch"] < config.train.batch_size // count
    how = f"in micro-batches of {found['micro_batch']}" if split else "no micro-batches"
    each = f" in each of {count} processes" if count > 1 else ""
    rows = {
        "key": found["key"],
        "images": found["images"],
        "steps": f"{found['steps']} ({found['steps_per_epoch']} per epoch)",
        "parameters": f"{found['parameters']:,}",
        "device": found["device"],
        "memory": f"{format_bytes(found['memory_bytes'])}{each}, {how} (predicted)",
        "time": f"{describe_duration(found['seconds'])} ({found['seconds_per_step']:.3f} s per step, measured)",
    }
    bf16, fp32 = found["seconds_per_step"], found["seconds_per_step_in_fp32"]
    if fp32 is not None and bf16 >= fp32:
        rows["precision"] = f"bf16 is currently no faster than fp32 on this CPU ({bf16:.3f} and {fp32:.3f} s per step)"
    if found["snapshots"]:
        rows["snapshots"] = f"{found['snapshots']}, {format_bytes(found['snapshot_bytes'])} on the disk"
    settings = LIST.sub(lambda match: f"[{' '.join(match[1].split()).rstrip(',')}]", to_toml(config))
    lines = [*rows.items(), *(("remark", text) for text in found["remarks"])]
    return "\n".join([settings, *(f"{name:11} {value}" for name, value in lines)])
