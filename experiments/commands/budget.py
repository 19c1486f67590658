"""`simclr budget`: predicted memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.options import (
    Backbone,
    BatchSize,
    ConfigFile,
    DatasetName,
    Device,
    Head,
    MicroBatch,
    PlannedMemory,
    Precision,
    Preset,
    Settings,
)
from experiments.commands.terminal import describe_duration

if TYPE_CHECKING:
    from simclr.config import Config
    from simclr.train.budget import MemoryBudget, MemoryPlan


def budget(  # over 60 lines, because of its signature
    preset: Preset = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    backbone: Backbone = None,
    head: Head = None,
    batch_size: BatchSize = None,
    precision: Precision = None,
    micro_batch: MicroBatch = None,
    memory: PlannedMemory = None,
    images: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=10**9,
            help="Number of images in the data set, to see whether they fit too. 0: not counted.",
        ),
    ] = 0,
    device: Device = None,
    settings: Settings = [],  # noqa: B006 (Typer copies it)
) -> None:
    """Predict how much memory a config needs, and what fits.

    Shows the memory of a training step part by part, and that of other batch sizes. Needs neither a GPU nor the images.

    Example: simclr budget --preset cifar10 --batch-size 4096 --memory 8GiB
    """
    from experiments.configs.resolve import resolve
    from simclr import device as devices
    from simclr.build import check_images
    from simclr.train.budget import FRAGMENTATION, memory_budget, plan_memory
    from simclr.train.memory import format_bytes

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
    limit = memory_budget(chosen.memory, devices.resolve(chosen.device))
    plan = plan_memory(chosen, images, limit)
    batch = chosen.train.batch_size
    how = f"in micro-batches of {plan.micro_batch}" if plan.micro_batch < batch else "no micro-batches"
    typer.echo(f"{chosen.name}: a batch of {batch}, {how}")
    for part, size in plan.parts.items():
        _echo_row(part, size, "not counted: add --images" if part == "data" and not images else "")
    _echo_row("peak", plan.peak, "of a training step, predicted")
    for part, size in limit.reserved.items():
        _echo_row(part, size, f"of {format_bytes(limit.total)}, reserved")
    fragments = limit.total - sum(limit.reserved.values()) - limit.usable
    _echo_row("fragmentation", fragments, f"{FRAGMENTATION:.0%} of the rest, reserved")
    _echo_row("usable", limit.usable, "left for the peak")
    _echo_time(chosen, plan, images)
    _echo_peaks(chosen, plan, limit)


def _echo_row(name: str, size: int, note: str) -> None:
    from simclr.train.memory import format_bytes

    typer.echo(f"  {name:13} {format_bytes(size):>10}   {note}".rstrip())


def _echo_time(config: Config, plan: MemoryPlan, images: int) -> None:
    """How much computing an image takes, and how long training on the images may take."""
    from simclr.train.budget import SPEED
    from simclr.train.memory import flops

    work = flops(config, plan.micro_batch)
    typer.echo(f"  {'work':13} {f'{work / 1e9:.3g} GFLOP':>10}   per image")
    if images:
        typer.echo(f"the {images} stored images are kept on the {'device' if plan.images_on_device else 'host'}")
        typer.echo(
            f"time for {config.train.epochs} epoch{'s' * (config.train.epochs != 1)}: "
            f"{describe_duration(work * images * config.train.epochs / SPEED)}, assuming {SPEED / 1e12:g} TFLOP/s (a "
            f"guess for an RTX 4060)"
        )


def _echo_peaks(config: Config, plan: MemoryPlan, limit: MemoryBudget) -> None:
    """The peak of other batch sizes and micro-batches."""
    from simclr.train.budget import peak_table
    from simclr.train.memory import format_bytes

    sizes, table = peak_table(config, limit, plan.micro_batch)
    typer.echo("\npeak by batch size (rows) and micro-batch (columns); -: does not fit")
    typer.echo(f"{'':8}" + "".join(f"{size:>10}" for size in sizes))
    for batch, peaks in table.items():
        shown = {size: format_bytes(peak) if peak else "-" for size, peak in peaks.items()}
        typer.echo(f"{batch:>8}" + "".join(f"{shown.get(size, ''):>10}" for size in sizes))
