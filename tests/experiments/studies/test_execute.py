"""A study from beginning to end. The cells do no work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.runs.evaluate import predictions
from experiments.runs.prepare import Prepared
from experiments.studies import execute as workflow
from experiments.studies import run as runner
from experiments.studies.cell import BASELINE, Cell
from experiments.studies.design import Design
from experiments.studies.execute import StudyOutcome, execute
from experiments.studies.notes import chosen
from experiments.studies.opening import check_study_name, protocols_of, with_recorded_choices
from experiments.studies.plan import plan_study
from experiments.studies.results import StudyDocument, read_results
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, start_run
from simclr.errors import BadSettings, RunFailed, UserError
from simclr.progress import Observer
from simclr.train.loop import Interrupted
from tests.experiments.studies.helpers import leave_out_figures, like_the_baseline, previous_plan, write_run
from tests.helpers import tiny

COMMAND = "simclr ablate --vary optim.lr=1e30,0.01"


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_figures(monkeypatch)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the work on a cell by nothing. The list holds the names of the cells."""
    cells: list[str] = []

    def skip(study: Record, cell: Any, *arguments: object) -> float:
        cells.append(cell.name)
        return 0.5

    monkeypatch.setattr(runner, "run_cell", skip)
    return cells


def run_previous(store: Store, observer: Observer | None = None) -> StudyOutcome:
    return execute("old", previous_plan(), store, [0], COMMAND, observer or Observer())


def test_a_study_is_run_closed_and_reported(previous: Record, store: Store, ran: list[str]) -> None:
    said: list[str] = []

    class Watch(Observer):
        def say(self, text: str) -> None:
            said.append(text)

    outcome = run_previous(store, Watch())
    assert ran == [BASELINE, "lr=1e+30", "lr=0.01"]
    assert said == [f"{name}, seed 0" for name in ran]
    assert (outcome.study.id, outcome.study.status, outcome.failures) == (previous.id, "FINISHED", [])
    assert "72.14" in outcome.report  # the baseline's accuracy
    assert COMMAND in outcome.study.artifact("linear_top1.md").read_text()
    outcome.check()


def test_a_failed_cell_is_in_the_outcome_and_the_record(
    previous: Record, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(study: Record, cell: Any, *arguments: object) -> float:
        if cell.name == "lr=1e+30":
            raise RunFailed("training diverged")
        return 0.5

    monkeypatch.setattr(runner, "run_cell", fail)
    statuses: list[str] = []
    finish = Tracker.finish

    def watched(self: Tracker, status: str) -> None:
        statuses.extend([status] * (self.run_id == previous.id))
        finish(self, status)

    monkeypatch.setattr(Tracker, "finish", watched)
    outcome = run_previous(store)
    assert statuses == ["FAILED"]  # it never looks finished
    assert [str(failure) for failure in outcome.failures] == ["'lr=1e+30', seed 0: training diverged"]
    assert "72.14" in outcome.report
    assert outcome.study.status == "FAILED"
    assert outcome.study.tags["error"] == "RunFailed: 'lr=1e+30', seed 0: training diverged"
    with pytest.raises(RunFailed, match=r"^'lr=1e\+30', seed 0: training diverged$"):
        outcome.check()


def test_a_study_whose_cells_all_fail_has_no_report(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RunFailed("the disk is full")

    monkeypatch.setattr(runner, "run_cell", fail)
    outcome = run_previous(store)
    assert (outcome.report, outcome.study.status, len(outcome.failures)) == ("", "FAILED", 3)


def test_an_interrupted_study_is_marked_and_resumed(
    previous: Record, store: Store, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise Interrupted(3)

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "run_study", stop)
        with pytest.raises(Interrupted):
            run_previous(store)
    assert store.get(previous.id).status == "KILLED"
    assert run_previous(store).study.status == "FINISHED"


def test_seeds_follow_until_the_intervals_are_narrow_enough_and_the_page_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cell is trained once, also if the process dies while seeds are being added."""
    trained: list[tuple[str, int]] = []
    noise = [0.0, 0.004, -0.004, 0.008, -0.008, 0.0]  # of the cell; 0.4 points of spread in the first three seeds

    def run(study: Record, cell: Any, prepared: Any, store: Store, observer: Observer) -> float:
        seed = prepared.config.seed
        if (cell.name, seed) in trained:
            return 0.5
        if len(trained) == 8:
            trained.append(("killed", seed))
            raise KeyboardInterrupt
        trained.append((cell.name, seed))
        accuracy = 0.6 + 0.05 * seed + (noise[seed] if cell.name != BASELINE else 0.0)
        found = like_the_baseline(cell.name, seed, accuracy)
        write_run(store, found, found["tags"], study.id)
        return accuracy

    monkeypatch.setattr(runner, "run_cell", run)
    design = Design(until=0.8, first=(0, 1, 2), most=8)
    plan = plan_study(previous_plan().cells[0].config, vary=["optim.lr=0.01,0.1"])._replace(design=design)
    with pytest.raises(KeyboardInterrupt):
        execute("added", plan, store, design.first, COMMAND)
    outcome = execute("added", plan, store, design.first, COMMAND)
    wanted = 5  # (4.303 x 0.4 / 0.8)^2 = 4.6
    cells = [(name, seed) for seed in range(wanted) for name in (BASELINE, "lr=0.01")]
    assert trained == [*cells[:8], ("killed", 4), *cells[8:]]
    text = " ".join(outcome.report.split())
    assert "By the spread of the first 3, 5 are needed for the 95 % intervals" in text
    assert "The widest interval reaches 0.77, as asked for." in text
    page = outcome.study.artifact("report.html").read_text()
    assert "seeds added for intervals of ±0.8 points (Stein&#39;s rule)" in page

    fixed = plan._replace(design=Design())
    with pytest.raises(
        UserError, match=r"'added' decide how many follow: add --seeds 3 --until 0\.8, or choose another"
    ):
        execute("added", fixed, store, range(8), COMMAND)


def test_a_study_that_is_given_more_seeds_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []

    def run(study: Record, cell: Any, prepared: Any, store: Store, observer: Observer) -> float:
        seed = prepared.config.seed
        if (cell.name, seed) not in trained:
            trained.append((cell.name, seed))
            found = like_the_baseline(cell.name, seed, 0.6 + 0.05 * seed)
            write_run(store, found, found["tags"], study.id)
        return 0.5

    monkeypatch.setattr(runner, "run_cell", run)
    plan = plan_study(previous_plan().cells[0].config, vary=["optim.lr=0.01,0.1"])
    texts = [execute("grows", plan, store, range(seeds), COMMAND).report for seeds in (2, 3, 3, 4, 5)]
    told = [" ".join(text.split()).partition("This study had ")[2].partition(":")[0] for text in texts]
    assert told == ["", "", "", "3 seeds before it had 4", "3, 4 seeds before it had 5"]


@pytest.mark.usefixtures("previous", "ran")
def test_two_processes_cannot_run_a_study_at_the_same_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[str] = []

    def run_again(*arguments: object) -> list[str]:
        with pytest.raises(UserError, match="another process is running the study 'old'") as caught:
            run_previous(store)
        inner.append(str(caught.value))
        return []

    monkeypatch.setattr(workflow, "run_study", run_again)
    run_previous(store)
    assert len(inner) == 1


# --- learning rates, and a division of the images for each seed -------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, float]]:
    """Replaces a cell's work by a run that is as accurate as its learning rate says. The list holds what was run."""
    accuracies = {0.001: 0.5, 0.003: 0.5, 0.01: 0.25, 0.02: 0.75}
    ran: list[tuple[str, int, float]] = []

    def work(study: Record, cell: Cell, prepared: Prepared, store: Store, observer: Observer) -> float:
        config, accuracy = prepared.config, accuracies.get(prepared.config.optim.lr)
        ran.append((cell.name, config.seed, config.optim.lr))
        if accuracy is None:
            raise BadSettings("training diverged")
        tags = {"cell": cell.name, "seed": str(config.seed), "data_digest": prepared.data.identity}
        tracker = start_run(store, config.run_name(), "pretrain", config.flat(), tags, parent=study.id)
        for file in ("config.toml", "environment.json"):
            tracker.artifact(file, lambda path: path.touch())
        labels = prepared.data.labels[prepared.data.parts["val"]]
        right = np.where(np.arange(len(labels)) < accuracy * len(labels), labels, -1)
        for metric, protocol in protocols_of(cell, prepared.data, prepared.device).items():
            name = f"{metric.replace('/', '-')}-predictions.npz"
            tracker.artifact(name, lambda path: np.savez(path, predicted=right, labels=labels))
            tracker.log({f"eval/{metric}": accuracy})
            tracker.tag_protocols({metric: protocol})
        tracker.finish("FINISHED")
        return accuracy

    monkeypatch.setattr(runner, "run_cell", work)
    return ran


def test_each_cell_is_trained_with_the_rate_that_is_best_for_it_on_validation(
    store: Store, tmp_path: Path, trained: list[tuple[str, int, float]]
) -> None:
    axis = tmp_path / "mine.toml"
    axis.write_text('[mine]\nrates = [0.3, 1]\ncells = [{set = {"optim.weight_decay" = 0.5, "optim.lr" = 0.02}}]')
    plan = plan_study(tiny(optim={"lr": 0.01}), axis=str(axis)).evaluated_on("test")
    (other,) = plan.cells[1:]
    assert (plan.cells[0].rates, other.rates) == ((0.003, 0.01), (0.006, 0.02))
    outcome = execute("tuned", plan, store, [0], "simclr ablate")
    outcome.check()  # 0.006 diverges, which is no failure of this study
    grid = [(f"{cell.name}, lr={rate:g}", 1000, rate) for cell in plan.cells for rate in cell.rates]
    assert trained == [*grid, (BASELINE, 0, 0.003), (other.name, 0, 0.02)]
    rates = next(record for record in store.records(kind="study") if record.name == "tuned-rates")
    assert StudyDocument.read(rates).on == "val"
    text = outcome.study.artifact("linear_top1.md").read_text()
    assert (
        "were tuned in the same way for all cells, including the baseline: each cell uses the best of 2 on validation"
        in text
    )
    assert f"baseline 0.003 of 0.003, 0.01; {other.name} 0.02 of 0.006, 0.02." in text
    assert f"The lowest or highest rate that was tried is the best for baseline, {other.name}, so" in text
    document = StudyDocument.read(outcome.study)
    around = [each.model_copy(update={"rates": (0.001, each.chosen["optim.lr"], 1.0)}) for each in document.cells]
    assert "lowest or highest" not in " ".join(chosen(document.model_copy(update={"cells": around})))

    trained.clear()
    execute("tuned", plan, store, [1], "simclr ablate").check()  # what was chosen before is kept
    assert trained == [(BASELINE, 1, 0.003), (other.name, 1, 0.02)]


def test_each_seed_divides_the_images_and_its_cells_share_that(
    store: Store, trained: list[tuple[str, int, float]]
) -> None:
    config = tiny(optim={"lr": 0.02})
    plan = plan_study(config, drop=["flip"], resplit=True).evaluated_on("val")
    execute("divided", plan, store, [0, 1], "simclr ablate --resplit").check()
    outcome = execute("divided", plan, store, [1], "simclr ablate --resplit")
    text = " ".join(outcome.report.split())
    assert "Each seed has its own split of the images" in text
    assert "This study has not used the test images." in text  # they come with a test set, which all seeds share
    results = read_results(outcome.study, store)
    assert results.table["val/linear_top1"].tolist() == [0.75] * 4
    assert {(seed, run.params["data.split_seed"]) for (_, seed), run in results.runs.items()} == {(0, "0"), (1, "1")}
    truth = {job: tuple(predictions(run, "val/linear_top1")[1]) for job, run in results.runs.items()}
    assert truth[BASELINE, 0] == truth["no flip", 0] != truth[BASELINE, 1] == truth["no flip", 1]
    assert len(list((store.folder / "cache").glob("digits-*"))) == 1  # nothing was decoded twice
    plain = plan_study(config, drop=["flip"]).evaluated_on("val")
    assert plain.name != plan.name
    with pytest.raises(UserError, match="study 'divided' exists with another plan"):
        check_study_name("divided", plain, store)


def test_epochs_of_equal_cost_are_kept_before_rates_are_tried_with_them_and_a_rate_is_not_blamed_for_a_full_disk(
    store: Store, tmp_path: Path, trained: list[tuple[str, int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    axis = tmp_path / "mine.toml"
    axis.write_text('[mine]\nrates = [0.3, 1]\ncells = [{set = {"optim.weight_decay" = 0.5}}]')
    asked = plan_study(tiny(optim={"lr": 0.01}, train={"epochs": 20}), axis=str(axis), equal="time")
    measured = asked.with_cells([cell.with_chosen({"train.epochs": 20 + n}, 1.0) for n, cell in enumerate(asked.cells)])
    work, broken = runner.run_cell, [RunFailed("the disk is full"), KeyboardInterrupt()]

    def break_once(study: Record, cell: Cell, *arguments: Any) -> float:
        if broken and cell.name == "baseline, lr=0.01":
            raise broken.pop(0)
        return work(study, cell, *arguments)

    monkeypatch.setattr(runner, "run_cell", break_once)
    with pytest.raises(
        RunFailed, match=r"because a run failed for another reason: 'baseline, lr=0\.01', seed 1000: the"
    ):
        execute("equal", measured, store, [0], "simclr ablate")
    with pytest.raises(KeyboardInterrupt):
        execute("equal", measured, store, [0], "simclr ablate")
    resumed = with_recorded_choices("equal", asked, store)
    assert resumed.cells == measured.cells
    execute("equal", resumed, store, [0], "simclr ablate").check()
    assert [name for name, seed, _ in trained if seed == 0] == [cell.name for cell in asked.cells]


def test_a_cell_of_which_no_rate_works_ends_the_study(
    store: Store, tmp_path: Path, trained: list[tuple[str, int, float]]
) -> None:
    axis = tmp_path / "mine.toml"
    axis.write_text('[mine]\nrates = [2, 3]\ncells = [{set = {"optim.weight_decay" = 0.5, "optim.lr" = 0.01}}]')
    with pytest.raises(RunFailed, match="no learning rate of 'baseline' ran to the end: see `simclr report bad-rates`"):
        execute("bad", plan_study(tiny(optim={"lr": 1.0}), axis=str(axis)), store, [0], "simclr ablate")
    axis.write_text("[mine]\nrates = [2, 3]\ncells = [{set = {'optim.lr' = 0.5}}]")
    with pytest.raises(UserError, match=r"some cells differ in optim\.lr alone, which the axis' rates choose"):
        plan_study(tiny(), axis=str(axis))
