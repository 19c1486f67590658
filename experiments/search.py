"""Search the settings of a config with Optuna, within the memory of a card, on validation alone.

A trial is a config like any other: `runner.train` trains it, so a finished run of its key is taken over and one that
was cut short goes on. Trials that the memory can't hold are turned away before they start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from scipy.stats import spearmanr
from sqlalchemy.exc import SQLAlchemyError

from analysis.search import outcome, pictures, ranked, trials
from simclr import device as devices
from simclr import memory
from simclr.config import Config, parse_setting, to_toml
from simclr.data import Progress, open_dataset, silent
from simclr.errors import BadSettings, UserError, unknown
from simclr.evaluate import check
from simclr.linear import best_on_validation
from simclr.model import build_model, check_images
from simclr.protocol import Linear, Protocol, Subject
from simclr.randomness import subseed
from simclr.train import Interrupted
from simclr.train import plan as steps_of

from . import encoders, runner
from .ablate import EVALUATE, PARENT
from .configure import changed
from .plan import BASELINE, Cell, Plan
from .space import Parameter, check_space, starting_point, suggested
from .tracking import Store, Tracker

VALIDATION = "val/linear_top1"  # what is searched for, on the run of each trial
PROBE = Linear(l2_values=9)  # of the paper's 45 values; the choice among encoders does not need the others
STARTUP = 10  # trials before TPE takes over from random ones, and that the median is taken of before it gives one up
COLUMNS = ["in the search", "fresh seeds"]
STATE = "search.db"  # Optuna's own record, beside the tracking store's
ACCURACY, TIME = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
OBJECTIVES = {"accuracy": [ACCURACY], "accuracy,time": [ACCURACY, TIME]}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1),
}


class Search(NamedTuple):
    """A search under way: Optuna's study, and the parent run that its trials are under."""

    name: str
    study: optuna.Study
    tracker: Tracker
    baseline: Config  # with what `proxy` makes smaller
    full: Config
    parameters: list[Parameter]
    objectives: str


@contextmanager
def _optuna_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"can't use the search's record {path}: {reason}; end the process that holds it") from None
    except RuntimeError as error:
        if "optuna" not in str(error).lower():
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the search's record {path} is of another version of Optuna ({reason}): move it away, or install that one"
        ) from None


@contextmanager
def open_search(
    name: str,
    full: Config,
    parameters: list[Parameter],
    store: Store,
    *,
    proxy: Sequence[str] = (),
    objectives: str = "accuracy",
    pruner: str = "median",
    progress: Progress = silent,
) -> Iterator[Search]:
    """The search of this name, begun or gone on with, by one process at a time. Trials that were cut short are asked
    for again. `proxy` settings are those of trials alone.

    Raises UserError where the name belongs to another config, space, objective or images, where the images have no
    labels to judge by, and for unknown choices.
    """
    if objectives not in OBJECTIVES:
        raise unknown("objectives", objectives, OBJECTIVES)
    if pruner not in PRUNERS:
        raise unknown("pruner", pruner, PRUNERS)
    baseline = changed(full, dict(parse_setting(text) for text in proxy))
    check_space(parameters, baseline)
    data = {config.key(): open_dataset(config.data, store.folder, progress) for config in (full, baseline)}
    for config in (full, baseline):
        model = build_model(config, data[config.key()], torch.device("cpu"))
        check(Subject(model, config, data[config.key()], Protocol()), list(EVALUATE))
    stored = len(data[full.key()].images)
    memory.make_plan(full, stored, memory.budget(full.memory, devices.resolve(full.device)))
    identity = {
        "configs": {key: images.digest for key, images in data.items()},
        "space": json.dumps([parameter.model_dump(mode="json") for parameter in parameters]),
        "objectives": objectives,
    }
    path = store.folder / STATE
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _optuna_errors(path):
        study = optuna.create_study(
            storage=f"sqlite:///{path.as_posix()}",
            study_name=name,
            directions=OBJECTIVES[objectives],
            pruner=PRUNERS[pruner](),
            load_if_exists=True,
        )
        # A sampler begins its random numbers anew with each process: without the count, it would repeat itself.
        seed = subseed(full.seed, "search", len(study.trials)) % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        if study.user_attrs.get("identity", identity) != identity:
            raise UserError(
                f"search '{name}' exists with another config, space, objective or other images: give this one a --name"
            )
        if not study.trials and (start := starting_point(parameters, baseline)):
            study.enqueue_trial(start)
        study.set_user_attr("identity", identity)
        runs = [run for run in store.search("tags.kind = 'search'") if run.data.tags["search"] == name]
        tracker = store.reopen(runs[0]) if runs else store.start(name, {"kind": "search", "search": name}, full.flat())
        with tracker.finishing(Interrupted):
            for trial in study.get_trials(states=(TrialState.RUNNING,)):  # whose process was stopped
                study.tell(trial.number, state=TrialState.FAIL)
                study.enqueue_trial(trial.params, user_attrs={"goes on from": trial.number})
            yield Search(name, study, tracker, baseline, full, parameters, objectives)


def search(
    found: Search,
    store: Store,
    number: int,
    *,
    hours: float | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run trials until there are so many, or the time is up. Raises Interrupted when `stop()` says so.

    What is told to Optuna about a trial is in `run_trial`. Anything that goes wrong but a trial's own settings ends
    the search with its trial open, to go on with.
    """
    clock = time.perf_counter()
    data = open_dataset(found.baseline.data, store.folder, progress)
    while len(_done(found.study)) < number and (hours is None or time.perf_counter() - clock < 3600 * hours):
        asked = time.perf_counter()
        trial = found.study.ask()
        values = suggested(trial, found.parameters, found.baseline)
        trial.set_user_attr("settings", values)
        refusal = None
        try:
            config = changed(found.baseline, values).model_copy(update={"name": f"{found.name}-{trial.number}"})
            steps_of(config, data)
            check_images(config)
            limit = memory.budget(config.memory, devices.resolve(config.device)).usable
            need = max(smallest(config), smallest(changed(found.full, values)))  # the best is trained at full size
            trial.set_constraint("memory", (need - limit) / memory.MIB)
            if need > limit:
                refusal = f"needs {memory.gib(need)}, {memory.gib(need - limit)} too much"
        except UserError as error:
            refusal = str(error)
        trial.set_user_attr("cost", time.perf_counter() - asked)
        if refusal is not None:
            say(_turn_away(found.study, trial, refusal))
            continue
        say(f"trial {trial.number}: {', '.join(f'{path}={_short(value)}' for path, value in values.items())}")
        say(f"  {run_trial(found, trial, config, store, progress=progress, stop=stop)}")


def smallest(config: Config) -> int:
    """Bytes that a config takes in the smallest micro-batches."""
    return sum(memory.predict(config, memory.micro_batches(config)[0]).values())


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _done(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _turn_away(study: optuna.Study, trial: Trial, reason: str) -> str:
    trial.set_user_attr("turned away", reason)
    study.tell(trial, state=TrialState.PRUNED)
    return f"trial {trial.number}: turned away, {reason}"


def run_trial(
    found: Search,
    trial: Trial,
    config: Config,
    store: Store,
    *,
    progress: Progress = silent,
    stop: Callable[[], bool] = lambda: False,
) -> str:
    """Train and judge one trial, and tell Optuna: its figures, or that it was given up, or that its settings failed.

    Returns that in a few words.
    """
    study, poor, accuracy = found.study, False, 0.0
    total, per_epoch = steps_of(config, open_dataset(config.data, store.folder, progress))

    def show(metrics: dict[str, float], step: int) -> None:
        nonlocal poor, accuracy
        if len(study.directions) == 1 and "val/knn_top1" in metrics and step < total:
            accuracy = metrics["val/knn_top1"]
            trial.report(accuracy, step // per_epoch)
            poor = trial.should_prune()

    clock = time.perf_counter()
    tags = {PARENT: found.tracker.run_id, "search": found.name, "trial": str(trial.number)}

    def tell(values: list[float] | None = None) -> None:
        trial.set_user_attr("wall", time.perf_counter() - clock)
        study.tell(trial, values, state=None if values else TrialState.PRUNED)

    try:
        run_id = runner.train_or_go_on(
            config, store, tags=tags, progress=progress, show=show, stop=lambda: poor or stop()
        )
        measured = {
            "accuracy": validation_accuracy(run_id, config, store, progress),
            "time": training_seconds(run_id, config, store),
        }
        run = store.client.get_run(run_id)
        numbers = {str(number) for number in (trial.number, trial.user_attrs.get("goes on from"))}
        if run.data.tags.get(PARENT) != found.tracker.run_id or run.data.tags.get("trial") not in numbers:
            store.copy(run, {**tags, "kind": "trial", "copied_from": run_id})
    except Interrupted:
        if not poor:
            raise
        tell()
        return f"given up at kNN {accuracy:.2%}"
    except BadSettings as error:
        trial.set_user_attr("error", str(error))
        tell()
        return f"failed: {error}"
    for fact, value in {"run": run_id, "seconds": measured["time"]}.items():
        trial.set_user_attr(fact, value)
    tell([measured[objective] for objective in found.objectives.split(",")])
    return f"{measured['accuracy']:.2%} on validation after {measured['time']:.0f} s of training"


def training_seconds(run_id: str, config: Config, store: Store) -> float:
    """How long a run's steps took, by the images a second that it logged."""
    rates = store.history(run_id, "perf/images_per_second")
    steps = rates["step"].diff().fillna(rates["step"])
    return float((steps * config.train.batch_size / rates["value"]).sum())


def validation_accuracy(run_id: str, config: Config, store: Store, progress: Progress) -> float:
    """Accuracy of a linear classifier on validation, at the best of PROBE's L2 values; kept with the run."""
    metrics = store.client.get_run(run_id).data.metrics
    if VALIDATION in metrics:
        return float(metrics[VALIDATION])
    subject = encoders.place(
        encoders.find(run_id, store),
        store,
        Protocol(linear=PROBE),
        data_dir=config.data.dir,
        device=config.device,
        progress=progress,
    )
    with devices.memory_errors("a search judges its trials on their device: take --device cpu"):
        accuracy = best_on_validation(subject)
    tracker = Tracker(store, run_id)
    tracker.log({VALIDATION: accuracy})
    tracker.flush()
    return accuracy


def reference(found: Search, store: Store, progress: Progress, stop: Callable[[], bool]) -> float:
    """Validation accuracy of the config that the search starts from."""
    tags = {PARENT: found.tracker.run_id, "search": found.name, "trial": BASELINE}
    run_id = runner.train_or_go_on(found.baseline, store, tags=tags, progress=progress, stop=stop)
    return validation_accuracy(run_id, found.baseline, store, progress)


def record(found: Search, start: float, store: Store) -> str:
    """Keep a search's trials, pictures and best config with its parent run; a summary in a few lines."""
    study, tracker = found.study, found.tracker
    table = trials(study, found.objectives.split(","))
    tracker.artifact("trials.csv", lambda path: table.to_csv(path, index=False))
    if best := ranked(study):
        config = changed(found.full, best[0].user_attrs["settings"]).model_copy(update={"name": f"{found.name}-best"})
        tracker.artifact("best.toml", lambda path: path.write_text(to_toml(config), encoding="utf-8"))
    for name, draw in pictures(study).items():
        tracker.artifact(f"{name}.png", draw)
    return "\n".join([*outcome(study, start), f"all of it: {store.artifact(tracker.run_id, 'trials.csv').parent}"])


def confirmation(found: Search, top: int) -> Plan:
    """A study of the best trials at full size, beside the config that the search started from.

    Raises UserError where no trial but that config's own ran to its end.
    """
    cells: dict[str, Cell] = {}
    for trial in ranked(found.study):
        settings = trial.user_attrs["settings"]
        config = changed(found.full, settings)
        if config.key() != found.full.key():
            cells.setdefault(config.key(), Cell(f"trial {trial.number}", config, settings))
    if not cells:
        raise UserError("no trial but the start ran to its end: allow more --memory, --trials or --max-hours")
    return Plan([Cell(BASELINE, found.full), *list(cells.values())[:top]])


def selection(
    found: Search, plan: Plan, start: float, seeds: Sequence[int], store: Store, progress: Progress = silent
) -> pd.DataFrame:
    """Accuracy on validation of each cell of the confirmation: in the search, and the mean over fresh seeds."""
    by_cell = {f"trial {trial.number}": trial.values[0] for trial in ranked(found.study)} | {BASELINE: start}
    digest = open_dataset(found.full.data, store.folder, progress).digest
    rows = []
    for cell in plan.cells:
        runs = [store.of_key(cell.of_seed(seed).key(), digest) for seed in seeds]
        finished = [[run.info.run_id for run in of_seed if run.info.status == "FINISHED"][:1] for of_seed in runs]
        fresh = [validation_accuracy(run_id, cell.config, store, progress) for (run_id,) in filter(None, finished)]
        mean = float(np.mean(fresh)) if fresh else nan
        rows.append({"cell": cell.name, "in the search": by_cell[cell.name], "fresh seeds": mean, "n": len(fresh)})
    return pd.DataFrame(rows)


def notes(found: Search, table: pd.DataFrame) -> list[str]:
    """How to read `selection`: what of the best trial's gain was selection; of a proxy, whether it ranks configs as
    the full size does."""
    chosen = table[table["cell"] != BASELINE]
    searched, fresh = (chosen[column].to_numpy() for column in COLUMNS)
    if found.baseline.key() == found.full.key():
        gain, kept = (100 * float(chosen.iloc[0][column] - table.iloc[0][column]) for column in COLUMNS)
        return [
            "accuracies on validation; a trial was chosen for its figure in the search, not for those of fresh seeds",
            f"{chosen.iloc[0]['cell']} beside the baseline: {gain:+.2f} points in the search, {kept:+.2f} with fresh "
            f"seeds; {gain - kept:+.2f} was selection",
        ]
    ranks = f"{spearmanr(searched, fresh).statistic:.2f}" if len(chosen) > 2 else "needs --top 3"
    return [
        "accuracies on validation, in the search of the proxy, with fresh seeds of the full size",
        f"rank correlation (Spearman) of the two over {len(chosen)} trials: {ranks}",
    ]
