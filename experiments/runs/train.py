"""Train a config and record the run. A config is never trained twice on the same data unless asked to."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis import plots
from experiments.runs.machine_load import Load, Pace
from experiments.runs.prepare import Prepared
from experiments.runs.snapshots import check_space
from experiments.runs.threads import choose_threads
from experiments.runs.view_grid import STRIP, draw_view_grid, draw_view_strip
from experiments.tracking.claims import claim_config
from experiments.tracking.images import images_changed, tag_of
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, start_run
from simclr import device as devices
from simclr import processes
from simclr.config import Config, to_toml
from simclr.data.dataset import Dataset, short_identity
from simclr.errors import UnusableCheckpoint, UserError, printable
from simclr.methods import METHODS
from simclr.model import Network
from simclr.progress import SILENT, Forwarding, Observer
from simclr.train import budget
from simclr.train.loop import Interrupted, pretrain
from simclr.train.memory import MIB
from simclr.weights.checkpoint import checkpoints, save_weights, snapshots
from simclr.weights.start import start_of


def train(
    prepared: Prepared,
    store: Store,
    *,
    resume: bool | None = False,
    again: bool = False,
    tags: Mapping[str, str] = {},
    parent: str | None = None,
    observer: Observer = SILENT,
) -> Record:
    """Pre-train a config and record the run.

    A finished run of the same config and data is returned as it is, unless `again` is set. `resume` continues the
    newest unfinished run that has a checkpoint, and starts over if none has (None: if there is one). A new run gets
    `tags` and belongs to `parent`. While another process trains the config, this waits. Raises UserError if a run could
    be resumed and neither `resume` nor `again` is set, and with `resume` if none is unfinished.
    """
    config, identity = prepared.config, prepared.data.identity
    with claim_config(store, config.key(), identity, observer=observer):
        earlier = store.of_config(config, identity)
        for record in earlier:
            if record.status == "RUNNING":  # its process is gone, as this one has the claim
                store.end_killed(record.id)
        if not again and (finished := next((record for record in earlier if record.finished), None)):
            _remove_checkpoints(finished)  # the command that trained it may have ended before it was marked as finished
            observer.reused(finished.id, finished.name)
            if config.train.snapshots() and not snapshots(finished.folder):
                observer.note(f"run {finished.short_id} kept no snapshots: add --again to train one that does")
            processes.first_says(lambda: None)  # to `follow`: there is nothing to train
            return finished
        unfinished = _resumable(earlier)
        if unfinished is None and resume:
            if not (started := [record for record in earlier if not record.finished]):
                raise _nothing_to_resume(config, prepared.data, store)
            observer.say(f"run {started[0].name} ({started[0].short_id}) has no checkpoint yet: it starts over")
        unfinished = _choose(unfinished, resume, again)
        config = prepared.fitted
        check_space(config, prepared.data, store.folder)
        with devices.memory_errors(memory_remedy(config)):
            threads = choose_threads(prepared, unfinished, observer)
        if unfinished is not None:
            tracker = Tracker(store, unfinished.id)
        else:
            own = {"config_key": config.key(), "data_digest": identity, "seed": str(config.seed)}
            own |= tag_of(prepared.data)
            if (start := start_of(config)) is not None:
                own["start"] = printable(start.name)
                observer.say(f"training starts from the weights of {own['start']}")
            name = config.run_name()
            if parent is None:  # names in a study differ
                _point_out_namesake(name, store, observer)
            tracker = start_run(store, name, "pretrain", config.flat(), {**own, **tags}, parent=parent)
        with tracker.finishing(Interrupted), devices.threads(threads):
            _train(prepared, tracker, unfinished is not None, observer)
        record = tracker.record()
        _remove_checkpoints(record)
        return record


def _point_out_namesake(name: str, store: Store, observer: Observer) -> None:
    """Say so if a finished run has the name that a new one will have."""
    called = (run for run in store.records(kind="pretrain") if run.finished and run.name == name)
    if (earlier := next(called, None)) is not None:
        observer.note(
            f"an earlier run is also called {name}. Once the new run has finished, the name refers to the new one: use "
            f"the id {earlier.short_id} for the earlier run, or stop and choose another --name"
        )


def _remove_checkpoints(record: Record) -> None:
    """Remove the checkpoints of a finished run, whose weights are kept with it."""
    for checkpoint in checkpoints(record.folder):
        checkpoint.unlink(missing_ok=True)


def train_or_resume(
    prepared: Prepared,
    store: Store,
    *,
    again: bool = False,
    tags: Mapping[str, str] = {},
    parent: str | None = None,
    observer: Observer = SILENT,
) -> Record:
    """Like `train`, but resume an unfinished run if its checkpoint can be used here, or else start over."""
    try:
        return train(prepared, store, resume=None, again=again, tags=tags, parent=parent, observer=observer)
    except UnusableCheckpoint:
        return train(prepared, store, again=True, tags=tags, parent=parent, observer=observer)


def _resumable(earlier: Sequence[Record]) -> Record | None:
    """The newest unfinished run that has a checkpoint."""
    return next((record for record in earlier if not record.finished and checkpoints(record.folder)), None)


def _choose(unfinished: Record | None, resume: bool | None, again: bool) -> Record | None:
    """The run to resume; None to start a new one."""
    if unfinished is None or resume is not False:
        return unfinished
    if not again:
        raise UserError(
            f"run {unfinished.short_id} of this config did not finish: add --resume to continue it, or --again to "
            f"start a new one"
        )
    return None


def _nothing_to_resume(config: Config, data: Dataset, store: Store) -> UserError:
    """Why no run of a config can be resumed on these images."""
    identity = data.identity
    others = _resumable(store.of_config(config))
    if others is None:
        for precision in devices.PRECISIONS:
            if (started := _resumable(store.of_config(config.in_precision(precision), identity))) is not None:
                return UserError(
                    f"run {started.short_id} of this config started in {precision}, and would continue in "
                    f"{config.precision()} here: add --precision {precision}, or leave out --resume to start a new run"
                )
        if (started := _started_elsewhere(config, identity, store)) is not None:
            return UserError(
                f"run {started.short_id} of this config started from other weights than init = '{config.init}' names "
                f"now: resume it with --set init='{started.params['init']}', or leave out --resume to start a new run"
            )
        return UserError("no unfinished run of this config has a checkpoint: leave out --resume to start one")
    return images_changed(others, data)


def _started_elsewhere(config: Config, identity: str, store: Store) -> Record | None:
    """A run that could be resumed if `init` still named the weights that it started from."""
    for run in store.records(kind="pretrain", data_digest=identity) if config.init is not None else ():
        init = run.params.get("init", "None")
        if init != "None" and run.is_of(config.model_copy(update={"init": init})) and _resumable([run]):
            return run
    return None


def _train(prepared: Prepared, tracker: Tracker, resume: bool, observer: Observer) -> None:
    """Train, and keep the weights and the loss curve with the run."""
    config, data, plan = prepared.fitted, prepared.data, prepared.plan
    logging = _Logging(tracker, prepared.device, observer)
    if resume:
        logging.read_losses()
    _describe(prepared, tracker)
    if plan is not None:
        tracker.log({"perf/predicted_memory_mib": plan.peak / MIB}, 0)
    observer.began(tracker.run_id, prepared.steps.total)
    processes.first_says(lambda: (resume, torch.get_num_threads()))  # to `follow`
    model = _pretrain(prepared, tracker.store.run_folder(tracker.run_id), logging, resume=resume)
    metadata = {"config": to_toml(config), "digest": data.identity}
    tracker.artifact("model.safetensors", lambda path: save_weights(path, model, metadata))
    method = METHODS[config.method]
    chance = method.chance(config.method_settings(), config.train.batch_size, config.view_count())
    points = logging.loss_curve()
    images, epoch = points["step"] * config.train.batch_size, points["step"] / prepared.steps.per_epoch
    curves = {config.name: [points.assign(images=images, epoch=epoch)]}
    levels = {config.name: chance.get("train/loss", nan)}
    tracker.artifact("loss.png", lambda path: plots.curves(curves, path, method.loss_label, levels))


def _pretrain(prepared: Prepared, folder: Path, observer: Observer, *, resume: bool) -> Network:
    config, plan = prepared.fitted, prepared.plan
    remedy = f"{memory_remedy(config)}, and add --resume"
    with devices.memory_errors(remedy), budget.limit_memory(config.memory, prepared.device):
        return pretrain(
            config,
            prepared.data,
            prepared.device,
            folder,
            observer,
            images_on_device=plan is not None and plan.images_on_device,
            resume=resume,
        )


def follow(prepared: Prepared, observer: Observer) -> None:
    """Compute a share of the run that the first process trains, if it trains one. Only the first writes files."""
    started = processes.first_says(lambda: None)
    if started is not None:
        resume, threads = started
        with devices.threads(threads):
            _pretrain(prepared, Path(), observer, resume=resume)


class _Logging(Forwarding):
    """Logs the metrics of training to a run. It keeps the losses, because the store may not respond at the end."""

    def __init__(self, tracker: Tracker, device: torch.device, observer: Observer) -> None:
        super().__init__(observer)
        self.tracker = tracker
        self.losses: dict[int, float] = {}  # by step
        self.load, self.pace = Load(device, tracker.store.folder), Pace(device)

    def read_losses(self) -> None:
        """Read what was logged before the run was resumed."""
        earlier = self.tracker.record().history("train/loss")
        self.losses |= dict(zip(earlier["step"], earlier["value"], strict=True))

    def loss_curve(self) -> pd.DataFrame:
        """The losses, as columns `step` and `value`."""
        return pd.DataFrame(sorted(self.losses.items()), columns=["step", "value"])

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.tracker.log({**metrics, **self.load.measure()}, step)
        if "train/loss" in metrics:
            self.losses[step] = metrics["train/loss"]
        super().metrics(metrics, step)
        if slower := self.pace.notice(metrics.get("perf/images_per_second")):
            self.say(slower)

    def saving(self, step: int) -> None:
        self.tracker.sync()
        super().saving(step)


def memory_remedy(config: Config) -> str:
    """What to change when a run is out of memory."""
    return (
        f"lower train.norm_batch (now {config.train.norm_images()}) or model.width, each of which starts a new run "
        "with other results; or close other programs"
    )


def _describe(prepared: Prepared, tracker: Tracker) -> None:
    """Record what a run consists of, before it starts."""
    config, data = prepared.fitted, prepared.data
    facts = environment(prepared)
    tracker.tag(facts | {"steps_per_epoch": prepared.steps.per_epoch})
    if data.has_labels:
        labels = data.labels[data.parts["val"]]
        tracker.tag({"val_chance": np.bincount(labels).max() / len(labels)})
    record_images(tracker, config, data)
    tracker.artifact("config.toml", lambda path: path.write_text(to_toml(config), encoding="utf-8"))
    tracker.artifact("environment.json", lambda path: path.write_text(json.dumps(facts, indent=2), encoding="utf-8"))
    tracker.artifact("views.png", lambda path: draw_view_grid(config, data, path))
    tracker.artifact(STRIP, lambda path: draw_view_strip(config, data, path))


def record_images(tracker: Tracker, config: Config, data: Dataset) -> None:
    """Record the images of a config with a run."""
    name = data.name if config.data.dir is None else config.data.dir.name
    counts = {"classes": len(data.classes), **{part: len(rows) for part, rows in data.parts.items()}}
    tracker.dataset(name, short_identity(data.identity), str(config.data.dir or data.name), counts)


def environment(prepared: Prepared) -> dict[str, str]:
    """Everything in addition to the config that a result may depend on: versions, device, precision, git commit."""
    packages = ("torch", "torchvision", "numpy", "mlflow", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": devices.describe(prepared.device),
        "threads": str(torch.get_num_threads()),
        "precision": prepared.config.dtype_name(),
        **({"processes": str(processes.count())} if processes.count() > 1 else {}),
        "tf32": "never",  # earlier versions, which lack this, used it for float32 on CUDA
        **{package: version(package) for package in packages},
        **git_state(),
    }


def git_state() -> dict[str, str]:
    """Commit of the git checkout that holds this code, and whether it has changes; empty outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.SubprocessError):
        return {}
