"""`simclr budget`: predicted memory."""

from __future__ import annotations

from typing import Annotated, Any

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
from experiments.commands.output import Json, show
from experiments.commands.terminal import describe_duration


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
    processes: Annotated[
        int, typer.Option(min=1, max=4096, help="Number of processes that share a batch, each on a GPU of its own.")
    ] = 1,
    images: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=10**9,
            help="Number of images in the data set, to see whether they also fit. 0 leaves them out.",
        ),
    ] = 0,
    device: Device = None,
    settings: Settings = [],  # noqa: B006 (Typer copies it)
    as_json: Json = False,
) -> None:
    """Predict how much memory a config needs, and what fits.

    Breaks down the memory of a training step, or of the kNN evaluation during training if that needs more, and shows
    the peaks of other batch sizes. Needs neither a GPU nor the images.

    Example: simclr budget --preset cifar10 --batch-size 4096 --memory 8GiB
    """
    from experiments.configs.resolve import resolve
    from simclr import device as devices
    from simclr.build import check_images
    from simclr.processes import pretended
    from simclr.train.budget import SPEED, Images, check_share, memory_budget, peak_table, plan_memory
    from simclr.train.memory import flops

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
    with pretended(processes):
        check_share(chosen)
        target = devices.resolve(chosen.device)
        limit = memory_budget(chosen.memory, target)
        plan = plan_memory(chosen, Images(images), limit)
        sizes, peaks = peak_table(chosen, Images(images), limit, plan.micro_batch)
        work, epochs = flops(chosen, plan.micro_batch), chosen.train.epochs
    result = {
        "config": chosen.name,
        "batch_size": chosen.train.batch_size,
        "micro_batch": plan.micro_batch,
        "processes": processes,
        "parts": plan.parts,
        "peak": plan.peak,
        "peak_of": plan.when,
        "total": limit.total,
        "reserved": limit.reserved,
        "fragmentation": limit.total - sum(limit.reserved.values()) - limit.usable,
        "usable": limit.usable,
        "assumed_card": None if chosen.memory or not devices.shares_memory(target) else "RTX 4060",
        "flop_per_image": work,
        "images": images,
        "images_on_device": plan.images_on_device,
        "epochs": epochs,
        "seconds": work * images * epochs / SPEED / processes,
        "micro_batches": sizes,
        "peaks": peaks,
    }
    show(result, _text, as_json=as_json)


def _text(result: dict[str, Any]) -> str:
    """The memory part by part, the time, and the peaks of other sizes."""
    from simclr.train.budget import FRAGMENTATION, SPEED
    from simclr.train.memory import format_bytes

    def row(name: str, shown: str, note: str = "") -> str:
        return f"  {name:13} {shown:>10}   {note}".rstrip()

    batch, micro_batch, images = result["batch_size"], result["micro_batch"], result["images"]
    count = result["processes"]
    how = f"in micro-batches of {micro_batch}" if micro_batch < batch // count else "no micro-batches"
    among = f" in {count} processes, each of them" if count > 1 else ","
    lines = [f"{result['config']}: a batch of {batch}{among} {how}"]
    for part, size in result["parts"].items():
        lines.append(
            row(part, format_bytes(size), "not counted: add --images" if part == "data" and not images else "")
        )
    lines.append(row("peak", format_bytes(result["peak"]), f"of {result['peak_of']}, predicted"))
    for part, size in result["reserved"].items():
        lines.append(row(part, format_bytes(size), f"of {format_bytes(result['total'])}, reserved"))
    lines.append(
        row("fragmentation", format_bytes(result["fragmentation"]), f"{FRAGMENTATION:.0%} of the rest, reserved")
    )
    lines.append(row("usable", format_bytes(result["usable"]), "left for the peak"))
    lines.append(row("work", f"{result['flop_per_image'] / 1e9:.3g} GFLOP", "per image"))
    if images:
        epochs = result["epochs"]
        lines.append(f"the {images} stored images are kept on the {'device' if result['images_on_device'] else 'host'}")
        lines.append(
            f"time for {epochs} epoch{'s' * (epochs != 1)}: {describe_duration(result['seconds'])}, assuming "
            f"{SPEED / 1e12:g} TFLOP/s (a guess for an RTX 4060)"
            + (f" in each of {count} processes, without the time for communication" if count > 1 else "")
        )
    if card := result["assumed_card"]:
        lines.append(f"There is no GPU here, so an {card} is assumed: --memory plans for another card.")
    return "\n".join([*lines, "", _peaks(result)])


def _peaks(result: dict[str, Any]) -> str:
    """The peak of other batch sizes and micro-batches."""
    from simclr.train.memory import format_bytes

    sizes = result["micro_batches"]
    lines = ["peak by batch size (rows) and micro-batch (columns); -: does not fit"]
    lines.append(f"{'':8}" + "".join(f"{size:>10}" for size in sizes))
    for batch, peaks in result["peaks"].items():
        shown = {size: format_bytes(peak) if peak else "-" for size, peak in peaks.items()}
        lines.append(f"{batch:>8}" + "".join(f"{shown.get(size, ''):>10}" for size in sizes))
    return "\n".join(line.rstrip() for line in lines)
