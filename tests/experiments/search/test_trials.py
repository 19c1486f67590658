from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from PIL import Image
from typer.testing import CliRunner

import cli
from analysis.trials import outcome, pictures, ranked
from experiments.configs.resolve import changed
from experiments.runs import encoders, train
from experiments.search import confirm, trials
from experiments.search.space import Parameter
from experiments.search.trials import open_search
from experiments.studies import run
from experiments.tracking import Store
from simclr.errors import BadSettings, RunFailed, UserError
from simclr.evaluate.subject import Subject
from simclr.progress import SILENT
from simclr.train import budget, memory
from simclr.train.loop import Interrupted
from tests.helpers import ROOT, simclr, tiny

SPACE = [
    Parameter(setting="optim.lr", low=1e-4, high=1e-2, log=True),
    Parameter(setting="train.batch_size", choices=(128, 256)),
]
SHORT = tiny(train={"epochs": 1, "knn_every": 1})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_search_finds_goes_on_and_trains_nothing_twice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    train = train.train

    def counted(*arguments: object, **options: object) -> str:
        trained.append(arguments[0])
        return train(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "train", counted)
    with open_search("s", SHORT, SPACE, store) as found:
        trials.search(found, store, 3)
        with (
            pytest.raises(UserError, match="is being trained by another process"),
            open_search("s", SHORT, SPACE, store),
        ):
            pass
    assert len(found.study.trials) == 3
    with open_search("s", SHORT, SPACE, store) as again:
        trials.search(again, store, 3)
        assert len(trained) == 3
        trials.search(again, store, 4)
    assert len(again.study.trials) == 4
    assert len({trial.params["optim.lr"] for trial in again.study.trials}) == 4  # a resumed sampler does not repeat
    assert trained[0].key() == SHORT.key()  # the search begins where it is told to
    cells = confirm.confirmation(again, 10).cells
    assert [cell.name for cell in cells].count("trial 0") == 0  # the start is confirmed as the baseline
    assert len(cells) == 4
    assert store.client.get_run(again.tracker.run_id).info.status == "FINISHED"
    best = ranked(again.study)[0]
    run = store.client.get_run(best.user_attrs["run"])
    assert run.data.metrics[trials.VALIDATION] == best.values[0]
    assert run.data.tags["mlflow.parentRunId"] == found.tracker.run_id
    assert float(run.data.params["optim.lr"]) == best.params["optim.lr"]
    other = open_search("s", SHORT, SPACE[:1], store)
    with (
        pytest.raises(UserError, match="search 's' exists with another config, space, objective or other images"),
        other,
    ):
        pass


def test_trials_that_the_memory_cannot_hold_never_start(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = [Parameter(setting="model.width", choices=(0.125, 4.0))]
    narrow = sum(memory.predict(SHORT, 256).values())
    monkeypatch.setattr(budget, "budget", lambda *_: budget.Budget(round(narrow * 1.2), {}))
    said: list[str] = []
    with open_search("s", SHORT, widths, store) as found:
        trials.search(found, store, 8, say=said.append)
    started = [text for text in said if "=" in text]
    assert {text.partition(": ")[2] for text in started} == {"model.width=0.125"}
    assert sum("% on validation after" in text for text in said) == len(started)
    away = [trial for trial in found.study.trials if "turned away" in trial.user_attrs]
    assert sum("turned away, needs " in text for text in said) == len(away)
    assert len(away) + len(started) == 8
    assert away
    assert all(trial.constraints["memory"] > 0 and trial.state is TrialState.PRUNED for trial in away)
    assert f", {len(away)} turned away ({len(away)} for up to " in outcome(found.study, 0.5)[0]


def test_a_trial_must_fit_at_the_size_of_the_proxy_and_at_full_size(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy is narrower than what the best is trained as."""
    full, heads = tiny(model={"width": 0.25}, train={"epochs": 1}), (16, 8192)
    space = [Parameter(setting="model.hidden_dim", choices=heads)]
    monkeypatch.setattr(budget, "budget", lambda *_: budget.Budget(round(room / (1 - budget.FRAGMENTATION)), {}))
    room = trials.smallest(changed(full, {"model.hidden_dim": heads[1]})) - 1000
    assert trials.smallest(changed(full, {"model.hidden_dim": heads[1], "model.width": 0.125})) < room
    with open_search("s", full, space, store, proxy=["model.width=0.125"]) as found:
        trials.search(found, store, 6)
    states = {trial.params["model.hidden_dim"]: "turned away" in trial.user_attrs for trial in found.study.trials}
    assert states == {"16": False, "8192": True}
    room = trials.smallest(full) - 1000
    refused = open_search("other", full, space, store, proxy=["model.width=0.125"])
    with pytest.raises(UserError, match=r"tiny needs .*, and a run may take"), refused:
        pass


def test_a_network_that_cannot_take_the_images_is_turned_away(store: Store) -> None:
    space = [Parameter(setting="model.backbone", choices=("resnet10", "alexnet"))]
    standard = {"stem": "imagenet", "width": 1}
    with open_search("s", tiny(model=standard, train={"epochs": 1}), space, store) as found:
        found.study.enqueue_trial({"model.backbone": '"alexnet"'})
        trials.search(found, store, 1)
    assert found.study.trials[0].user_attrs["turned away"].startswith("backbone 'alexnet' can't take 16 px images")


def test_no_trial_begins_when_the_time_is_up_and_none_sees_the_test_images(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "test", property(lambda _: pytest.fail("the test images were looked at")))
    with open_search("s", SHORT, SPACE, store) as found:
        trials.search(found, store, 1)
        trials.search(found, store, 9, hours=0)
    assert len(found.study.trials) == 1


def test_a_trial_is_judged_on_the_device_of_the_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, place, seen = train.train(SHORT, store), encoders.place, []

    def watched(*arguments: Any, **options: Any) -> Subject:
        seen.append(options["device"])
        return place(*arguments, **options)

    monkeypatch.setattr(encoders, "place", watched)
    trials.validation_accuracy(run_id, SHORT.model_copy(update={"device": "cpu"}), store, SILENT)
    assert seen == ["cpu"]


def test_what_selection_gave_and_how_a_proxy_ranks_is_said(store: Store) -> None:
    table = pd.DataFrame(
        {
            "cell": ["baseline", "trial 4", "trial 2", "trial 7"],
            "in the search": [0.5, 0.6, 0.58, 0.55],
            "fresh seeds": [0.52, 0.55, 0.57, 0.5],
            "n": [3, 3, 3, 2],
        }
    )
    with open_search("whole", SHORT, SPACE, store) as found:
        assert (
            "+10.00 points in the search, +3.00 with fresh seeds; +7.00 was selection" in confirm.notes(found, table)[1]
        )
    with open_search("proxy", SHORT, SPACE, store, proxy=["data.limit=400"]) as found:
        assert confirm.notes(found, table)[1] == "rank correlation (Spearman) of the two over 3 trials: 0.50"
        assert "needs --top 3" in confirm.notes(found, table[:2])[1]


def test_a_poor_trial_is_given_up_and_its_run_says_killed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 1)
    with open_search("s", tiny(train={"epochs": 2, "knn_every": 1}), SPACE, store) as found:
        trials.search(found, store, 2)
    states = [trial.state for trial in found.study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED]
    assert sorted(run.info.status for run in store.search("tags.kind = 'pretrain'")) == ["FINISHED", "KILLED"]
    assert found.study.trials[1].intermediate_values.keys() == {1}  # not at its last epoch, when it was done
    assert "2 trials: 1 ran to their end, 0 turned away, 1 given up early, 0 failed" in outcome(found.study, 0.5)[0]


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_each_pruner_gives_up_a_trial_that_is_far_behind(store: Store, pruner: str) -> None:
    """As Optuna has it: once there are enough trials, by what they had after as many epochs."""
    with open_search(pruner, SHORT, SPACE, store, pruner=pruner) as found:
        given_up = []
        for number in range(40):
            trial = found.study.ask()
            for epoch in range(1, 28):
                trial.report(0.9 if number % 4 else 0.1, epoch)
                if trial.should_prune():
                    given_up.append(number)
                    break
            found.study.tell(
                trial, None if number in given_up else 0.5, state=TrialState.PRUNED if number in given_up else None
            )
    assert given_up
    assert all(number % 4 == 0 for number in given_up)


def test_a_config_that_was_trained_before_is_a_copy_of_its_record_under_the_search(store: Store) -> None:
    with open_search("first", SHORT, SPACE, store) as found:
        trials.search(found, store, 1)
        values = found.study.trials[0].params
    with open_search("second", SHORT, SPACE, store) as found:
        found.study.enqueue_trial(values)
        trials.search(found, store, 1)
        (copy,) = store.search(f"tags.`{trials.PARENT}` = '{found.tracker.run_id}'")
    (run,) = store.search("tags.kind = 'pretrain'")
    assert (copy.data.tags["kind"], copy.data.tags["copied_from"]) == ("trial", run.info.run_id)
    assert copy.data.metrics["train/loss"] == run.data.metrics["train/loss"]


def failing_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    train, failed = train.train, []

    def failing(*arguments: object, **options: object) -> str:
        if not failed:
            failed.append(1)
            raise error
        return train(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "train", failing)


def test_settings_that_fail_are_recorded_and_the_search_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_once(monkeypatch, BadSettings("training diverged"))
    with open_search("s", SHORT, SPACE, store) as found:
        trials.search(found, store, 2)
    assert len(ranked(found.study)) == 1
    lines = outcome(found.study, 0.5)
    assert lines[0].endswith("0 given up early, 1 failed")
    assert lines[1] == "trial 0 failed: training diverged"


def test_a_machine_that_fails_ends_the_search_and_spends_no_trial(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_once(monkeypatch, RunFailed("can't write the checkpoint: no space left"))
    with pytest.raises(RunFailed, match="no space left"), open_search("s", SHORT, SPACE, store) as found:
        trials.search(found, store, 2)
    assert store.client.get_run(found.tracker.run_id).info.status == "FAILED"
    (cut,) = found.study.trials
    with open_search("s", SHORT, SPACE, store) as found:
        trials.search(found, store, 2)
    assert len(ranked(found.study)) == 2
    assert cut.params in [trial.params for trial in ranked(found.study)]


def test_images_without_labels_are_refused_before_anything_is_trained(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(8):
        Image.new("RGB", (16, 16), (n * 30, 0, 0)).save(tmp_path / "photos" / f"{n}.png")
    config = tiny(data={"dataset": "folder", "dir": str(tmp_path / "photos"), "side": 16}, train={"batch_size": 4})
    with pytest.raises(UserError, match="label"), open_search("s", config, SPACE[:1], store):
        pass
    assert not store.search()


def test_other_images_are_another_search(store: Store) -> None:
    with open_search("s", SHORT, SPACE, store):
        pass
    other = open_search("s", tiny(data={"limit": 500}, train={"epochs": 1, "knn_every": 1}), SPACE, store)
    with pytest.raises(UserError, match="or other images"), other:
        pass


def test_stopped_in_a_trial_it_goes_on_with_that_trial(store: Store) -> None:
    config = tiny(train={"epochs": 2, "batch_size": 256})
    with pytest.raises(Interrupted), open_search("s", config, SPACE[:1], store) as found:
        trials.search(found, store, 1, stop=lambda: True)
    assert store.client.get_run(found.tracker.run_id).info.status == "KILLED"
    (cut,) = found.study.trials
    with open_search("s", config, SPACE[:1], store) as again:
        trials.search(again, store, 1)
    (done,) = ranked(again.study)
    assert done.params == cut.params
    assert done.user_attrs["goes on from"] == cut.number
    runs = store.search("tags.kind = 'pretrain'")
    assert [run.info.status for run in runs] == ["FINISHED"]  # one run, gone on with


@pytest.mark.slow
def test_killed_in_a_trial_it_goes_on_from_the_checkpoint(store: Store, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[data]\ndataset = "digits"\n[model]\nstem = "stride2"\nwidth = 0.125\n[optim]\nname = "adamw"\nlr = 1e-3\n'
        '[train]\nepochs = 60\nknn_every = 0\nprecision = "fp32"\ncheckpoint_minutes = 0.01\n'
    )
    (tmp_path / "space.toml").write_text("[[parameter]]\nsetting = 'optim.lr'\nlow = 1e-4\nhigh = 1e-2\n")
    command = [sys.executable, str(ROOT / "cli.py"), "search", "--config", "c.toml", "--space", "space.toml"]
    process = subprocess.Popen(
        [*command, "--trials", "2", "--seeds", "0", "--name", "s", "--set", "device=cpu"],
        cwd=tmp_path,
        env=os.environ | {"SIMCLR_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        runs = store.search("tags.trial = '1'")  # trial 0 is the start, whose run is taken over
        if runs and list(store.run_folder(runs[0].info.run_id).glob("*.pt")):
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (cut,) = store.search("tags.trial = '1'")
    assert cut.info.status == "RUNNING"
    done = simclr(*command[2:], "--trials", "2", "--seeds", "0", "--name", "s", "--set", "device=cpu", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert store.client.get_run(cut.info.run_id).info.status == "FINISHED"


def test_two_objectives_give_a_front_and_the_other_pictures(store: Store, tmp_path: Path) -> None:
    with open_search("s", SHORT, SPACE, store, objectives="accuracy,time") as found:
        trials.search(found, store, 3)
    assert all(len(trial.values) == 2 and trial.values[1] > 0 for trial in ranked(found.study))
    drawn = pictures(found.study)
    assert set(drawn) == {"history", "importance", "slice", "contour", "parallel-coordinates", "pareto-front"}
    for name, draw in drawn.items():
        draw(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_the_record_has_pictures_the_best_config_and_every_trial(store: Store) -> None:
    with open_search("s", SHORT, SPACE, store) as found:
        trials.search(found, store, 4)
        text = confirm.record(found, 0.5, store)
    assert "4 trials: 4 ran to their end, 0 turned away, 0 given up early, 0 failed" in text
    table = pd.read_csv(store.artifact(found.tracker.run_id, "trials.csv"))
    assert list(table["trial"]) == [0, 1, 2, 3]
    assert table["accuracy"].max() == ranked(found.study)[0].values[0]
    for name in ("history", "importance", "slice", "contour", "parallel-coordinates"):
        assert store.artifact(found.tracker.run_id, f"{name}.png").stat().st_size > 5000
    from experiments.configs.resolve import resolve

    best = resolve(config=store.artifact(found.tracker.run_id, "best.toml"))
    assert best.optim.lr == ranked(found.study)[0].params["optim.lr"]


def test_a_proxy_is_searched_and_the_full_size_is_confirmed(store: Store) -> None:
    full = tiny(train={"epochs": 2, "knn_every": 0})
    with open_search("s", full, SPACE, store, proxy=["train.epochs=1"]) as found:
        trials.search(found, store, 3)
        plan = confirm.confirmation(found, 3)
    assert [cell.config.train.epochs for cell in plan.cells] == [2, 2, 2]
    assert {cell.name for cell in plan.cells} == {"baseline", "trial 1", "trial 2"}  # trial 0 was the start


def test_an_unknown_objective_or_pruner_is_refused(store: Store) -> None:
    loss = open_search("s", SHORT, SPACE, store, objectives="time")
    with pytest.raises(UserError, match="unknown objectives 'time'"), loss:
        pass
    medium = open_search("s", SHORT, SPACE, store, pruner="medium")
    with pytest.raises(UserError, match="unknown pruner 'medium': did you mean 'median'"), medium:
        pass


def test_a_record_of_another_optuna_and_a_locked_one_are_errors_of_one_line(store: Store) -> None:
    with open_search("s", SHORT, SPACE, store):
        pass
    again = open_search("s", SHORT, SPACE, store)
    path = store.folder / trials.STATE
    with closing(sqlite3.connect(path, timeout=0)) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"can't use the search's record .*search\.db: .*locked"), again:
            pass
        database.rollback()
        database.execute("UPDATE version_info SET schema_version = 1")
        database.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
        database.commit()
    again = open_search("s", SHORT, SPACE, store)
    with pytest.raises(UserError, match=r"search\.db is of another version of Optuna"), again:
        pass


def test_search_on_the_command_line_confirms_with_fresh_seeds(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text(
        '[data]\ndataset = "digits"\n[model]\nstem = "stride2"\nwidth = 0.125\n[optim]\nname = "adamw"\nlr = 1e-3\n'
        '[train]\nepochs = 1\nknn_every = 1\nprecision = "fp32"\n'
    )
    (tmp_path / "space.toml").write_text("[[parameter]]\nsetting = 'optim.lr'\nlow = 1e-4\nhigh = 1e-2\n")
    arguments = [
        "search",
        "--config",
        "c.toml",
        "--space",
        "space.toml",
        "--trials",
        "2",
        "--seeds",
        "2",
        "--name",
        "s",
    ]
    done = simclr(*arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 trials: 2 ran to their end" in done.stdout
    table = pd.read_csv(store.artifact(store.search("tags.kind = 'search'")[0].info.run_id, "selection.csv"))
    assert list(table["n"]) == [2, 2]
    (study,) = store.studies()
    seeds = {run.data.tags["seed"] for run in store.search(f"tags.`mlflow.parentRunId` = '{study.info.run_id}'")}
    assert seeds == {"1", "2"}
    assert json.loads(store.artifact(study.info.run_id, "plan.json").read_text())["cells"][0]["cell"] == "baseline"
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "ablate", lambda *_, **__: ["out of memory"] * 4)  # of both cells with both seeds
    failed = CliRunner().invoke(cli.app, arguments)
    assert failed.exit_code == 1, failed.output
    assert failed.stderr.startswith("failed: out of memory; ")
