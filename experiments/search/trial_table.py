"""An Optuna study as plain tables and sentences, which need no Optuna to be read."""

from __future__ import annotations

import json
import warnings
from math import isnan
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from analysis.findings import count
from experiments.search.space import start_trial
from experiments.search.trial_jobs import ACCURACY_DIGITS, PROBE
from experiments.search.trials import COST, DRAWN, ERROR, MEMORY, REJECTED, RUN, SECONDS, SETTINGS, WALL

MEASURED_BY = (
    f"Accuracies are those of a linear classifier, with the best of {PROBE.l2_values} L2 penalties on the same "
    "validation images. `simclr eval --on val` chooses the penalty on training images, so its accuracies differ."
)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The completed trials, the most accurate first. Accuracy is the first objective."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(completed, key=lambda trial: -trial.values[0])


def trial_table(study: optuna.Study, objectives: list[str]) -> pd.DataFrame:
    """One row per trial: trial (its number), state, objectives, rejected, error, seconds, run, and its settings.

    A parameter that is searched under a condition has a column of its own name in addition to that of its setting.
    Only completed trials have objectives. Missing values are nan or None.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        row: dict[str, Any] = {"trial": trial.number, "state": trial.state.name.lower()}
        values = trial.values if trial.state is TrialState.COMPLETE else [None] * len(objectives)
        row |= dict(zip(objectives, values, strict=True))
        if (accuracy := row.get("accuracy")) is not None:
            row["accuracy"] = round(accuracy, ACCURACY_DIGITS)  # earlier versions recorded all digits
        row |= {"rejected": attributes.get(REJECTED), "error": attributes.get(ERROR)}
        row |= {"seconds": attributes.get(SECONDS), "run": attributes.get(RUN)}
        rows.append(row | _parameters(trial) | attributes.get(SETTINGS, {}))
    columns = None if rows else ["trial", "state", *objectives]
    return pd.DataFrame(
        rows, columns=columns, dtype=object
    )  # or whole numbers would become fractions where others are missing


def _parameters(trial: FrozenTrial) -> dict[str, Any]:
    """The values of a trial's parameters. Optuna holds choices as JSON."""
    return {
        name: json.loads(value) if isinstance(trial.distributions[name], CategoricalDistribution) else value
        for name, value in trial.params.items()
    }


def parameter_table(study: optuna.Study) -> pd.DataFrame:
    """One row per parameter of the completed trials, the most important for accuracy first.

    The columns are parameter (its column in `trial_table`), importance (from 0 to 1, with a sum of 1), log (whether its
    range is logarithmic) and choices (a list, or None for a range). A study without two completed trials has no rows.
    """
    completed = ranked(study)
    columns = ["parameter", "importance", "log", "choices"]
    if len(completed) < 2:
        return pd.DataFrame(columns=columns)
    # With two objectives Optuna needs a target. It computes the importance for low values of a target.
    target = None if len(study.directions) == 1 else lambda trial: -trial.values[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about low values and about few trials
        importances = optuna.importance.get_param_importances(study, target=target)
    distributions = {name: distribution for trial in completed for name, distribution in trial.distributions.items()}
    rows = []
    for name, importance in importances.items():
        distribution = distributions[name]
        choices = None
        if isinstance(distribution, CategoricalDistribution):
            choices = [json.loads(str(choice)) for choice in distribution.choices]
        rows.append([name, importance, getattr(distribution, "log", False), choices])
    return pd.DataFrame(rows, columns=columns)


def ended(study: optuna.Study) -> list[str]:
    """How many trials ended in which way, and why some failed."""
    trials = study.get_trials(deepcopy=False)
    rejected = [trial for trial in trials if REJECTED in trial.user_attrs]
    failed = [trial for trial in trials if ERROR in trial.user_attrs]
    completed = sum(trial.state is TrialState.COMPLETE for trial in trials)
    pruned = sum(trial.state is TrialState.PRUNED for trial in trials) - len(rejected) - len(failed)
    excesses = [excess for trial in trials if (excess := trial.constraints.get(MEMORY, 0.0)) > 0]
    memory = f" ({len(excesses)} for up to {max(excesses):.0f} MiB too much memory)" if excesses else ""
    total = completed + len(rejected) + pruned + len(failed)
    counted = f"{completed} completed, {len(rejected)} rejected{memory}, {pruned} pruned, {len(failed)} failed"
    reasons = [f"trial {trial.number} failed: {trial.user_attrs[ERROR]}" for trial in failed]
    return [f"{count(total, 'trial')}: {counted}", *reasons]


def outcome(study: optuna.Study, start: float) -> list[str]:
    """Sentences on how the trials ended, the start and the best trial, and the share of time spent on choosing trials.

    `start` is the accuracy in [0, 1] of the config that the search started from; nan if it isn't known.
    """
    trials, completed, lines = study.get_trials(deepcopy=False), ranked(study), ended(study)
    if completed:
        best, accuracy = completed[0].number, completed[0].values[0]
        lines += [] if isnan(start) else [f"start: {start:.1%} on validation (your config)"]
        lines.append(f"best: trial {best} with {accuracy:.1%} on validation")
        lines += [start_trial(each.number, each.user_attrs[DRAWN]) for each in completed if DRAWN in each.user_attrs]
        lines.append(MEASURED_BY)
    choosing, training = (sum(trial.user_attrs.get(name, 0.0) for trial in trials) for name in (COST, WALL))
    if training:
        lines.append(f"choosing and planning took {choosing / training:.1%} of the trials' time")
    return lines
