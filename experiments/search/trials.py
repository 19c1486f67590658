"""Search the settings of a config with Optuna, within the memory of a card, on validation alone.

A trial is a config like any other: `runner.train` trains it, so a finished run of its key is taken over and one that
was cut short goes on. Trials that the memory can't hold are turned away before they start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import optuna
import torch
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from experiments.configs.resolve import changed
from experiments.runs import encoders, train
from experiments.search.space import Parameter, check_space, starting_point, suggested
from experiments.studies.plan import BASELINE, EVALUATE, PARENT
from experiments.tracking import Store, Tracker
from simclr import device as devices
from simclr.build import build_model, check_images
from simclr.config import Config
from simclr.data.dataset import open_dataset
from simclr.errors import BadSettings, UserError, unknown
from simclr.evaluate.evaluations import check
from simclr.evaluate.linear import best_on_validation
from simclr.evaluate.protocol import Linear, Protocol
from simclr.evaluate.subject import Subject
from simclr.progress import SILENT, Observer
from simclr.randomness import subseed
from simclr.settings import parse_setting
from simclr.train import budget, memory
from simclr.train.loop import Interrupted
from simclr.train.loop import count_steps

VALIDATION = "val/linear_top1"  # what is searched for, on the run of each trial


PROBE = Linear(l2_values=9)  # of the paper's 45 values; the choice among encoders does not need the others


STARTUP = 10  # trials before TPE takes over from random ones, and that the median is taken of before it gives one up


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
    observer: Observer = SILENT,
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
    data = {config.key(): open_dataset(config.data, store.folder, observer) for config in (full, baseline)}
    for config in (full, baseline):
        model = build_model(config, data[config.key()], torch.device("cpu"))
        check(Subject(model, config, data[config.key()], Protocol()), list(EVALUATE))
    stored = len(data[full.key()].images)
    budget.plan_memory(full, stored, budget.budget(full.memory, devices.resolve(full.device)))
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
    observer: Observer = SILENT,
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run trials until there are so many, or the time is up. Raises Interrupted when `stop()` says so.

    What is told to Optuna about a trial is in `run_trial`. Anything that goes wrong but a trial's own settings ends
    the search with its trial open, to go on with.
    """
    clock = time.perf_counter()
    data = open_dataset(found.baseline.data, store.folder, observer)
    while len(_done(found.study)) < number and (hours is None or time.perf_counter() - clock < 3600 * hours):
        asked = time.perf_counter()
        trial = found.study.ask()
        values = suggested(trial, found.parameters, found.baseline)
        trial.set_user_attr("settings", values)
        refusal = None
        try:
            config = changed(found.baseline, values).model_copy(update={"name": f"{found.name}-{trial.number}"})
            count_steps(config, data)
            check_images(config)
            limit = budget.budget(config.memory, devices.resolve(config.device)).usable
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
        say(f"  {run_trial(found, trial, config, store, observer=observer, stop=stop)}")


def smallest(config: Config) -> int:
    """Bytes that a config takes in the smallest micro-batches."""
    return sum(memory.predict(config, budget.micro_batches(config)[0]).values())


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
    observer: Observer = SILENT,
    stop: Callable[[], bool] = lambda: False,
) -> str:
    """Train and judge one trial, and tell Optuna: its figures, or that it was given up, or that its settings failed.

    Returns that in a few words.
    """
    study, poor, accuracy = found.study, False, 0.0
    total, per_epoch = count_steps(config, open_dataset(config.data, store.folder, observer))

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
        run_id = train.train_or_go_on(
            config, store, tags=tags, observer=observer, show=show, stop=lambda: poor or stop()
        )
        measured = {
            "accuracy": validation_accuracy(run_id, config, store, observer),
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


def validation_accuracy(run_id: str, config: Config, store: Store, observer: Observer) -> float:
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
        observer=observer,
    )
    with devices.memory_errors("a search judges its trials on their device: take --device cpu"):
        accuracy = best_on_validation(subject)
    tracker = Tracker(store, run_id)
    tracker.log({VALIDATION: accuracy})
    tracker.flush()
    return accuracy


def reference(found: Search, store: Store, observer: Observer, stop: Callable[[], bool]) -> float:
    """Validation accuracy of the config that the search starts from."""
    tags = {PARENT: found.tracker.run_id, "search": found.name, "trial": BASELINE}
    run_id = train.train_or_go_on(found.baseline, store, tags=tags, observer=observer, stop=stop)
    return validation_accuracy(run_id, found.baseline, store, observer)
