"""Tests of the tables and sentences on a search."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from analysis.trials import pictures
from experiments.search.trial_table import MEASURED_BY, outcome, parameter_table, ranked, trial_table

RATE = FloatDistribution(1e-4, 1e-1, log=True)
SCALE = CategoricalDistribution(["[0.08, 1.0]", "[0.2, 1.0]"])
WIDTH = CategoricalDistribution(["64", "128"])


def add(
    study: optuna.Study,
    values: list[float] | None,
    settings: dict[str, Any],
    conditional: bool = False,
    **attributes: Any,
) -> None:
    """Add a trial with a learning rate, a crop and, only in some trials, a width. Without values it is pruned."""
    rate, scale = settings["optim.lr"], settings["augment.crop.scale"]
    params = {"optim.lr": rate, "augment.crop.scale": str(scale)}
    distributions: dict[str, BaseDistribution] = {"optim.lr": RATE, "augment.crop.scale": SCALE}
    if conditional:
        params["model.width (model.head=mlp)"] = str(settings["model.width"])
        distributions["model.width (model.head=mlp)"] = WIDTH
    trial = create_trial(
        state=TrialState.COMPLETE if values else TrialState.PRUNED,
        values=values,
        params=params,
        distributions=distributions,
        user_attrs={"settings": settings, **attributes},
    )
    study.add_trial(trial)


@pytest.fixture
def study() -> optuna.Study:
    """Two completed trials, one of them with a conditional parameter, a rejected one, a failed one and a pruned one."""
    study = optuna.create_study(direction="maximize")
    narrow, wide = [0.08, 1.0], [0.2, 1.0]
    add(
        study,
        [0.5],
        {"optim.lr": 0.01, "augment.crop.scale": narrow},
        seconds=9.5,
        run="ab",
        cost=1.0,
        wall=60.0,
        drawn=["model.width", "optim.lr"],
    )
    add(study, None, {"optim.lr": 0.02, "augment.crop.scale": wide}, **{"turned away": "it needs 9 GiB"}, cost=1.0)
    add(study, [0.8], {"optim.lr": 0.03, "augment.crop.scale": wide, "model.width": 64}, conditional=True, wall=40.0)
    add(study, None, {"optim.lr": 0.04, "augment.crop.scale": wide}, error="training diverged")
    add(study, None, {"optim.lr": 0.05, "augment.crop.scale": wide})
    return study


def test_trial_table_has_settings_and_conditional_parameters(study: optuna.Study) -> None:
    table = trial_table(study, ["accuracy"])
    assert table["state"].tolist() == ["complete", "pruned", "complete", "pruned", "pruned"]
    assert table["accuracy"].tolist() == [0.5, None, 0.8, None, None]
    assert table["rejected"].tolist() == [None, "it needs 9 GiB", None, None, None]
    assert table["error"][3] == "training diverged"
    assert (table["seconds"][0], table["run"][0]) == (9.5, "ab")
    assert table["augment.crop.scale"].tolist()[:2] == [[0.08, 1.0], [0.2, 1.0]]
    assert table["optim.lr"].tolist() == [0.01, 0.02, 0.03, 0.04, 0.05]
    assert table["model.width (model.head=mlp)"].dropna().tolist() == [64]
    assert ",64," in table.to_csv(index=False)  # whole numbers stay whole


def test_trial_table_has_all_objectives() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    add(study, [0.5, 30.0], {"optim.lr": 0.01, "augment.crop.scale": [0.2, 1.0]})
    assert trial_table(study, ["accuracy", "time"])[["accuracy", "time"]].to_numpy().tolist() == [[0.5, 30.0]]


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]])
def test_parameters_are_sorted_by_importance_for_accuracy(directions: list[str]) -> None:
    study = optuna.create_study(directions=directions)
    for number in range(40):
        rate, scale = 10 ** (-4 + 3 * number / 39), [[0.08, 1.0], [0.2, 1.0]][number % 2]
        values = [rate, number % 7][: len(directions)]  # accuracy depends on the rate only
        add(study, values, {"optim.lr": rate, "augment.crop.scale": scale, "model.width": 64}, number % 3 == 0)
    table = parameter_table(study).set_index("parameter")
    assert table.index[0] == "optim.lr"
    assert table["importance"].sum() == pytest.approx(1)
    assert table.loc["optim.lr", ["log", "choices"]].tolist() == [True, None]
    assert table.loc["augment.crop.scale", ["log", "choices"]].tolist() == [False, [[0.08, 1.0], [0.2, 1.0]]]
    assert table.loc["model.width (model.head=mlp)", "choices"] == [64, 128]


def test_importances_need_two_completed_trials() -> None:
    study = optuna.create_study(direction="maximize")
    assert parameter_table(study).empty
    add(study, [0.5], {"optim.lr": 0.01, "augment.crop.scale": [0.2, 1.0]})
    assert parameter_table(study).empty


def test_outcome_counts_trials_and_names_the_best(study: optuna.Study) -> None:
    assert [trial.number for trial in ranked(study)] == [2, 0]
    assert outcome(study, 0.45) == [
        "5 trials: 2 completed, 1 rejected, 1 pruned, 1 failed",
        "trial 3 failed: training diverged",
        "start: 45.0% on validation (your config)",
        "best: trial 2 with 80.0% on validation",
        "trial 0 is as close to your config as the search space allows: model.width, optim.lr were drawn at random, "
        "because the space doesn't contain your values",
        MEASURED_BY,
        "choosing and planning took 2.0% of the trials' time",
    ]


def test_outcome_states_how_much_memory_rejected_trials_lack() -> None:
    study = optuna.create_study(direction="maximize")
    for excess in (1.0, 120.4, -5.0):
        trial = study.ask()
        trial.set_constraint("memory", excess)
        if excess > 0:
            trial.set_user_attr("turned away", "too big")
        study.tell(trial, state=TrialState.PRUNED)
    assert outcome(study, 0.5) == [
        "3 trials: 0 completed, 2 rejected (2 for up to 120 MiB too much memory), 1 pruned, 0 failed"
    ]


def test_a_study_without_trials_has_an_empty_table_and_no_pictures() -> None:
    empty = optuna.create_study()
    table = trial_table(empty, ["accuracy"])
    assert list(table.columns) == ["trial", "state", "accuracy"]
    assert pictures(table, parameter_table(empty), ["accuracy"]) == {}
