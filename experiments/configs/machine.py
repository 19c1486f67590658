"""What this machine has and does: the facts that decide how fast and how large runs can be."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from experiments.configs.time_budget import seconds_per_image
from experiments.tracking.pages import shared_server
from experiments.tracking.store import Store
from simclr import device as devices
from simclr.config import Config
from simclr.data.workers import available_memory, cores

PACKAGE = "simclr-suite"
USER_EXTRAS = ("export", "tsne", "heic", "hf")  # that add to what commands can do
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # variables that limit the threads of torch
LITTLE_DISK = 2 * 2**30  # bytes
LITTLE_MEMORY = 2 * 2**30


def describe_machine(config: Config, store: Store) -> dict[str, Any]:
    """Facts about the device of a config, the disk, the record and the extras, with the speed of the config.

    Sizes are in bytes, and None if unknown. `slow` has a sentence for each thing that slows runs down or that they may
    run out of. Raises UserError if the device can't be used.
    """
    device = devices.resolve(config.device)
    disk = shutil.disk_usage(_existing(store.folder))
    facts: dict[str, Any] = {
        "version": metadata.version(PACKAGE),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": devices.describe(device),
        "memory": _memory(device),
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "precision": devices.precision_on(config.train.precision, device),
        "fast_bf16": devices.has_fast_bf16(device),
        "thread_limits": [name for name in THREAD_LIMITS if name in os.environ],
        "unused_gpu": device.type == "cpu" and torch.accelerator.is_available(),
        "disk": {"free": disk.free, "total": disk.total},
        "store": {
            "folder": store.folder,
            "uri": shared_server() or store.uri,
            "writable": store.writable,
            "runs": len(store.records()),
        },
        "extras": _extras(),
        "config": config.name,
        "images_per_second": 1 / seconds_per_image(config),
        "finished": _speeds(store, devices.describe(device)),
    }
    return facts | {"slow": slow(facts, device.type)}


def slow(facts: Mapping[str, Any], kind: str) -> list[str]:
    """What slows runs down on a machine with these facts, and what to do about it. `kind` is the type of its device."""
    found = []
    busy = facts["load"] is not None and facts["load"] > devices.BUSY * facts["cores"]
    if kind == "cpu":
        if facts["unused_gpu"]:
            found.append("Training runs on the CPU although there is a GPU: leave out --device.")
        elif shutil.which("nvidia-smi"):
            found.append(
                f"There is an NVIDIA GPU that this torch ({facts['torch']}) can't use: install torch with CUDA as "
                f"https://pytorch.org/get-started says, or update the driver."
            )
        else:
            found.append("There is no GPU that torch can use: start with the presets shapes, cifar10-cpu or half-hour.")
        if not facts["fast_bf16"]:
            found.append(
                "This CPU can't multiply bfloat16 numbers, so training takes about twice as long as on one that can."
            )
        if not busy and facts["threads"] < facts["cores"] and (limits := " and ".join(facts["thread_limits"])):
            found.append(
                f"torch uses {facts['threads']} of {facts['cores']} CPU cores: unset {limits}, unless "
                f"other programs need them."
            )
    if busy:
        found.append(
            f"Other programs keep the CPU busy (a load of {facts['load']:.1f} on {facts['cores']} cores): close them"
            + (", or train with --threads 1, because threads wait for each other." if facts["threads"] > 1 else ".")
        )
    free, disk = facts["memory"]["free"], facts["disk"]["free"]
    if free is not None and free < LITTLE_MEMORY:
        found.append(f"Little memory is free ({free / 2**30:.1f} GiB): close other programs, or use smaller batches.")
    if disk < LITTLE_DISK:
        found.append(
            f"Little disk space is free ({disk / 2**30:.1f} GiB) for decoded images, weights and checkpoints: set "
            f"SIMCLR_HOME to a folder on another disk."
        )
    if not facts["store"]["writable"]:
        found.append(
            "The record of runs is not writable, so encoders can be evaluated, but nothing can be trained: make "
            f"{facts['store']['folder']} writable, or set SIMCLR_HOME to another folder."
        )
    return found


def _memory(device: torch.device) -> dict[str, float | None]:
    """The memory that training uses, that of the GPU or of the machine, and what this process can still have of it."""
    if not devices.shares_memory(device):
        free, total = torch.accelerator.get_memory_info(device)
        return {"total": total, "free": free}
    return {"total": devices.system_memory(), "free": available_memory()}


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _extras() -> dict[str, list[str]]:
    """The packages of each extra that are not installed."""
    missing: dict[str, list[str]] = {name: [] for name in USER_EXTRAS}
    for requirement in metadata.requires(PACKAGE) or []:
        found = re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", requirement)
        if found and found[2] in missing and not _is_installed(found[1]):
            missing[found[2]].append(found[1])
    return missing


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _speeds(store: Store, device: str, most: int = 3) -> list[dict[str, Any]]:
    """The speeds of the newest finished runs on this device."""
    return [
        {"run": run.name, "images_per_second": run.metrics["perf/images_per_second"]}
        for run in store.records(kind="pretrain")
        if run.finished and run.tags.get("device") == device and "perf/images_per_second" in run.metrics
    ][:most]
