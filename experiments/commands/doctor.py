"""`simclr doctor`: what this machine can do."""

from __future__ import annotations

from typing import Any

from experiments.commands.options import ConfigFile, Device, Preset, Settings
from experiments.commands.output import Json, show
from experiments.commands.terminal import describe_duration


def doctor(
    preset: Preset = None,
    config: ConfigFile = None,
    device: Device = None,
    settings: Settings = [],  # noqa: B006 (Typer copies it)
    as_json: Json = False,
) -> None:
    """Show what this machine can do, and what slows it down.

    Prints the device, its memory and precision, the disk, the record of runs, and how fast the preset trains. To find
    out, it times a few training steps on blank images, so it needs no data. Doesn't start a run.

    Example: simclr doctor --preset cifar10
    """
    from experiments.configs.machine import describe_machine
    from experiments.configs.resolve import resolve_timed
    from experiments.tracking.store import Store, home

    chosen, _ = resolve_timed(preset, config, settings, device=device)
    show(describe_machine(chosen, Store(home())), _text, as_json=as_json)


def _text(facts: dict[str, Any]) -> str:
    from analysis.text import paragraph
    from simclr.train.memory import format_bytes

    def size(amount: float | None) -> str:
        return "unknown" if amount is None or amount == float("inf") else format_bytes(amount)

    memory, disk, store = facts["memory"], facts["disk"], facts["store"]
    missing = {name: packages for name, packages in facts["extras"].items() if packages}
    rows = {
        "simclr": f"{facts['version']}, torch {facts['torch']}, Python {facts['python']}",
        "device": facts["device"],
        "memory": f"{size(memory['total'])}, of which {size(memory['free'])} are free",
        "CPU": f"{facts['cores']} cores, of which torch uses {facts['threads']}",
        "precision": f"{facts['precision']}, the number format of training; 16 bits are faster on GPUs",
        "speed": f"{facts['images_per_second']:.0f} images/s with {facts['config']} (measured now, on blank images): "
        f"{describe_duration(10_000 / facts['images_per_second'])} for an epoch of 10,000 images",
        "runs": f"{store['runs']} in {store['folder']}",
        "disk": f"{size(disk['free'])} free there",
        "extras": "all installed" if not missing else f"not installed: {', '.join(missing)}",
    }
    lines = [paragraph(f"{name:10}{text}", " " * 10) for name, text in rows.items()]
    lines[6:6] = [
        f"{'':10}{run['images_per_second']:.0f} images/s in the run {run['run']}" for run in facts["finished"]
    ]
    if missing:
        lines.append(f"{'':10}to add one: pip install 'simclr-suite[{next(iter(missing))}]'")
    lines.append("")
    lines += [paragraph(f"- {text}", "  ") for text in facts["slow"]] or ["Nothing here slows runs down."]
    return "\n".join(lines)
