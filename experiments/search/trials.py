"""Search the settings of a config with Optuna: by accuracy on validation, within the memory of a GPU.

Each trial is an ordinary run, so a trial whose config has a finished run reuses it, and an interrupted trial resumes.
A trial that would need too much memory is rejected before it starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any, NamedTuple

import optuna
from filelock import FileLock
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from experiments.configs.resolve import changed
from experiments.runs.expected import Expected
from experiments.runs.prepare import Prepared
from experiments.runs.train import record_images
from experiments.search.identity import Asked, check_same, prepare_search
from experiments.search.saved import ENDED, IDENTITY, STATE, optuna_errors
from experiments.search.space import (
    Parameter,
    drawn_settings,
    in_short,
    start_trial,
    starting_point,
    suggest_settings,
)
from experiments.search.trial_jobs import Measured, train_trial
from experiments.studies.cell import BASELINE
from experiments.tracking import local
from experiments.tracking.claims import Busy, claim_file, claim_name
from experiments.tracking.store import Store
from experiments.tracking.writing import Tracker, copy_run, start_run
from experiments.workers.pool import HERE, Ended, Job, Pool
from simclr.build import check_images
from simclr.config import Config
from simclr.errors import BadSettings, UserError, unknown
from simclr.progress import SILENT, Forwarding, Observer, knn_metric
from simclr.randomness import subseed
from simclr.train import budget, memory
from simclr.train.loop import Interrupted, count_steps

STARTUP = 10  # trials before TPE replaces random sampling, and before the median can prune a trial

# Names in Optuna's database. They are a file format: keep them, so that searches begun by earlier versions resume.
MEMORY = "memory"  # constraint: MiB over the limit
SETTINGS = "settings"  # the settings that a trial changes
REJECTED = "turned away"  # why a trial did not start
DRAWN = "drawn"  # of the trial that starts from the config: its settings whose values are not the config's
RESUMES = "goes on from"  # number of the interrupted trial that a trial repeats
ERROR = "error"  # why a trial failed
COST = "cost"  # seconds to choose and check its settings
WALL = "wall"  # seconds from its start to its end
SECONDS = "seconds"  # seconds of training steps
RUN = "run"  # id of its run

ACCURACY, TIME = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
OBJECTIVES = {"accuracy": [ACCURACY], "accuracy,time": [ACCURACY, TIME]}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1),
}


class Search(NamedTuple):
    """An open search: Optuna's study, and the run in the store that its trials belong to."""

    name: str
    study: optuna.Study
    tracker: Tracker
    baseline: Prepared  # the config that the search starts from, with the proxy settings
    full: Prepared  # without them
    parameters: list[Parameter]
    objectives: str
    expected: Expected  # what every machine that trains for it must have

    @property
    def store(self) -> Store:
        return self.tracker.store

    def tags(self, trial: int | str) -> dict[str, str]:
        """The tags of a trial's run."""
        return {"search": self.name, "trial": str(trial)}


def check_choices(objectives: str, pruner: str) -> None:
    """Raises UserError if there are no such objectives, or no such pruner."""
    if objectives not in OBJECTIVES:
        raise unknown("objectives", objectives, OBJECTIVES)
    if pruner not in PRUNERS:
        raise unknown("pruner", pruner, PRUNERS)


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
    parallel: bool = False,
    observer: Observer = SILENT,
) -> Iterator[Search]:
    """Start the search with this name, or resume it. Only one process at a time can have it open.

    `proxy` settings (section.key=value) apply to the trials only. If trials run in `parallel`, those that have not
    ended count as bad ones when the next is chosen, so that it differs from them. Raises UserError if the name belongs
    to a different search, if the images have no labels, if the full config doesn't fit into memory, and for unknown
    choices.
    """
    check_choices(objectives, pruner)
    local.check_path(store.folder / STATE, "SIMCLR_HOME")
    asked = prepare_search(
        full, parameters, store, proxy=proxy, objectives=objectives, observer=observer, space_observer=observer
    )
    whole, baseline = asked.whole, asked.baseline
    budget.plan_memory(full, budget.Images(len(whole.data.images)), budget.memory_budget(full.memory, whole.device))
    with claim_name(store, "search", name, observer), optuna_errors(store.folder / STATE):
        study = _open_study(name, store, asked, pruner, parallel)
        parameters = asked.spaces()[study.user_attrs[IDENTITY]["space"]]
        if not study.trials and (start := starting_point(parameters, baseline.config)):
            study.enqueue_trial(start, user_attrs={DRAWN: []})
        runs = store.records(kind="search", search=name)
        tracker = (
            Tracker(store, runs[0].id) if runs else start_run(store, name, "search", full.flat(), {"search": name})
        )
        record_images(tracker, full, whole.data)
        with tracker.finishing(Interrupted):
            for trial in study.get_trials(states=(TrialState.RUNNING,)):  # its process was stopped
                study.tell(trial.number, state=TrialState.FAIL)
                kept = {name: trial.user_attrs[name] for name in (DRAWN,) if name in trial.user_attrs}
                study.enqueue_trial(
                    trial.params, user_attrs={RESUMES: trial.user_attrs.get(RESUMES, trial.number), **kept}
                )
            expected = Expected.of(baseline.config, baseline.data.identity, baseline.data)
            yield Search(name, study, tracker, baseline, whole, parameters, objectives, expected)


def _open_study(name: str, store: Store, asked: Asked, pruner: str, parallel: bool) -> optuna.Study:
    """Optuna's study with this name, new or loaded. Raises UserError if it is of another search than the one asked."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with FileLock(claim_file(store, STATE)):  # two processes that create the database at once disturb each other
        study = optuna.create_study(
            storage=local.address(store.folder / STATE),
            study_name=name,
            directions=OBJECTIVES[asked.objectives],
            pruner=PRUNERS[pruner](),
            load_if_exists=True,
        )
    # A sampler restarts its random numbers in each process. With the same seed each time it would repeat itself.
    seed = subseed(asked.whole.config.seed, "search", len(study.trials)) % 2**32
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=parallel)
    own, recorded = asked.identities(name, store)[0], study.user_attrs.get(IDENTITY)
    check_same(name, recorded, asked, store)
    study.set_user_attr(IDENTITY, {**(recorded or own), "configs": own["configs"]})
    return study


def reference_accuracy(search: Search, observer: Observer = SILENT, pool: Pool = HERE) -> float:
    """Train the config that the search starts from, and return its accuracy on validation."""
    config = search.baseline.config
    observer.say("your config, where the search starts")
    arguments = config, search.expected, search.tags(BASELINE), search.tracker.run_id, True
    (ended,) = pool.run([Job("the start", config.key(), train_trial, arguments, observer)], search.store, observer)
    measured: Measured = ended.result()
    observer.say(f"  {_measured(measured)}")
    return measured.accuracy


def run_trials(
    search: Search, count: int, *, hours: float | None = None, observer: Observer = SILENT, pool: Pool = HERE
) -> None:
    """Run trials until the search has `count` of them, or until the hours are over. Rejected trials count.

    A trial whose config another process is training comes last. Raises Interrupted when the observer asks to stop. An
    error that the trial's own settings did not cause also ends the search. Both leave the trial open, and the next call
    resumes it.
    """
    start = time.perf_counter()

    def is_over() -> bool:
        return hours is not None and time.perf_counter() - start >= 3600 * hours

    def ended() -> int:
        """The number of trials that have ended, which is reported with the best of them."""
        trials = search.study.get_trials(deepcopy=False, states=ENDED)
        completed = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        best = max(completed, key=lambda trial: trial.values[0], default=None)
        text = f"{best.values[0]:.1%} on validation (trial {best.number})" if best else ""
        seconds = inf if hours is None else start + 3600 * hours - time.perf_counter()
        observer.overall("trial", len(trials), count, text, seconds)
        return len(trials)

    running: dict[str, _Watcher] = {}  # by job, those of trials that have begun and not ended

    def new() -> Iterator[Job]:
        while ended() + len(running) < count and not is_over():
            trial, prepared = _ask(search, observer)
            if prepared is not None:
                watcher = _Watcher(trial, prepared, observer, prune=len(search.study.directions) == 1)
                job = _job(search, prepared, watcher)
                running[job.name] = watcher
                yield job

    def again() -> Iterator[Job]:
        for job in busy:
            if not is_over():
                observer.say(f"{job.name}:")
                yield job._replace(arguments=(*job.arguments[:-1], True))

    busy: list[Job] = []
    for jobs in (new, again):
        for each in pool.run(jobs(), search.store, observer):
            name = each.job.name
            where = f"{name}: " if pool.several else "  "
            try:
                observer.say(f"{where}{_conclude(search, running[name], each)}")
                del running[name]
                ended()
            except Interrupted as stopped:
                raise Interrupted(stopped.step, f" of {name}, with {ended()} of {count} trials done") from None
            except Busy as error:
                observer.say(f"{where}{error}: other trials come first")
                busy.append(each.job)


def _ask(search: Search, observer: Observer) -> tuple[Trial, Prepared | None]:
    """A new trial that is ready to train. One that can't be used is rejected, and has no Prepared."""
    asked = time.perf_counter()
    trial = search.study.ask()
    values = suggest_settings(trial, search.parameters, search.baseline.config)
    trial.set_user_attr(SETTINGS, values)
    prepared, reason = None, ""
    try:
        prepared = _prepare_trial(search, trial, values)
    except UserError as error:
        reason = str(error)
    trial.set_user_attr(COST, time.perf_counter() - asked)
    if prepared is None:
        trial.set_user_attr(REJECTED, reason)
        search.study.tell(trial, state=TrialState.PRUNED)
        observer.say(f"trial {trial.number}: rejected, {reason}")
    else:
        settings = ", ".join(f"{path}={in_short(value)}" for path, value in values.items())
        observer.say(f"trial {trial.number}: {settings}")
    if DRAWN in trial.user_attrs:
        trial.set_user_attr(DRAWN, drawn := drawn_settings(values, search.baseline.config))
        observer.say(f"  {start_trial(trial.number, drawn)}")
    return trial, prepared


def _prepare_trial(search: Search, trial: Trial, values: Mapping[str, Any]) -> Prepared:
    """A trial that is ready to train. Raises UserError if its settings can't be used, or need too much memory.

    It shares the baseline's images, which no parameter can change: if they can't be read, that is not a trial's fault.
    """
    start = search.baseline
    config = changed(start.config, values).model_copy(update={"name": f"trial-{trial.number}@{search.name}"})
    prepared = Prepared(config, start.data, start.device, count_steps(config, start.data))
    check_images(config)
    limit = budget.memory_budget(config.memory, start.device).usable
    need = budget.smallest_peak(config)
    if search.full is not start:  # the best trials are trained at full size too
        need = max(need, budget.smallest_peak(changed(search.full.config, values)))
    trial.set_constraint(MEMORY, (need - limit) / memory.MIB)
    if need > limit:
        raise UserError(f"it needs {memory.format_bytes(need)}, which is {memory.format_bytes(need - limit)} too much")
    return prepared


def _job(search: Search, prepared: Prepared, watcher: _Watcher) -> Job:
    """The job of a trial, which raises Busy if another process is training its config."""
    number = watcher.trial.number
    arguments = prepared.config, search.expected, search.tags(number), search.tracker.run_id, False
    return Job(f"trial {number}", prepared.config.key(), train_trial, arguments, watcher)


def _conclude(search: Search, watcher: _Watcher, ended: Ended) -> str:
    """Report to Optuna how a trial ended. Returns the same in a few words. Raises what did not come from the trial."""
    trial = watcher.trial

    def tell(values: list[float] | None) -> None:
        trial.set_user_attr(WALL, time.perf_counter() - watcher.start)
        search.study.tell(trial, values, state=None if values else TrialState.PRUNED)

    tags, parent = search.tags(trial.number), search.tracker.run_id
    try:
        measured: Measured = ended.result()
    except Interrupted:
        if not watcher.pruned:
            raise
        tell(None)
        return f"pruned at kNN {watcher.accuracy:.2%}"
    except BadSettings as error:
        trial.set_user_attr(ERROR, str(error))
        tell(None)
        return f"failed: {error}"
    record = search.store.get(measured.run)
    own = {str(trial.number), str(trial.user_attrs.get(RESUMES))}
    if record.parent != parent or record.tags.get("trial") not in own:  # trained outside this search, or twice in it
        copy_run(search.store, record, "trial", tags, parent=parent)
    trial.set_user_attr(RUN, record.id)
    trial.set_user_attr(SECONDS, measured.seconds)
    values = {"accuracy": measured.accuracy, "time": measured.seconds}
    tell([values[objective] for objective in search.objectives.split(",")])
    return _measured(measured)


def _measured(found: Measured) -> str:
    return f"{found.accuracy:.1%} on validation after {found.seconds:.0f} s of training"


class _Watcher(Forwarding):
    """Reports a trial's kNN accuracies to Optuna, and stops the training if Optuna prunes the trial."""

    def __init__(self, trial: Trial, prepared: Prepared, observer: Observer, *, prune: bool) -> None:
        super().__init__(observer)
        self.trial, self.steps, self.prune = trial, prepared.steps, prune
        self.accuracy, self.pruned = 0.0, False
        self.start = time.perf_counter()

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        super().metrics(metrics, step)
        if self.prune and (name := knn_metric(metrics)) and step < self.steps.total:
            self.accuracy = metrics[name]
            self.trial.report(self.accuracy, step // self.steps.per_epoch)
            self.pruned = self.trial.should_prune()

    def stop(self) -> bool:
        return self.pruned or super().stop()
