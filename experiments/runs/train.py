"""Run a config: train, record, and never train the same thing twice."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis import plots
from experiments.runs.pictures import view_grid
from experiments.tracking import Store, Tracker
from simclr import device as devices
from simclr.build import check_images
from simclr.config import Config, to_toml
from simclr.data.dataset import Dataset, open_dataset
from simclr.errors import UnusableCheckpoint, UserError
from simclr.methods.ntxent import chance_loss
from simclr.progress import SILENT, Observer
from simclr.train import budget, memory
from simclr.train.loop import Interrupted, count_steps, pretrain
from simclr.weights.checkpoint import checkpoints, save_weights

Show = Callable[[dict[str, float], int], None]


def git_state() -> dict[str, str]:
    """Commit and dirty flag of the checkout that this code is in; empty where it is installed otherwise."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.SubprocessError):
        return {}


def environment(config: Config, device: torch.device) -> dict[str, str]:
    """What a result may depend on beside the config."""
    packages = ("torch", "torchvision", "numpy", "mlflow", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": devices.describe(device),
        "precision": str(devices.resolve_precision(config.train.precision, device)).removeprefix("torch."),
        **{package: version(package) for package in packages},
        **git_state(),
    }


def train(
    config: Config,
    store: Store,
    *,
    resume: bool | None = False,
    again: bool = False,
    tags: Mapping[str, str] = {},
    observer: Observer = SILENT,
    show: Show = lambda metrics, step: None,
    began: Callable[[int, str, bool], None] = lambda steps, run_id, reused: None,
    stop: Callable[[], bool] = lambda: False,
) -> str:
    """Pre-train a config and record it; the id of its run.

    A finished run of the same key and data is returned as it is (unless `again`); with `resume`, the newest that has
    a checkpoint and did not finish goes on (None: if there is one). `began` is told the number of steps, the run, and
    whether it is a finished one. Raises UserError where a run could go on and neither was asked for.
    """
    device = devices.resolve(config.device)
    data = open_dataset(config.data, store.folder, observer)
    steps, _ = count_steps(config, data)
    check_images(config)
    earlier = store.of_key(config.key(), data.digest)
    finished = [run for run in earlier if run.info.status == "FINISHED"]
    if finished and not again:
        began(steps, str(finished[0].info.run_id), True)
        return str(finished[0].info.run_id)
    config, fitted = budget.fit(config, len(data.images), device)
    begun = unfinished(store, earlier)
    if resume and begun is None:
        raise UserError("no unfinished run of this config has a checkpoint: run without --resume to begin one")
    if begun is not None and resume is False:
        if not again:
            raise UserError(
                f"run {begun.info.run_id[:8]} of this config did not finish: --resume goes on with it, --again begins "
                f"a new one"
            )
        begun = None
    if begun is not None:
        tracker = store.reopen(begun)
    else:
        own = {"kind": "pretrain", "config_key": config.key(), "data_digest": data.digest, "seed": str(config.seed)}
        tracker = store.start(f"{config.name}-s{config.seed}", own | dict(tags), config.flat())
    with tracker.finishing(Interrupted):
        _describe(tracker, config, data, device)
        if fitted is not None:
            tracker.log({"perf/predicted_memory_mib": fitted.peak / memory.MIB}, 0)
        began(steps, tracker.run_id, False)

        def log(metrics: dict[str, float], step: int) -> None:
            tracker.log(metrics, step)
            show(metrics, step)

        folder = store.run_folder(tracker.run_id)
        on_device = fitted is not None and fitted.on_device
        with _enough_memory(config), budget.enforced(config.memory, device):
            model = pretrain(
                config, data, device, folder, log, images_on_device=on_device, resume=begun is not None, stop=stop
            )
        tracker.flush()
        metadata = {"config": to_toml(config), "digest": data.digest}
        tracker.artifact("model.safetensors", lambda path: save_weights(path, model, metadata))
        curve = store.history(tracker.run_id, "train/loss")
        chance = [chance_loss(config.train.batch_size, include_self=config.loss.include_self)]
        tracker.artifact("loss.png", lambda path: plots.curves({config.name: [curve]}, path, "NT-Xent loss", chance))
    for checkpoint in checkpoints(folder):  # the weights are an artifact now
        checkpoint.unlink()
    return tracker.run_id


def train_or_go_on(config: Config, store: Store, **options: Any) -> str:
    """`train`, going on with an unfinished run of the config, if there is one whose checkpoint can be used here."""
    try:
        return train(config, store, resume=None, **options)
    except UnusableCheckpoint:
        return train(config, store, again=True, **options)


def _enough_memory(config: Config) -> AbstractContextManager[None]:
    return devices.memory_errors(
        f"lower --micro-batch (now {config.train.micro_batch}), for that train.norm_batch "
        f"(now {config.train.norm_images()}), or model.width"
    )


def unfinished(store: Store, earlier: list[Any]) -> Any:
    """The first of the runs that did not finish and has a checkpoint; None where there is none."""
    return next(
        (run for run in earlier if run.info.status != "FINISHED" and checkpoints(store.run_folder(run.info.run_id))),
        None,
    )


def _describe(tracker: Tracker, config: Config, data: Dataset, device: torch.device) -> None:
    """Record what a run is, before it begins."""
    facts = environment(config, device)
    tracker.tag(**facts)
    if data.has_labels:
        labels = data.labels[data.parts["val"]]
        tracker.tag(val_chance=np.bincount(labels).max() / len(labels))
    tracker.artifact("config.toml", lambda path: path.write_text(to_toml(config), encoding="utf-8"))
    tracker.artifact("environment.json", lambda path: path.write_text(json.dumps(facts, indent=2), encoding="utf-8"))
    tracker.artifact("views.png", lambda path: view_grid(config, data, path))
