from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import cli
from analysis import plots
from experiments.runs import compare, train
from experiments.studies import report, results, run
from experiments.studies.plan import BASELINE, StudyPlan, plan_study
from experiments.tracking import Store
from simclr.config import to_toml
from simclr.data.dataset import open_dataset
from simclr.errors import RunFailed, UserError
from simclr.train import budget, memory
from tests.helpers import ROOT, tiny

COMMAND = "simclr ablate --drop color_jitter --drop crop"
QUICK: dict[str, Any] = {"train": {"epochs": 1}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def plan() -> StudyPlan:
    return plan_study(tiny(**QUICK), drop=["color_jitter", "crop"])


@pytest.fixture(scope="module")
def study(store: Store, plan: StudyPlan) -> str:
    parent = run.open_study("first", plan, store, COMMAND).run_id
    assert run.ablate(parent, plan, store, [0, 1]) == []
    return parent


def trained(store: Store) -> Counter[str]:
    """How many finished runs each config has."""
    runs = [run for run in store.search("tags.kind = 'pretrain'") if run.info.status == "FINISHED"]
    return Counter(run.data.tags["config_key"] for run in runs)


def test_a_study_is_a_parent_with_a_nested_run_for_each_cell_and_seed(
    store: Store, plan: StudyPlan, study: str
) -> None:
    runs = results.children(study, store)
    assert {(run.data.tags["cell"], run.data.tags["seed"]) for run in runs} == {
        (cell.name, str(seed)) for cell in plan.cells for seed in (0, 1)
    }
    for run in runs:
        assert run.data.tags["mlflow.parentRunId"] == study
        assert (run.data.tags["kind"], run.data.tags["study"]) == ("pretrain", "first")
        assert {"eval/knn_top1", "eval/linear_top1", "train/loss"} <= set(run.data.metrics)
        assert {"config_key", "data_digest", "protocol"} <= set(run.data.tags)


def test_nothing_is_trained_or_judged_twice(
    store: Store, plan: StudyPlan, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "pretrain", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(run, "evaluate_encoder", lambda *a: pytest.fail("judged again"))
    before = len(store.search())
    assert run.open_study("first", plan, store, COMMAND).run_id == study
    assert run.ablate(study, plan, store, [0, 1]) == []
    assert len(store.search()) == before


def test_a_baseline_of_another_study_is_taken_over_as_a_copy(
    store: Store, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = plan_study(tiny(**QUICK), vary=["loss.temperature=0.2,0.4"])
    parent = run.open_study("second", other, store, "").run_id
    assert run.ablate(parent, other, store, [0]) == []
    assert set(trained(store).values()) == {1}
    (copy,) = [run for run in results.children(parent, store) if run.data.tags["cell"] == BASELINE]
    source = store.client.get_run(copy.data.tags["copied_from"])
    assert copy.data.metrics == source.data.metrics
    assert copy.data.params == source.data.params
    assert store.history(copy.info.run_id, "train/loss").equals(store.history(source.info.run_id, "train/loss"))
    assert store.find("tiny-s0").info.run_id != copy.info.run_id
    again = len(store.search())
    assert run.ablate(parent, other, store, [0]) == []
    assert len(store.search()) == again


def test_more_seeds_extend_a_study_and_another_plan_needs_another_name(
    store: Store, plan: StudyPlan, study: str
) -> None:
    assert run.open_study("first", plan, store, COMMAND).run_id == study
    with pytest.raises(UserError, match="study 'first' exists with another plan or other images"):
        run.open_study("first", plan_study(tiny(**QUICK), drop=["flip"]), store, "")


def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = plan_study(tiny(**QUICK, optim={"name": "sgd", "lr": 0.1, "weight_decay": 0}), vary=["optim.lr=1e30,0.01"])
    parent = run.open_study("fails", plan, store, "simclr ablate").run_id
    failures = run.ablate(parent, plan, store, [0, 1])
    assert [failure.partition(":")[0] for failure in failures] == ["'lr=1e+30', seed 0", "'lr=1e+30', seed 1"]
    assert "training diverged" in failures[0]
    text = report.report(parent, store, "csv")
    (row,) = [line for line in text.splitlines() if line.startswith("lr=1e+30") and "linear" not in line][:1]
    assert row.split(",")[1] == "0"
    assert "—" in row
    page = store.artifact(parent, "report.html").read_text()
    assert "Not finished" in page
    assert "training diverged" in page


def test_a_cell_that_fails_in_an_unforeseen_way_is_recorded_too(
    store: Store, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> str:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(run.runner, "train_or_go_on", broken)
    plan = plan_study(tiny(**QUICK), drop=["grayscale"])
    parent = run.open_study("unforeseen", plan, store, "").run_id
    failures = run.ablate(parent, plan, store, [0])
    assert failures[0] == "'baseline', seed 0: RuntimeError: CUDA error: an illegal memory access"
    assert len(failures) == 2


def test_the_report_is_made_of_records_alone(store: Store, study: str, tmp_path: Path) -> None:
    text = report.report(study, Store(store.folder), "markdown", tmp_path / "out")
    assert "no color_jitter" in text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.html", "linear_top1.csv", "linear_top1.tex", "knn_top1.md"} <= names
    assert {"differences-linear_top1.svg", "differences-linear_top1.png", "curves-train-loss.svg"} <= names
    page = (tmp_path / "out" / "report.html").read_text()
    assert "simclr ablate --drop color_jitter --drop crop" in page
    assert "[augment.crop]" in page  # the config
    found = results.records(study, store)
    assert (found.table["status"] == "FINISHED").all()
    for (cell, seed), right in found.correct["linear_top1"].items():
        row = found.table[(found.table["cell"] == cell) & (found.table["seed"] == seed)].iloc[0]
        assert right.mean() == pytest.approx(row["linear_top1"], abs=1e-6)


def test_a_layer_of_the_same_network_is_judged_without_training_it_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = plan_study(tiny(**QUICK), axis="head")
    chosen = plan._replace(cells=[cell for cell in plan.cells if cell.name in (BASELINE, "head=mlp, z judged")])
    parent = run.open_study("layers", chosen, store, "").run_id
    assert run.ablate(parent, chosen, store, [0]) == []
    assert sum(trained(store).values()) == 1
    table = results.records(parent, store).table.set_index("cell")
    assert table.loc[BASELINE, "linear_top1"] != table.loc["head=mlp, z judged", "linear_top1"]


def test_a_cell_that_can_not_run_is_said_before_anything_starts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = plan_study(tiny(**QUICK), vary=["train.batch_size=128,5000"])
    with pytest.raises(UserError, match=r"1 of 3 cells can't run: 'batch_size=5000': train.batch_size = 5000"):
        run.forecast(plan, store, [0])
    assert store.search() == []


def test_the_forecast_knows_what_is_done(store: Store, plan: StudyPlan, study: str) -> None:
    cells = run.forecast(plan, store, [0, 1, 2])
    assert [each.done for each in cells] == [[0, 1]] * 3
    assert all(each.seconds > 0 for each in cells)


def test_a_bug_is_not_taken_for_a_failed_cell(
    store: Store, plan: StudyPlan, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*a: object, **k: object) -> None:
        raise RunFailed("full disk")

    monkeypatch.setattr(run, "run_cell", broken)
    assert len(run.ablate(study, plan, store, [0])) == 3

    def bug(*a: object, **k: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(run, "run_cell", bug)
    with pytest.raises(KeyError):
        run.ablate(study, plan, store, [0])


def test_figures_of_another_protocol_are_judged_anew_and_never_reported(
    store: Store, plan: StudyPlan, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results.records(study, store).table
    finished = [run for run in results.children(study, store) if run.info.status == "FINISHED"]
    run = next(run for run in finished if run.data.tags["cell"] == BASELINE)
    monkeypatch.setenv("SIMCLR_HOME", str(store.folder))
    other = ["--set", "linear.l2_min=1e5", "--set", "linear.l2_values=1", "--set", "knn.k=[20]"]
    done = CliRunner().invoke(cli.app, ["eval", run.info.run_id, "--linear", "--knn", *other])
    assert done.exit_code == 0, done.output
    table = results.records(study, store).table
    place = (table["cell"] == BASELINE) & (table["seed"] == int(run.data.tags["seed"]))
    assert table[place]["linear_top1"].isna().all()
    assert table[place]["knn_top1"].notna().all()  # k = 20 has a name of its own
    assert (table[place]["status"] == "FINISHED").all()  # what is left counts
    assert "figures left out: 1, not found under the study's protocol" in report.report(study, store)
    assert run.ablate(study, plan, store, [0, 1]) == []
    again = results.records(study, store).table
    assert again.sort_values(["cell", "seed"]).equals(before.sort_values(["cell", "seed"]))


def test_the_same_name_on_other_images_is_another_study(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plans = [plan_study(tiny(**QUICK, data={"limit": limit}), drop=["flip"]) for limit in (None, 1000)]
    run.open_study("one", plans[0], store, "")
    with pytest.raises(UserError, match="another plan or other images"):
        run.open_study("one", plans[1], store, "")


def test_a_kill_at_the_worst_moments_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    plan = plan_study(tiny(**QUICK), drop=["flip"])
    parent = run.open_study("killed", plan, store, "").run_id
    store.artifact(parent, "plan.json").unlink()  # before it was written

    class Killed(BaseException): ...

    def killed(*a: object, **k: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("experiments.evaluation.plots.confusion_matrix", killed)  # in the middle of recording
        with pytest.raises(Killed):
            run.ablate(parent, plan, store, [0])
    assert run.open_study("killed", plan, store, "").run_id == parent
    with monkeypatch.context() as patch:
        patch.setattr("experiments.runner.Path.unlink", killed)  # trained, its checkpoints not yet removed
        with pytest.raises(Killed):
            run.ablate(parent, plan, store, [0])
    other = plan_study(tiny(**QUICK), drop=["crop"])
    second = run.open_study("copied", other, store, "").run_id
    with monkeypatch.context() as patch:
        patch.setattr(Store, "history", killed)
        patch.setattr("experiments.tracking.Tracker.finish", killed)  # in the middle of a copy
        with pytest.raises(Killed):
            run.ablate(second, other, store, [0])
    for study, planned in ((parent, plan), (second, other)):
        assert run.ablate(study, planned, store, [0]) == []
        table = results.records(study, store).table
        assert (table["status"] == "FINISHED").all()
        assert table[["knn_top1", "linear_top1"]].notna().all().all()
    assert set(trained(store).values()) == {1}


def test_a_moved_folder_and_another_device_are_those_of_the_command(tmp_path: Path) -> None:
    from PIL import Image

    store, folder = Store(tmp_path / "store"), tmp_path / "a"
    for label in ("x", "y"):
        (folder / label).mkdir(parents=True)
        for n in range(150):
            Image.new("RGB", (8, 8), (n, 255 * (label == "x"), 2 * n % 256)).save(folder / label / f"{n}.png")
    data = {"dataset": "folder", "side": 8}

    def plan_in(place: Path) -> StudyPlan:
        return plan_study(tiny(data=data | {"dir": str(place)}, train={"epochs": 1, "batch_size": 64}), drop=["flip"])

    parent = run.open_study("moves", plan_in(folder), store, "").run_id
    assert run.ablate(parent, plan_in(folder), store, [0]) == []
    folder = folder.rename(tmp_path / "b")
    assert run.open_study("moves", plan_in(folder), store, "").run_id == parent
    assert run.ablate(parent, plan_in(folder), store, [0]) == []
    assert set(trained(store).values()) == {1}


def test_cells_that_can_not_be_judged_are_said_before_anything_starts(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "flat").mkdir()
    for n in range(40):
        Image.new("RGB", (8, 8), (5 * n, 0, 0)).save(tmp_path / "flat" / f"{n}.png")
    data = {"dataset": "folder", "dir": str(tmp_path / "flat"), "side": 8}
    plan = plan_study(tiny(data=data, train={"epochs": 1, "batch_size": 16}), drop=["flip"])
    with pytest.raises(UserError, match=r"2 of 2 cells can't run: 'baseline': --linear needs labels"):
        run.forecast(plan, Store(tmp_path / "store"), [0])


@pytest.mark.slow
def test_a_study_killed_at_any_moment_goes_on_to_the_same_figures(tmp_path: Path) -> None:
    config = tiny(train={"epochs": 12, "checkpoint_minutes": 0.001})
    arguments = ["ablate", "--config", "tiny.toml", "--drop", "color_jitter", "--seeds", "2"]

    def start(home: Path) -> subprocess.Popen[bytes]:
        home.mkdir(exist_ok=True)
        (home / "tiny.toml").write_text(to_toml(config))
        environment = os.environ | {"SIMCLR_HOME": str(home), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "cli.py"), *arguments]
        return subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.DEVNULL)

    whole = start(tmp_path / "whole")
    moments, draw = 0, random.Random(0)
    assert whole.wait(300) == 0
    killed = start(tmp_path / "killed")
    runs = Store(tmp_path / "killed")
    while killed.poll() is None and moments < 4:
        seen = len(runs.search())
        limit = time.monotonic() + 60
        while killed.poll() is None and len(runs.search()) == seen and time.monotonic() < limit:
            time.sleep(0.2)  # a cell has begun
        time.sleep(draw.uniform(0, 4))  # in the middle of it, of its evaluation, or between it and the next
        killed.send_signal(signal.SIGKILL)
        if killed.wait() != -signal.SIGKILL:
            break  # it was done before
        moments += 1
        killed = start(tmp_path / "killed")
    assert killed.wait(300) == 0
    tables = []
    for home in ("whole", "killed"):
        store = Store(tmp_path / home)
        (parent,) = store.studies()
        columns = ["cell", "seed", "status", "knn_top1", "linear_top1"]
        tables.append(results.records(parent.info.run_id, store).table[columns].sort_values(["cell", "seed"]))
        assert set(trained(store).values()) == {1}
    assert moments > 0
    assert tables[0].to_numpy().tolist() == tables[1].to_numpy().tolist()


BAD = {
    "axis": (["--axis", "temprature"], "did you mean 'temperature'"),
    "augmentation": (["--drop", "colour_jitter"], "did you mean 'color_jitter'"),
    "one value": (["--vary", "loss.temperature=0.1"], "expected two or more"),
    "wrong type": (["--vary", "train.epochs=many,few"], "train.epochs = "),
    "nothing": ([], "nothing differs from the baseline"),
    "too large a batch": (["--vary", "train.batch_size=64,9000"], "cells can't run"),
    "seeds": (["--drop", "crop", "--seeds", "0"], "--seeds 0: expected 1 or more"),
    "name taken": (["--drop", "flip", "--name", "first"], "exists with another plan"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    case: str, store: Store, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(store.folder))
    (store.folder / "tiny.toml").write_text(to_toml(tiny(**QUICK)))
    arguments, message = BAD[case]
    done = CliRunner().invoke(cli.app, ["ablate", "--config", str(store.folder / "tiny.toml"), *arguments])
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `simclr ablate` on the tiny config in an empty folder."""
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path))
    (tmp_path / "tiny.toml").write_text(to_toml(tiny(**QUICK)))
    arguments = ["ablate", "--config", str(tmp_path / "tiny.toml")]
    return lambda *more, **how: CliRunner().invoke(cli.app, [*arguments, *more], **how)


def test_a_dry_run_shows_cells_seeds_time_and_memory_and_runs_nothing(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    done = command("--drop", "color_jitter", "--vary", "loss.temperature=0.1,0.2", "--seeds", "2", "--dry-run")
    assert done.exit_code == 0, done.output
    first, *cells = done.stdout.splitlines()
    assert "cells x 2 seeds (0 to 1), about" in first
    assert len(cells) == len(plan_study(tiny(), drop=["color_jitter"], vary=["loss.temperature=0.1,0.2"]).cells)
    assert all(re.search(r"0 of 2 done, \d+ s a seed, \d+ MiB$", cell) for cell in cells)
    assert len({cell.index(" of 2 done") for cell in cells}) == 1  # in one column
    assert Store(tmp_path).search() == []


def test_a_study_of_over_an_hour_asks_once_on_a_terminal_unless_told_yes(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def long(plan: StudyPlan, *arguments: object) -> list[run.Forecast]:
        return [run.Forecast(cell, 2000.0, 0, []) for cell in plan.cells]

    def begin(name: str, *arguments: object) -> None:
        begun.append(name)
        raise UserError("far enough")

    monkeypatch.setattr(run, "forecast", long)
    monkeypatch.setattr(run, "open_study", begin)
    assert command("--drop", "crop").exit_code == 2
    assert len(begun) == 1  # not a terminal: nobody to ask
    monkeypatch.setattr(cli, "on_terminal", lambda: True)
    assert command("--drop", "crop", input="n\n").exit_code == 1
    assert len(begun) == 1
    command("--drop", "crop", input="y\n")
    command("--drop", "crop", "--yes")
    assert len(begun) == 3


def test_a_cell_that_the_memory_can_not_hold_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = 2 * sum(memory.predict(tiny(**QUICK), 256).values())
    monkeypatch.setattr(budget, "budget", lambda *_: budget.Budget(enough, {}))
    plan = plan_study(tiny(**QUICK, memory="1GiB"), vary=["model.width=0.125,2.0"])
    with pytest.raises(UserError, match=r"^1 of 2 cells can't run: 'width=2\.0': .* needs \d+ MiB"):
        run.forecast(plan, Store(tmp_path), [0])


def test_the_exit_code_and_the_record_say_that_cells_failed(command: Callable[..., Result], tmp_path: Path) -> None:
    rates = ["--set", "optim.name=sgd", "--set", "optim.weight_decay=0", "--vary", "optim.lr=1e30,1e31"]
    done = command(*rates, "--set", "optim.lr=0.01", "--seeds", "1", "--name", "some")
    assert done.exit_code == 1
    assert done.stderr.startswith("failed: 'lr=1e+30', seed 0: training diverged")
    assert "baseline" in done.stdout
    done = command(*rates, "--set", "optim.lr=1e29", "--seeds", "1", "--name", "all")
    assert done.exit_code == 1
    assert done.stderr.count("training diverged") == 3
    assert {run.info.run_name: run.info.status for run in Store(tmp_path).studies()} == {
        "some": "FAILED",
        "all": "FAILED",
    }


@pytest.mark.parametrize(
    ("options", "figure"),
    [({"vary": ["loss.temperature=0.1,0.2"]}, "against"), ({"axis": "pairs.toml"}, "pairs")],
    ids=["numeric axis", "pairs"],
)
def test_a_report_has_the_figure_that_its_axis_asks_for(
    options: dict[str, Any], figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.toml").write_text('[mine]\npairs = ["crop", "flip"]\n')
    store, plan = Store(tmp_path), plan_study(tiny(**QUICK), **options)
    parent = run.open_study("figures", plan, store, "").run_id
    assert run.ablate(parent, plan, store, [0]) == []
    report.report(parent, store, out=tmp_path / "out")
    for metric in ("linear_top1", "knn_top1"):
        assert "<svg" in (tmp_path / "out" / f"{figure}-{metric}.svg").read_text()


def test_curves_of_runs_are_drawn_with_their_points(
    store: Store, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(store.folder))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["plot", "loss", "tiny-s0", "tiny-s1", "--smooth", "3"])
    assert done.exit_code == 0, done.output
    points = (tmp_path / "curves.csv").read_text().splitlines()
    assert points[0] == "label,run,step,value"
    assert {line.split(" ")[0] for line in points[1:]} == {"tiny-s0", "tiny-s1"}
    assert (tmp_path / "curves.svg").exists()
    levels: list[float] = []
    monkeypatch.setattr(plots, "curves", lambda histories, path, label, chances, smooth: levels.extend(chances))
    for metric in ("loss", "top1", "top5"):
        compare.plot(metric, ["tiny-s0"], store, tmp_path / "level", 0)
    assert levels[::2] == pytest.approx([np.log(511), 1 / 511, 5 / 511])
    data = open_dataset(tiny().data, store.folder)
    share = np.bincount(data.labels[data.parts["val"]]).max() / len(data.parts["val"])
    assert compare._chance("val/knn_top1", store.find("tiny-s0")) == {share}
    assert compare._chance("train/learning_rate", store.find("tiny-s0")) == set()
    done = CliRunner().invoke(cli.app, ["plot", "los", "tiny-s0"])
    assert done.exit_code == 2
    assert "did you mean 'loss'" in done.stderr
