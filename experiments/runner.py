"""Run a config: train, record, and never train the same thing twice."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from analysis import plots
from simclr import device as devices
from simclr.augment import apply, draw
from simclr.checkpoint import fill, load_weights, save_weights
from simclr.config import Config, to_toml
from simclr.data import Dataset, Progress, open_dataset, silent
from simclr.errors import UserError
from simclr.evaluate import PROTOCOL, Score, evaluate, random_encoder
from simclr.loss import chance_loss
from simclr.model import SimCLR, build_model, parameter_count
from simclr.train import Interrupted, plan, pretrain, timed_steps

from .tracking import Store, Tracker

Show = Callable[[dict[str, float], int], None]


def git_state(folder: Path) -> dict[str, str]:
    """Commit and dirty flag of the checkout that a folder is in; empty outside one."""
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for args in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": commit.strip(), "git_dirty": str(bool(status.strip())).lower()}


def environment(config: Config, device: torch.device) -> dict[str, str]:
    """What a result may depend on beside the config."""
    packages = ("torch", "torchvision", "numpy", "mlflow", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": devices.describe(device),
        "precision": str(devices.resolve_precision(config.train.precision, device)).removeprefix("torch."),
        **{package: version(package) for package in packages},
        **git_state(Path(__file__).parent),
    }


def train(
    config: Config,
    store: Store,
    *,
    resume: bool = False,
    again: bool = False,
    progress: Progress = silent,
    show: Show = lambda metrics, step: None,
    began: Callable[[int, str, bool], None] = lambda steps, run_id, reused: None,
    stop: Callable[[], bool] = lambda: False,
) -> str:
    """Pre-train a config and record it; the id of its run.

    A finished run of the same key and data is returned as it is (unless `again`); with `resume`, one that did not
    finish goes on. `began` is told the number of steps, the run and whether it was already finished.
    """
    device = devices.resolve(config.device)
    data = open_dataset(config.data, store.folder, progress)
    steps, _ = plan(config, data)
    earlier = store.of_key(config.key(), data.digest)
    finished = [run for run in earlier if run.info.status == "FINISHED"]
    if finished and not again:
        began(steps, finished[0].info.run_id, True)
        return str(finished[0].info.run_id)
    unfinished = [r for r in earlier if r.info.status != "FINISHED" and store.run_folder(r.info.run_id).is_dir()]
    if resume and unfinished:
        tracker = store.reopen(unfinished[0])
    else:
        resume = False
        tags = {"kind": "pretrain", "config_key": config.key(), "data_digest": data.digest, "seed": str(config.seed)}
        tracker = store.start(f"{config.name}-s{config.seed}", tags, config.flat())
    with tracker.finishing(Interrupted):
        tracker.tag(**environment(config, device))
        began(steps, tracker.run_id, False)

        def log(metrics: dict[str, float], step: int) -> None:
            tracker.log(metrics, step)
            show(metrics, step)

        folder = store.run_folder(tracker.run_id)
        clock = time.perf_counter()
        model = pretrain(config, data, device, folder, log, resume=resume, stop=stop)
        tracker.log({"perf/train_seconds": time.perf_counter() - clock}, steps)
        tracker.flush()
        _artifacts(tracker, config, data, device, model)
        for checkpoint in folder.glob("step-*.pt"):  # the weights are an artifact now
            checkpoint.unlink()
    return tracker.run_id


def _artifacts(tracker: Tracker, config: Config, data: Dataset, device: torch.device, model: SimCLR) -> None:
    store = tracker.store
    metadata = {"config": to_toml(config), "digest": data.digest, "side": str(data.side)}
    tracker.artifact("model.safetensors", lambda path: save_weights(path, model, metadata))
    tracker.artifact("config.toml", lambda path: path.write_text(to_toml(config), encoding="utf-8"))
    info = json.dumps(environment(config, device), indent=2)
    tracker.artifact("environment.json", lambda path: path.write_text(info, encoding="utf-8"))
    curve = store.history(tracker.run_id, "train/loss")
    chance = chance_loss(config.train.batch_size)
    tracker.artifact("loss.png", lambda path: plots.loss_curve({config.name: curve}, chance, path))
    tracker.artifact("views.png", lambda path: view_grid(config, data, path))


def view_grid(config: Config, data: Dataset, path: Path, images: int = 12) -> None:
    """A picture: originals, both views, and each operation of view one (then two) alone with probability one."""
    rows = data.parts["pretrain"][:: max(1, len(data.parts["pretrain"]) // images)][:images]
    originals = torch.from_numpy(data.images[rows])
    grid = {"original": originals.float() / 255}
    for index, pipeline in enumerate(config.pipelines()):
        grid[f"view {index + 1}"] = apply(originals, pipeline, draw(pipeline, len(rows), config.seed, 0, index))
    for index, pipeline in enumerate(config.pipelines()):
        for name, params in pipeline.items():
            alone = {name: params.model_copy(update={"p": 1.0})}
            grid.setdefault(name, apply(originals, alone, draw(alone, len(rows), config.seed, 0, index)))
    plots.image_rows({label: images.permute(0, 2, 3, 1).numpy() for label, images in grid.items()}, path)


def evaluate_encoder(
    name: str | None, store: Store, *, knn: bool, linear: bool, device: str | None = None, progress: Progress = silent
) -> tuple[str, dict[str, Score]]:
    """Test a frozen encoder on its own data set, beside an untrained one.

    `name` is a run (its name, or how its id starts; None: the newest), or a file: a model.safetensors or a checkpoint.
    The scores ("trained", "random") are logged to the run, for a file to a new run; returns its id and them.
    """
    from_file = name is not None and Path(name).is_file()
    if from_file:
        path = Path(str(name))
    else:
        tracker = Tracker(store, store.find(name).info.run_id)
        path = store.artifact(tracker.run_id, "model.safetensors")
    config, weights, digest = load_weights(path)
    where = devices.resolve(device or config.device)
    data = open_dataset(config.data, store.folder, progress)
    if data.digest != digest:
        raise UserError(
            f"the images of '{data.name}' are not those that this encoder was trained on (digest {data.digest[:8]}, "
            f"then {digest[:8]}): it may have seen some of the test images; bring the folder back to what it was"
        )
    trained = build_model(config, data, where)
    fill(trained, weights)
    encoders = {"trained": trained, "random": random_encoder(config, data, where)}
    dtype = devices.resolve_precision(config.train.precision, where)
    scores = {
        label: evaluate(model, data, dtype, knn=knn, linear=linear, progress=progress)
        for label, model in encoders.items()
    }
    if from_file:
        tags = {"kind": "eval", "config_key": config.key(), "data_digest": digest, "seed": str(config.seed)}
        tracker = store.start(f"{config.name}-s{config.seed}-eval", tags, config.flat())
    metrics = {"eval/chance": scores["trained"].chance}
    for label, score in scores.items():
        prefix = "eval/" if label == "trained" else f"eval/{label}_"
        metrics |= {f"{prefix}{key}": value for key, value in score.metrics.items()}
    tracker.log(metrics)
    tracker.tag(protocol=PROTOCOL)
    if from_file:
        tracker.finish("FINISHED")
    tracker.flush()
    return tracker.run_id, scores


def estimate(config: Config, store: Store, progress: Progress = silent) -> dict[str, Any]:
    """What a run would be, without starting one: steps, parameters, and the time by a few timed steps."""
    device = devices.resolve(config.device)
    data = open_dataset(config.data, store.folder, progress)
    steps, per_epoch = plan(config, data)
    seconds = timed_steps(config, data, device)
    return {
        "images": len(data.parts["pretrain"]),
        "steps": steps,
        "steps_per_epoch": per_epoch,
        "parameters": parameter_count(build_model(config, data, device)),
        "device": devices.describe(device),
        "seconds_per_step": seconds,
        "seconds": seconds * steps,
    }
