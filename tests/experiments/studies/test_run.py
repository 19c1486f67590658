"""Running a study: what it records, what it reuses, and what happens when cells fail."""

from __future__ import annotations

import platform
import re
from collections import Counter
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from experiments.runs import expected, train
from experiments.runs.prepare import Prepared
from experiments.studies import run as runner
from experiments.studies.cell import BASELINE
from experiments.studies.forecast import forecast
from experiments.studies.opening import check_study_name, find_study, open_study, part_to_evaluate_on
from experiments.studies.plan import StudyPlan, plan_study
from experiments.studies.power import _spread
from experiments.studies.report import report
from experiments.studies.results import StudyDocument, read_results
from experiments.studies.run import run_study
from experiments.tracking.claims import claim_file
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, start_run
from simclr import device as devices
from simclr.data.dataset import DataConfig, Dataset, open_dataset
from simclr.errors import BadSettings, RunFailed, UserError
from simclr.progress import Observer
from simclr.train import budget
from simclr.train.loop import Interrupted
from tests.experiments.studies.helpers import leave_out_figures, previous_plan
from tests.helpers import tiny

QUICK: dict[str, Any] = {"train": {"epochs": 1}}


class Killed(BaseException):
    """The process ends here."""


def kill(*arguments: object, **options: object) -> None:
    raise Killed


class Overall(Observer):
    """Keeps what is reported about the whole study."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, int, int, str]] = []

    def overall(self, what: str, done: int, total: int, best: str, seconds: float = inf) -> None:
        self.reports.append((what, done, total, best))


@pytest.fixture(scope="module")
def plan() -> StudyPlan:
    return plan_study(tiny(**QUICK), drop=["color_jitter"])


@pytest.fixture(scope="module")
def study(shared_store: Store, plan: StudyPlan) -> Tracker:
    """A study that has been trained and evaluated, with one seed."""
    tracker = open_study("first", plan, shared_store, "simclr ablate")
    assert run_study(tracker, plan, shared_store, [0]) == []
    return tracker


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluating are errors."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("this must not run again")

    monkeypatch.setattr(train, "pretrain", refuse)
    monkeypatch.setattr(runner, "evaluate_encoder", refuse)


def times_trained(store: Store) -> set[int]:
    """How many finished runs there are of each config that was trained."""
    return set(Counter(run.tags["config_key"] for run in store.records(kind="pretrain") if run.finished).values())


def children(study: Tracker) -> dict[str, Record]:
    return {child.tags["cell"]: child for child in study.store.records(parent=study.run_id)}


# --- what a study records ---------------------------------------------------------------------------------------------


def test_a_study_has_a_run_for_each_cell_and_seed(study: Tracker) -> None:
    record = study.record()
    assert (record.kind, record.name, record.tags["study"]) == ("study", "first", "first")
    runs = children(study)
    assert set(runs) == {BASELINE, "no color_jitter"}
    for run in runs.values():
        assert (run.kind, run.tags["study"], run.tags["seed"], run.status) == ("pretrain", "first", "0", "FINISHED")
        assert {"eval/knn_top1", "eval/linear_top1", "train/loss"} <= set(run.metrics)
        assert {"config_key", "data_digest", "protocol"} <= set(run.tags)


@pytest.mark.usefixtures("no_work")
def test_nothing_is_trained_or_evaluated_twice(study: Tracker, plan: StudyPlan, shared_store: Store) -> None:
    before = len(shared_store.records())
    again = open_study("first", plan, shared_store, "simclr ablate")
    assert again.run_id == study.run_id
    assert run_study(again, plan, shared_store, [0]) == []
    assert len(shared_store.records()) == before


@pytest.mark.usefixtures("no_work")
def test_a_run_of_another_study_is_copied_once(study: Tracker, plan: StudyPlan, shared_store: Store) -> None:
    second = open_study("second", plan, shared_store, "")
    for _ in range(2):
        assert run_study(second, plan, shared_store, [0]) == []
    (copy,) = [child for child in shared_store.records(parent=second.run_id) if child.tags["cell"] == BASELINE]
    source = children(study)[BASELINE]
    assert (copy.kind, copy.tags["copied_from"], copy.tags["study"]) == ("cell", source.id, "second")
    assert (copy.metrics, copy.params, copy.protocols) == (source.metrics, source.params, source.protocols)
    assert copy.history("train/loss").equals(source.history("train/loss"))
    assert shared_store.find("tiny-s0").id == source.id


def test_another_layer_of_a_network_is_evaluated_without_training(
    study: Tracker, shared_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "pretrain", kill)
    plan = plan_study(tiny(**QUICK), axis="head")
    plan = plan._replace(cells=[cell for cell in plan.cells if cell.name in (BASELINE, "head=mlp, layer z")])
    layers = open_study("layers", plan, shared_store, "")
    assert run_study(layers, plan, shared_store, [0]) == []
    table = read_results(layers.record(), shared_store).table.set_index("cell")
    assert table["linear_top1"].notna().all()
    assert table.loc[BASELINE, "linear_top1"] != table.loc["head=mlp, layer z", "linear_top1"]


def test_a_study_is_judged_on_validation_until_it_is_asked_for_test(
    study: Tracker, plan: StudyPlan, shared_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "pretrain", kill)
    leave_out_figures(monkeypatch)
    assert part_to_evaluate_on("new", None, shared_store) == "val"
    judged = plan.evaluated_on("val")
    exploring = open_study("explores", judged, shared_store, "simclr ablate")
    assert run_study(exploring, judged, shared_store, [0]) == []
    monkeypatch.setattr(runner, "evaluate_encoder", kill)
    assert run_study(exploring, judged, shared_store, [0]) == []  # nothing is evaluated twice
    results = read_results(exploring.record(), shared_store)
    assert results.document.metrics() == ["val/linear_top1", "val/knn_top1"]
    assert results.table["val/linear_top1"].notna().all()
    assert {len(right) for right in results.correct["val/linear_top1"].values()} == {144}
    text, _ = report(exploring.record(), shared_store, "markdown")
    assert "144 validation images" in text
    assert "linear top-1 on validation" in text
    assert "This study has not used the test images." in text

    assert part_to_evaluate_on("explores", None, shared_store) == "val"
    assert part_to_evaluate_on("explores", "test", shared_store) == "test"
    final = open_study("explores", plan, shared_store, "simclr ablate --on test")  # its runs are judged on test already
    assert final.run_id == exploring.run_id
    assert part_to_evaluate_on("explores", None, shared_store) == "test"
    text, _ = report(final.record(), shared_store, "markdown")
    assert "359 test images" in text
    assert "validation" not in text
    assert re.search(r"test set of this data has been used for \d+ evaluations of \d+ runs", text)


def test_metrics_of_another_protocol_are_measured_again(study: Tracker, plan: StudyPlan, shared_store: Store) -> None:
    before = read_results(study.record(), shared_store).table
    run = children(study)[BASELINE]
    changed = Tracker(shared_store, run.id)
    changed.log({"eval/linear_top1": 0.0})
    changed.flush()
    changed.tag_protocols({"linear_top1": "3-cccccc"})
    assert not read_results(study.record(), shared_store).table.equals(before)
    assert run_study(study, plan, shared_store, [0]) == []
    assert read_results(study.record(), shared_store).table.equals(before)


@pytest.mark.usefixtures("no_work")
def test_data_is_opened_once_for_all_cells(
    study: Tracker, plan: StudyPlan, shared_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[DataConfig] = []
    seeds: list[tuple[int, str]] = []

    def count(config: DataConfig, *arguments: Any) -> Dataset:
        opened.append(config)
        return open_dataset(config, *arguments)

    def skip(study: Record, cell: object, prepared: Prepared, *arguments: object) -> float:
        seeds.append((prepared.config.seed, prepared.config.name))
        return 0.5

    monkeypatch.setattr(expected, "open_dataset", count)
    monkeypatch.setattr(runner, "run_cell", skip)
    assert run_study(study, plan, shared_store, [3, 4]) == []
    assert len(opened) == 1
    assert seeds == [(seed, name) for seed in (3, 4) for name in ("tiny", "no-color_jitter@tiny")]


def test_a_study_ends_where_the_images_are_others(study: Tracker, plan: StudyPlan, shared_store: Store) -> None:
    other = plan._replace(cells=[cell._replace(config=tiny(**QUICK, data={"side": 12})) for cell in plan.cells])
    before = len(shared_store.records())
    with pytest.raises(
        UserError, match=rf"the images on {platform.node()} are not those that the command started with"
    ):
        run_study(study, other, shared_store, [0])
    assert len(shared_store.records()) == before


@pytest.mark.usefixtures("no_work")
def test_a_study_of_the_previous_version_is_resumed(
    previous: Record, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_or_resume = runner.train_or_resume

    def without_diverging(prepared: Prepared, *arguments: Any, **options: Any) -> Record:
        if prepared.config.optim.lr > 1:
            raise BadSettings("training diverged")
        return train_or_resume(prepared, *arguments, **options)

    monkeypatch.setattr(runner, "train_or_resume", without_diverging)
    before = {record.id for record in store.records()}
    plan = previous_plan().evaluated_on(part_to_evaluate_on("old", None, store))
    assert plan == previous_plan()  # earlier versions judged on test
    check_study_name("old", plan, store)
    document = StudyDocument.read(previous)
    study = open_study("old", plan, store, "another command")
    assert study.run_id == previous.id
    assert StudyDocument.read(previous) == document.model_copy(update={"command": "another command"})
    (failure,) = run_study(study, plan, store, [0])
    assert (type(failure), str(failure)) == (BadSettings, "'lr=1e+30', seed 0: training diverged")
    (new,) = [record for record in store.records() if record.id not in before]
    assert (new.kind, new.status, new.tags["cell"]) == ("cell", "FAILED", "lr=1e+30")


# --- a division of the images for each seed ---------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [("train",), ("train", "val", "test")])
def test_only_images_without_splits_of_their_own_are_divided(
    splits: tuple[str, ...], store: Store, tmp_path: Path
) -> None:
    for split in splits:
        for n in range(60):
            folder = tmp_path / "photos" / (split if len(splits) > 1 else "") / ("a" if n % 2 else "b")
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.linear_gradient("L").resize((8, 8)).convert("RGB")
            image.putpixel((0, 0), (4 * n, 40 * len(split), 0))
            image.save(folder / f"{n}.png")
    data = {"dataset": "folder", "side": 8, "dir": str(tmp_path / "photos")}
    config = tiny(data=data, train={"epochs": 1, "batch_size": 16})
    divided = plan_study(config, drop=["flip"], resplit=True)
    if len(splits) > 1:
        with pytest.raises(UserError, match="--resplit has nothing to divide"):
            forecast(divided, store, [0, 1])
        return
    with pytest.raises(UserError, match="use two or more --seeds"):
        forecast(divided, store, [0])
    first, second = (open_dataset(divided.cells[0].of_seed(seed).data, store.folder) for seed in (0, 1))
    assert first.digest == second.digest
    assert not np.array_equal(first.parts["test"], second.parts["test"])
    assert len(list((store.folder / "cache").glob("folder-*"))) == 1
    judged = divided.evaluated_on("val")
    document = StudyDocument.read(open_study("divided", judged, store, "", [0, 1]).record())
    assert document.test_by_seed
    assert not StudyDocument.read(open_study("one", judged, store, "", [0]).record()).test_by_seed
    spread, why = _spread(judged.cells[0], store)
    assert spread is None  # these are not the images that the assumed one is from
    assert "runs on one split of the images" in why


# --- names and plans --------------------------------------------------------------------------------------------------


def test_a_name_belongs_to_one_plan(store: Store, plan: StudyPlan) -> None:
    check_study_name("one", plan, store)
    study = open_study("one", plan, store, "")
    check_study_name("one", plan, store)
    assert open_study("one", plan, store, "").run_id == study.run_id
    others = {
        "cells only in the study: 'no color_jitter'; cells only in this command: 'no flip'": plan_study(
            tiny(**QUICK), drop=["flip"]
        ),
        "data.limit was not set and is 1000 now": plan_study(
            tiny(name="typo", device="cpu", data={"limit": 1000}, train={"epochs": 1, "knn_every": 3}),
            drop=["color_jitter"],
        ),
        "--resplit was not given and now is": plan_study(tiny(**QUICK), drop=["color_jitter"], resplit=True),
        "--equal was not given and is flops now": plan._replace(equal="flops"),
        "cell 'no color_jitter' has other settings": plan._replace(
            cells=[plan.cells[0], plan.cells[1]._replace(layer="z")]
        ),
    }
    for different, other in others.items():
        with pytest.raises(UserError, match=re.escape(f"study 'one' exists with another plan ({different}): ")):
            check_study_name("one", other, store)
        with pytest.raises(UserError, match="choose another --name"):
            open_study("one", other, store, "")


def test_a_study_is_only_continued_in_its_precision(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_precision(precision: str) -> StudyPlan:
        return plan_study(tiny(train={"epochs": 1, "precision": precision}), drop=["flip"])

    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: False)
    study = open_study("moves", in_precision("auto"), store, "")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(devices, "has_fast_bf16", lambda device: True)
        message = "study 'moves' was trained in fp32, and auto stands for bf16 here: add --set train.precision=fp32"
        with pytest.raises(UserError, match=message):
            check_study_name("moves", in_precision("auto"), store)
        assert open_study("moves", in_precision("fp32"), store, "").run_id == study.run_id
    assert open_study("moves", in_precision("auto"), store, "").run_id == study.run_id

    older = in_precision("auto").digest(study.record().tags["data_digest"], "auto")  # as earlier versions wrote it
    study.tag({"plan": older})
    assert open_study("moves", in_precision("auto"), store, "").run_id == study.run_id
    start_run(store, "a", "cell", {}, {"cell": BASELINE, "seed": "0", "precision": "bfloat16"}, parent=study.run_id)
    study.flush()
    with pytest.raises(UserError, match="study 'moves' was trained in bf16, and auto stands for fp32 here"):
        check_study_name("moves", in_precision("auto"), store)


def test_images_that_changed_since_a_study_started_are_named(store: Store, plan: StudyPlan) -> None:
    open_study("one", plan, store, "")
    with pytest.raises(UserError, match=r"the images have changed since study 'one' started \(their digest is 0123"):
        find_study("one", plan, SimpleNamespace(identity="0123abcdef"), store)  # type: ignore[arg-type]


def test_images_may_move_to_another_folder(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    for label in ("x", "y"):
        (folder / label).mkdir(parents=True)
        for n in range(150):
            image = Image.linear_gradient("L").resize((8, 8)).convert("RGB")
            image.putpixel((0, 0), (n, 255 * (label == "x"), 2 * n % 256))
            image.save(folder / label / f"{n}.png")

    def plan_in(place: Path) -> StudyPlan:
        data = {"dataset": "folder", "side": 8, "dir": str(place)}
        plan = plan_study(tiny(data=data, train={"epochs": 1, "batch_size": 64}), drop=["flip"])
        return plan._replace(cells=plan.cells[:1])

    study = open_study("moves", plan_in(folder), store, "")
    assert run_study(study, plan_in(folder), store, [0]) == []
    folder = folder.rename(tmp_path / "b")
    assert open_study("moves", plan_in(folder), store, "").run_id == study.run_id
    Tracker(store, children(study)[BASELINE].id).tag_protocols({"knn_top1": "3-cccccc"})  # so that images are needed
    assert run_study(study, plan_in(folder), store, [0]) == []
    assert times_trained(store) == {1}


# --- failures and kills -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RunFailed("training diverged"), "training diverged"),
        (UserError("not enough memory"), "not enough memory"),
        (RuntimeError("CUDA error: an illegal memory access"), "RuntimeError: CUDA error: an illegal memory access"),
    ],
)
def test_a_cell_that_fails_is_recorded_and_the_others_run(
    error: Exception, text: str, store: Store, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[str] = []

    def fail_baseline(study: Record, cell: Any, *arguments: object) -> None:
        if cell.name == BASELINE:
            raise error
        finished.append(cell.name)
        return 0.5

    monkeypatch.setattr(runner, "run_cell", fail_baseline)
    study, watch = open_study("fails", plan, store, ""), Overall()
    failures = run_study(study, plan, store, [0, 1], watch)
    assert [str(failure) for failure in failures] == [f"'baseline', seed {seed}: {text}" for seed in (0, 1)]
    assert watch.reports == [("run", done, 4, "") for done in range(5)]  # no run is called the best
    assert finished == ["no color_jitter"] * 2
    records = store.records(parent=study.run_id)
    assert {(run.name, run.kind, run.status, run.tags["error"]) for run in records} == {
        (f"tiny-s{seed}", "cell", "FAILED", text) for seed in (0, 1)
    }
    assert {run.params["seed"] for run in records} == {"0", "1"}


@pytest.mark.parametrize("error", [KeyError("a bug"), Interrupted(3)])
def test_a_bug_and_a_request_to_stop_end_the_study(
    error: Exception, store: Store, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(runner, "run_cell", fail)
    study = open_study("ends", plan, store, "")
    with pytest.raises(type(error)) as ended:
        run_study(study, plan, store, [0])
    if isinstance(error, Interrupted):
        assert str(ended.value) == f"stopped after step 3 of 'baseline, seed 0', with 0 of {len(plan.cells)} runs done"
    assert store.records(parent=study.run_id) == []


def test_a_cell_that_another_process_trains_comes_last(
    store: Store, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study("shared", plan, store, "")
    path = claim_file(store, plan.cells[0].of_seed(0).key(), study.record().tags["data_digest"])
    path.parent.mkdir()
    elsewhere = FileLock(path)
    elsewhere.acquire()
    said: list[str] = []

    class Watch(Observer):
        def say(self, text: str) -> None:
            said.append(text)

        def stop(self) -> bool:  # also asked while the study waits
            if said[-1].endswith("waiting"):
                elsewhere.release()
            return False

    monkeypatch.setattr(runner, "run_cell", lambda *arguments: 0.5)
    assert run_study(study, plan, store, [0], Watch()) == []
    assert said == [
        "baseline, seed 0",
        "another process is about to train this config: the other cells come first",
        "no color_jitter, seed 0",
        "baseline, seed 0",
        "another process is about to train this config: waiting",
    ]
    assert store.records(kind="cell") == []  # nothing failed


def test_a_cell_whose_weights_are_needed_and_were_deleted_is_trained_again(store: Store, plan: StudyPlan) -> None:
    plan = plan._replace(cells=plan.cells[:1])
    study = open_study("deleted", plan, store, "")
    assert run_study(study, plan, store, [0]) == []
    (run,) = store.records(kind="pretrain")
    run.artifact("model.safetensors").unlink()
    assert run_study(study, plan, store, [0]) == []
    assert len(store.records(kind="pretrain")) == 1  # its figures are there, so that it needs no weights
    Tracker(store, run.id).tag_protocols({"knn_top1": "3-cccccc"})
    assert run_study(study, plan, store, [0]) == []
    assert len(store.records(kind="pretrain")) == 2
    (figures,) = read_results(study.record(), store).table["knn_top1"]
    assert figures == run.metrics["eval/knn_top1"]


def test_a_study_resumes_after_a_kill_at_the_worst_moments(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_study(tiny(**QUICK, data={"limit": 300}), drop=["flip"])

    def run_until_killed(name: str, patched: Any, attribute: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(patched, attribute, kill)
            with pytest.raises(Killed):
                run_study(open_study(name, plan, store, ""), plan, store, [0])

    def finish(name: str) -> None:
        study = open_study(name, plan, store, "")
        assert run_study(study, plan, store, [0]) == []
        table = read_results(study.record(), store).table
        assert (table["status"] == "FINISHED").all()
        assert table[["knn_top1", "linear_top1"]].notna().all(axis=None)
        assert len(table) == len(plan.cells)

    run_until_killed("killed", StudyDocument, "write")  # before plan.json is written
    run_until_killed("killed", Tracker, "tag_protocols")  # while evaluations are recorded
    run_until_killed("killed", train, "checkpoints")  # after training, before the checkpoints are removed
    finish("killed")
    run_until_killed("copies", Store, "points")  # in the middle of a copy
    finish("copies")
    assert times_trained(store) == {1}


# --- forecasts --------------------------------------------------------------------------------------------------------


def test_the_forecast_knows_which_seeds_are_done(study: Tracker, plan: StudyPlan, shared_store: Store) -> None:
    cells = forecast(plan, shared_store, [0, 1])
    assert [each.cell.name for each in cells] == [BASELINE, "no color_jitter"]
    assert [each.done for each in cells] == [[0]] * 2
    assert all(each.seconds > 0 and each.memory > 0 and each.evaluation > 0 for each in cells)


def test_the_forecast_times_only_what_must_be_trained(
    study: Tracker, plan: StudyPlan, shared_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.studies.forecast.estimate", kill)
    assert [(each.seconds, each.evaluation) for each in forecast(plan, shared_store, [0])] == [(0.0, 0.0)] * 2


def test_cells_that_cannot_run_are_named_before_anything_starts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.studies.forecast.estimate", lambda prepared: SimpleNamespace(seconds=1.0))
    timed: list[tuple[int, int]] = []

    class Watch(Observer):
        def say(self, text: str) -> None:
            assert text == "timing 3 cells: baseline, batch_size=5000, batch_size=6000"
            assert timed == []

        def progress(self, what: str, done: int, total: int) -> None:
            if what == "timing":
                timed.append((done, total))

    plan = plan_study(tiny(**QUICK), vary=["train.batch_size=5000,6000"])
    message = r"2 of 3 cells can't run: 'batch_size=5000': train.batch_size = 5000.*'batch_size=6000': train.batch_size"
    with pytest.raises(UserError, match=message):
        forecast(plan, store, [0], Watch())
    assert timed == [(1, 3), (2, 3), (3, 3)]
    assert store.records() == []


def test_a_cell_that_does_not_fit_into_memory_cannot_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "predict", lambda config, size: {"weights": int(config.model.width * 2**30)})
    monkeypatch.setattr("experiments.studies.forecast.estimate", lambda prepared: SimpleNamespace(seconds=1.0))
    plan = plan_study(tiny(**QUICK, memory="2GiB"), vary=["model.width=0.125,2.0"])
    with pytest.raises(UserError, match=r"^1 of 2 cells can't run: 'width=2\.0': .* needs "):
        forecast(plan, store, [0])


def test_cells_that_cannot_be_evaluated_cannot_run(store: Store, tmp_path: Path) -> None:
    (tmp_path / "unlabelled").mkdir()
    for n in range(40):
        Image.new("RGB", (8, 8), (5 * n, 0, 0)).save(tmp_path / "unlabelled" / f"{n}.png")
    data = {"dataset": "folder", "dir": str(tmp_path / "unlabelled"), "side": 8}
    plan = plan_study(tiny(data=data, train={"epochs": 1, "batch_size": 16}), drop=["flip"])
    with pytest.raises(
        UserError, match=r"^ablate compares accuracies, so it needs labels: sort the images of .*unlabelled "
    ):
        forecast(plan, store, [0])


def test_few_images_make_a_study_whose_knn_figure_names_its_k(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(20):
        for name, red in (("a", 0), ("b", 200)):
            (tmp_path / "few" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (red, 10 * n, 0)).save(tmp_path / "few" / name / f"{n}.png")
    data = {"dataset": "folder", "dir": str(tmp_path / "few"), "side": 8}
    few = plan_study(tiny(data=data, train={"epochs": 1, "batch_size": 16}), drop=["flip"])
    study = open_study("few", few, store, "simclr ablate")
    assert run_study(study, few, store, [0]) == []
    table = read_results(study.record(), store).table
    assert table[["linear_top1", "knn_k36_top1"]].notna().all(axis=None)
    monkeypatch.setenv("COLUMNS", "200")
    assert "kNN (k = 36) top-1" in report(study.record(), store)[0]
    assert run_study(study, few, store, [0]) == []  # nothing is missing
