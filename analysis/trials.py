"""What an Optuna study found: its trials as a table, a summary, and pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

MOST = 4  # parameters in a picture that has a panel or an axis for each, or for each pair: the most important


FACTS = ("turned away", "error", "seconds", "run")


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ran to their end, the most accurate first (accuracy is the first objective)."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(finished, key=lambda trial: -trial.values[0])


def trials(study: optuna.Study, objectives: list[str]) -> pd.DataFrame:
    """A row a trial: number, state, objectives (of those that ran to their end), settings, and what else is known."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        values = trial.values if trial.state is TrialState.COMPLETE else []
        row: dict[str, Any] = {"trial": trial.number, "state": trial.state.name.lower()}
        row |= dict(zip(objectives, values, strict=False)) | trial.user_attrs.get("settings", {})
        rows.append(row | {fact: trial.user_attrs.get(fact) for fact in FACTS})
    return pd.DataFrame(rows)


def outcome(study: optuna.Study, start: float) -> list[str]:
    """Sentences: how many trials ended how, the best beside the accuracy of the start, what choosing them cost."""
    every = study.get_trials(deepcopy=False)
    best = ranked(study)
    away = [trial for trial in every if "turned away" in trial.user_attrs]
    failed = [trial for trial in every if "error" in trial.user_attrs]
    early = sum(trial.state is TrialState.PRUNED for trial in every) - len(away) - len(failed)
    over = [excess for trial in every if (excess := trial.constraints.get("memory", 0.0)) > 0]
    lines = [
        f"{len(best) + len(away) + len(failed) + early} trials: {len(best)} ran to their end, {len(away)} turned away"
        + (f" ({len(over)} for up to {max(over):.0f} MiB too much memory)" if over else "")
        + f", {early} given up early, {len(failed)} failed"
    ]
    lines += [f"trial {trial.number} failed: {trial.user_attrs['error']}" for trial in failed]
    if best:
        lines.append(f"best: trial {best[0].number}, {best[0].values[0]:.2%} on validation; the start {start:.2%}")
    cost, wall = (sum(trial.user_attrs.get(fact, 0.0) for trial in every) for fact in ("cost", "wall"))
    if wall:
        lines.append(f"choosing and planning took {cost / wall:.1%} of the trials' time")
    return lines


def pictures(study: optuna.Study) -> dict[str, Callable[[Path], object]]:
    """Optuna's plots of a study, as far as its trials allow: for each name a function that draws it to a file."""
    from optuna.visualization import matplotlib as plots

    if len(ranked(study)) < 2:
        return {}
    accuracy: dict[str, Any] = {"target_name": "accuracy"}
    low = accuracy
    if len(study.directions) > 1:
        accuracy = accuracy | {"target": lambda trial: trial.values[0]}
        low = low | {"target": lambda trial: -trial.values[0]}  # Optuna's importance is for low values of a target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is for low values
        most = list(optuna.importance.get_param_importances(study, target=low.get("target")))[:MOST]
    kinds: dict[str, Callable[..., Any]] = {
        "history": partial(plots.plot_optimization_history, **accuracy),
        "importance": partial(plots.plot_param_importances, **low),
        "slice": partial(plots.plot_slice, params=most, **accuracy),
        "contour": partial(plots.plot_contour, params=most, **accuracy),
        "parallel-coordinates": partial(plots.plot_parallel_coordinate, params=most, **accuracy),
    }
    if len(study.directions) > 1:
        kinds["pareto-front"] = plots.plot_pareto_front
    return {name: _drawn(plot, study) for name, plot in kinds.items()}


def _drawn(plot: Callable[..., Any], study: optuna.Study) -> Callable[[Path], object]:
    def draw(path: Path) -> None:
        import matplotlib.pyplot as plt

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its plots are experimental, or of few trials
            plot(study)
        plt.gcf().set_size_inches(12, 8)
        plt.savefig(path, dpi=100, bbox_inches="tight")
        plt.close("all")

    return draw
