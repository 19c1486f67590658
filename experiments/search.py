"""Search the settings of a config with Optuna, within the memory of a card, on validation alone.

A trial is a config like any other: what it asks for is trained by `runner.train`, so a finished run of its key is
taken over and one that was cut short goes on. Trials that the memory can't hold are turned away before they start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError, model_validator
from sqlalchemy.exc import SQLAlchemyError

from simclr import device as devices
from simclr import memory
from simclr.config import Config, Section, parse_setting, read_toml, readable, settings, to_toml
from simclr.data import Progress, open_dataset, silent
from simclr.errors import RunFailed, UserError, unknown
from simclr.linear import best_on_validation
from simclr.protocol import Linear, Protocol
from simclr.train import Interrupted
from simclr.train import plan as steps_of

from . import encoders, runner
from .ablate import PARENT
from .configure import at, changed
from .plan import BASELINE, Cell, Plan
from .tracking import Store, Tracker

VALIDATION = "val/linear_top1"  # what is searched for, on the run of each trial
PROBE = Linear(l2_values=9)  # of the paper's 45 values; the choice among encoders does not need the others
STARTUP = 10  # trials before TPE takes over from random ones, and before any is pruned
CAVEAT = (
    "accuracies on validation; the trial was chosen because its figure in the search was high, fresh seeds are not "
    "chosen: the difference between the columns is selection, and only what is left with fresh seeds is gain"
)
STATE = "search.db"  # Optuna's own record, beside the tracking store's


class Parameter(Section):
    """A [[parameter]] of a space: see the header of space.toml."""

    setting: str
    choices: tuple[Any, ...] = ()
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    when: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)

    @model_validator(mode="after")
    def _a_range_or_choices(self) -> Parameter:
        known = settings(Config)
        for name in (self.setting, *self.when):
            if name not in known:
                raise unknown("setting", name, known)
        ranged = self.low is not None and self.high is not None
        if ranged == bool(self.choices):
            raise ValueError("expected either choices, or low and high")
        if ranged and not self.low < self.high:  # type: ignore[operator]
            raise ValueError(f"an empty range: low = {self.low} is not below high = {self.high}")
        return self

    @property
    def name(self) -> str:
        """Of the parameter in Optuna: the setting, and when it is varied."""
        conditions = ", ".join(f"{name}={value}" for name, value in self.when.items())
        return f"{self.setting} ({conditions})" if conditions else self.setting

    def suggest(self, trial: Trial) -> Any:
        if self.choices:
            labels = {json.dumps(choice): choice for choice in self.choices}  # Optuna knows no lists
            return labels[trial.suggest_categorical(self.name, list(labels))]
        assert self.low is not None
        assert self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def space(path: Path | None = None) -> list[Parameter]:
    """The parameters in a file (default: those that come with the suite). Raises UserError for what is not valid."""
    path = path or Path(str(files("experiments") / "space.toml"))
    tables = read_toml(path).get("parameter")
    if not isinstance(tables, list) or not tables:
        raise UserError(f"{path} has no [[parameter]]: expected them as in experiments/space.toml")
    try:
        found = [Parameter.model_validate(table) for table in tables]
    except ValidationError as error:
        raise UserError(f"{path}: {readable(error, Parameter)}") from None
    return found


def suggested(trial: Trial, parameters: Sequence[Parameter], baseline: Config) -> dict[str, Any]:
    """A value for each setting that is varied, in this trial's conditions."""
    values: dict[str, Any] = {}
    table = baseline.model_dump(mode="json")
    for parameter in parameters:
        if all(values.get(name, at(table, name)) == value for name, value in parameter.when.items()):
            values[parameter.setting] = parameter.suggest(trial)
    return values


class Pruned(Interrupted):
    """A trial was given up: others had done better by then."""


class Search(NamedTuple):
    """A search under way: Optuna's study, and the parent run that its trials are under."""

    name: str
    study: optuna.Study
    tracker: Tracker
    baseline: Config  # with what `proxy` makes smaller
    full: Config
    parameters: list[Parameter]


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


def open_search(
    name: str,
    full: Config,
    parameters: list[Parameter],
    store: Store,
    *,
    proxy: Sequence[str] = (),
    objectives: Sequence[str] = ("accuracy",),
    pruner: str = "median",
) -> Search:
    """The search of this name, begun or gone on with. Trials that were cut short are asked for again.

    Raises UserError where the name belongs to another config, space or objective, and for unknown objectives.
    """
    for objective in objectives:
        if objective not in OBJECTIVES:
            raise unknown("objective", objective, OBJECTIVES)
    if pruner not in PRUNERS:
        raise unknown("pruner", pruner, PRUNERS)
    baseline = changed(full, dict(parse_setting(text) for text in proxy))
    path = store.folder / STATE
    identity = {
        "config": baseline.key(),
        "space": json.dumps([p.model_dump(mode="json") for p in parameters]),
        "objectives": list(objectives),
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _optuna_errors(path):
        study = optuna.create_study(
            storage=f"sqlite:///{path.as_posix()}",
            study_name=name,
            directions=[OBJECTIVES[objective] for objective in objectives],
            sampler=optuna.samplers.TPESampler(seed=full.seed, n_startup_trials=STARTUP),
            pruner=PRUNERS[pruner](),
            load_if_exists=True,
        )
        if study.user_attrs and study.user_attrs["identity"] != identity:
            raise UserError(f"search '{name}' exists with another config, space or objective: give this one --name")
        if not study.user_attrs:
            study.set_user_attr("identity", identity)
        runs = store.search(f"tags.kind = 'search' and tags.search = '{name}'")
        tracker = store.reopen(runs[0]) if runs else store.start(name, {"kind": "search", "search": name}, full.flat())
        for trial in study.get_trials(states=(TrialState.RUNNING,)):  # whose process was killed
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs={"goes on from": trial.number})
    return Search(name, study, tracker, baseline, full, parameters)


OBJECTIVES = {"accuracy": StudyDirection.MAXIMIZE, "time": StudyDirection.MINIMIZE}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1),
}


def search(
    found: Search,
    store: Store,
    trials: int,
    *,
    hours: float | None = None,
    progress: Progress = silent,
    began: Callable[[int, str], None] = lambda number, what: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run trials until there are so many, or the time is up. Raises Interrupted when `stop()` says so."""
    clock = time.perf_counter()
    data = open_dataset(found.baseline.data, store.folder, progress)
    limit = memory.budget(found.baseline.memory, devices.resolve(found.baseline.device))
    while len(_done(found.study)) < trials and (hours is None or time.perf_counter() - clock < 3600 * hours):
        with _optuna_errors(store.folder / STATE):
            trial = found.study.ask()
            values = suggested(trial, found.parameters, found.baseline)
            trial.set_user_attr("settings", values)
        what = ", ".join(f"{path.rpartition('.')[2]}={_short(value)}" for path, value in values.items())
        try:
            config = changed(found.baseline, values).model_copy(update={"name": f"{found.name}-{trial.number}"})
            steps_of(config, data)
            need = smallest_need(config)
        except UserError as error:
            _turn_away(found.study, trial, str(error))
            continue
        trial.set_constraint("memory", (need - limit.usable) / memory.MIB)
        if need > limit.usable:
            _turn_away(found.study, trial, f"needs {memory.gib(need)}, {memory.gib(need - limit.usable)} too much")
            continue
        began(trial.number, what)
        run_trial(found, trial, config, store, progress=progress, stop=stop)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _done(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _turn_away(study: optuna.Study, trial: Trial, reason: str) -> None:
    trial.set_user_attr("turned away", reason)
    study.tell(trial, state=TrialState.PRUNED)


def smallest_need(config: Config) -> int:
    """Predicted bytes of a config in the smallest micro-batches that it may be computed in."""
    return sum(memory.predict(config, memory.micro_batches(config)[-1]).values())


def run_trial(
    found: Search,
    trial: Trial,
    config: Config,
    store: Store,
    *,
    progress: Progress = silent,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train and judge one trial, and tell Optuna. Cut short by `stop`, it stays open and goes on next time."""
    study, single = found.study, len(found.study.directions) == 1
    data = open_dataset(config.data, store.folder, progress)
    begun = runner.furthest(store, store.of_key(config.key(), data.digest)) is not None
    per_epoch = steps_of(config, data)[1]

    def show(metrics: dict[str, float], step: int) -> None:
        if single and "val/knn_top1" in metrics:
            trial.report(metrics["val/knn_top1"], step // per_epoch)
            if trial.should_prune():
                raise Pruned(step)

    clock = time.perf_counter()
    tags = {PARENT: found.tracker.run_id, "search": found.name, "trial": str(trial.number)}
    try:
        run_id = runner.train(config, store, resume=begun, tags=tags, progress=progress, show=show, stop=stop)
    except Pruned:
        study.tell(trial, state=TrialState.PRUNED)
        return
    except (UserError, RunFailed) as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.PRUNED)
        return
    seconds = training_seconds(run_id, config, store)
    accuracy = validation_accuracy(run_id, config, store, progress)
    trial.set_user_attr("run", run_id)
    trial.set_user_attr("seconds", seconds)
    trial.set_user_attr("overhead", time.perf_counter() - clock - seconds)
    measured = {"accuracy": accuracy, "time": seconds}
    study.tell(trial, [measured[name] for name in study.user_attrs["identity"]["objectives"]])


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
        encoders.find(run_id, store), store, Protocol(linear=PROBE), data_dir=config.data.dir, progress=progress
    )
    accuracy = best_on_validation(subject)
    store.client.log_metric(run_id, VALIDATION, accuracy)
    return accuracy


def reference(found: Search, store: Store, progress: Progress, stop: Callable[[], bool]) -> float:
    """Validation accuracy of the config that the search starts from."""
    config = found.baseline
    data = open_dataset(config.data, store.folder, progress)
    begun = runner.furthest(store, store.of_key(config.key(), data.digest)) is not None
    tags = {PARENT: found.tracker.run_id, "search": found.name, "trial": BASELINE}
    run_id = runner.train(config, store, resume=begun, tags=tags, progress=progress, stop=stop)
    return validation_accuracy(run_id, config, store, progress)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ran to their end, the most accurate first."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(finished, key=lambda trial: -trial.values[0])


def confirmation(found: Search, top: int) -> Plan:
    """A study of the best trials at full size, beside the config that the search started from.

    Raises UserError where no trial ran to its end.
    """
    best = ranked(found.study)[:top]
    if not best:
        raise UserError("no trial ran to its end: allow more memory, trials or hours")
    cells = [
        Cell(f"trial {t.number}", changed(found.full, t.user_attrs["settings"]), t.user_attrs["settings"]) for t in best
    ]
    return Plan([Cell(BASELINE, found.full), *cells])


def selection(
    found: Search, plan: Plan, start: float, seeds: Sequence[int], store: Store, progress: Progress = silent
) -> pd.DataFrame:
    """What of the gain was selection: accuracy on validation in the search and, with fresh seeds, of the same config.

    A row a cell of the confirmation: of the best of many trials the first is too high on average, the second is not.
    """
    by_number = {f"trial {trial.number}": trial.values[0] for trial in ranked(found.study)}
    rows = []
    for cell in plan.cells:
        fresh = []
        for seed in seeds:
            config, _ = memory.fit(cell.of_seed(seed), 0, devices.resolve(cell.config.device))
            runs = store.of_key(config.key(), open_dataset(config.data, store.folder, progress).digest)
            fresh += [
                validation_accuracy(r.info.run_id, config, store, progress) for r in runs if r.info.status == "FINISHED"
            ][:1]
        rows.append(
            {
                "cell": cell.name,
                "in the search": by_number.get(cell.name, start),
                "fresh seeds": np.mean(fresh),
                "n": len(fresh),
            }
        )
    table = pd.DataFrame(rows)
    table["selection"] = table["in the search"] - table["fresh seeds"]
    return table


def record(found: Search, start: float) -> str:
    """Keep a search's trials, pictures and best config with its parent run; a summary in a few lines."""
    study, tracker = found.study, found.tracker
    trials = study.get_trials(deepcopy=False)
    table = pd.DataFrame(
        {
            "trial": t.number,
            "state": t.state.name,
            **dict(zip(study.user_attrs["identity"]["objectives"], t.values or [], strict=False)),
            **t.user_attrs.get("settings", {}),
        }
        | {key: t.user_attrs.get(key) for key in ("turned away", "error", "seconds", "overhead", "run")}
        for t in trials
    )
    tracker.artifact("trials.csv", lambda path: table.to_csv(path, index=False))
    best = ranked(study)
    if best:
        config = changed(found.full, best[0].user_attrs["settings"]).model_copy(update={"name": f"{found.name}-best"})
        tracker.artifact("best.toml", lambda path: path.write_text(to_toml(config), encoding="utf-8"))
    for name, draw in pictures(study).items():
        tracker.artifact(f"{name}.png", draw)
    away = [t.user_attrs["turned away"] for t in trials if "turned away" in t.user_attrs]
    excess = [v for t in trials if (v := t.constraints.get("memory", 0.0)) > 0]
    ran = sum(t.user_attrs.get("seconds", 0.0) for t in best)
    lines = [
        f"{len(trials)} trials: {len(best)} ran to their end, {len(away)} were turned away"
        + (f" (by up to {memory.gib(max(excess) * memory.MIB)} of memory)" if excess else "")
        + f", {sum(t.state is TrialState.PRUNED for t in trials) - len(away)} were given up early",
    ]
    if best:
        overhead = sum(t.user_attrs["overhead"] for t in best) / ran
        lines += [
            f"best: trial {best[0].number}, {best[0].values[0]:.2%} on validation; where it started {start:.2%}",
            f"beside training, trials took {overhead:.1%} more: evaluation, tracking and the search itself",
        ]
    return "\n".join(lines)


def pictures(study: optuna.Study) -> dict[str, Callable[[Path], object]]:
    """Optuna's plots of a study, as far as its trials allow, each a function that draws it to a file."""
    from optuna.visualization import matplotlib as plots

    if len(study.directions) > 1:
        return {"pareto-front": _drawn(plots.plot_pareto_front, study)}
    if len(ranked(study)) < 2:
        return {}
    kinds: dict[str, Callable[..., Any]] = {
        "history": plots.plot_optimization_history,
        "importance": plots.plot_param_importances,
        "slice": plots.plot_slice,
        "contour": plots.plot_contour,
        "parallel-coordinates": plots.plot_parallel_coordinate,
    }
    return {name: _drawn(plot, study) for name, plot in kinds.items()}


def _drawn(plot: Callable[..., Any], study: optuna.Study) -> Callable[[Path], object]:
    def draw(path: Path) -> None:
        import matplotlib.pyplot as plt

        plot(study)
        plt.gcf().set_size_inches(12, 8)
        plt.savefig(path, dpi=100, bbox_inches="tight")
        plt.close("all")

    return draw
