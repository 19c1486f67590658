"""What follows the trials of a search: its record, the study with fresh seeds, and the selection."""

from __future__ import annotations

import json
from math import isnan

import pandas as pd
import pytest

from analysis.trials import pictures
from experiments.configs.resolve import resolve
from experiments.search import confirm as confirming
from experiments.search.confirm import confirm, confirmation_plan, record_trials, selection_notes, summary
from experiments.search.saved import confirmation_of
from experiments.search.space import Parameter
from experiments.search.trial_table import ranked
from experiments.search.trials import open_search, reference_accuracy, run_trials
from experiments.studies.execute import StudyOutcome
from experiments.studies.results import StudyDocument
from experiments.tracking.store import Store
from simclr.config import Config
from simclr.errors import RunFailed
from simclr.progress import SILENT, Observer
from tests.experiments.studies.helpers import leave_out_figures
from tests.helpers import tiny

RATE = Parameter(setting="optim.lr", low=1e-4, high=1e-2, log=True)
SPACE = [RATE, Parameter(setting="train.batch_size", choices=(128, 256))]
BRIEF = tiny(data={"limit": 300}, train={"epochs": 1})


class Messages(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, text: str) -> None:
        self.text += f"{text}\n"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_figures(monkeypatch)
    monkeypatch.setattr("experiments.search.report.pictures", lambda *_, **__: {})


def test_the_best_trial_and_the_start_are_trained_with_fresh_seeds(store: Store, trained: list[Config]) -> None:
    said = Messages()
    with open_search("s", BRIEF, [RATE], store) as search:
        start = reference_accuracy(search)
        run_trials(search, 2)
        found = confirm(search, start, top=1, seeds=2, command="simclr search --name s", observer=said)
    table = pd.read_csv(search.tracker.record().artifact("selection.csv"))
    assert list(table["cell"]) == ["baseline", "trial 1"]
    assert list(table["in the search"]) == [start, search.study.trials[1].values[0]]
    assert table["fresh seeds"].between(0.05, 1).all()
    assert list(table["n"]) == [2, 2]
    study = store.find_reported("s-trial-1")
    plan = json.loads(study.artifact("plan.json").read_text())
    assert plan["command"] == "simclr search --name s"
    assert {record.tags["seed"] for record in store.records(parent=study.id)} == {"1", "2"}
    assert "evaluated on validation images" in said.text
    assert plan["on"] == "val"
    assert confirmation_of("s", store) == study
    assert found.summary.startswith("2 trials: 2 completed")
    assert found.best["accuracy"] == 100 * max(start, search.study.trials[1].values[0])
    assert found.selection is not None
    assert list(found.selection["n"]) == [2, 2]
    gain = table["fresh seeds"].diff().iloc[1]
    assert found.selection["gain"].iloc[1] == pytest.approx(gain)
    assert isnan(found.selection["gain_low"].iloc[1])  # two seeds
    assert found.study is not None
    assert "linear top-1 on validation" in found.study.report
    assert "Fewer than three fresh seeds can't tell this from chance" in found.summary
    assert "trial 0 is your config" not in found.summary  # all of it was in the space
    page = search.tracker.record().artifact("report.html").read_text()
    beaten = max(trial.values[0] for trial in search.study.trials) > start
    assert [each.endswith("best.toml --seed 3") for each in found.next] == [True] * beaten  # a seed that is new
    assert "Trained again with two seeds that took no part in the choice, trial 1 is" in page
    with open_search("s", BRIEF, [RATE], store) as search:  # the final result, in the same command
        found = confirm(search, start, top=1, seeds=1, command="", on="test")
        assert found.selection is not None
        assert found.selection["test"].between(0.05, 1).all()
        on_test = found.summary.partition("On test images: ")[2]
        assert on_test.startswith("One seed can't tell any difference in linear accuracy from luck.")
        confirm(search, start, top=1, seeds=1, command="")  # as a study of an earlier version
        assert StudyDocument.read(store.find_reported("s-trial-1")).on == "test"


@pytest.mark.parametrize("report", ["", "the tables"], ids=["all failed", "some failed"])
def test_a_failed_study_is_in_what_a_search_found(
    report: str, store: Store, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_search("s", BRIEF, [RATE], store) as search:
        run_trials(search, 2)
        study = StudyOutcome(search.tracker.record(), report, [RunFailed("out of memory"), RunFailed("no space")])
        monkeypatch.setattr(confirming, "execute", lambda *_: study)
        found = confirm(search, 0.5, top=1, seeds=2, command="")
    assert found.study == study
    assert (found.selection is not None) == bool(report)


def test_without_seeds_a_search_is_only_reported(
    store: Store, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirming, "execute", lambda *_: pytest.fail("no study was asked for"))
    with open_search("s", BRIEF, [RATE], store) as search:
        run_trials(search, 1)
        found = confirm(search, 0.5, top=1, seeds=0, command="")
    assert found.summary.startswith("1 trial: 1 completed")
    assert found.study is None
    best = search.tracker.record().artifact("best.toml")
    assert found.next == [f"simclr pretrain --config {best} --seed 1"]
    assert found.remark == "best.toml keeps data.limit = 300. To train on all images, add --set data.limit=none."
    with open_search("s", BRIEF, [RATE], store) as search:
        better = confirm(search, 1.0, top=1, seeds=0, command="")
    assert "No trial beat your config (100.0 %" in better.summary
    assert (better.next, better.remark) == ([], "")


def test_the_trials_their_pictures_and_the_best_config_are_kept(
    store: Store, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.search.report.pictures", pictures)
    monkeypatch.setattr("analysis.trials.FEWEST_TRIALS", 4)
    with_condition = [*SPACE, Parameter(setting="optim.weight_decay", low=0.0, high=1e-3, when={"optim.name": "adamw"})]
    with open_search("s", BRIEF, with_condition, store, objectives="accuracy,time") as search:
        run_trials(search, 4)
        record_trials(search, 0.5)
        text = summary(search)
    assert "4 trials: 4 completed, 0 rejected, 0 pruned, 0 failed" in text
    record = search.tracker.record()
    assert "The best of 4 trials" in record.artifact("report.html").read_text()
    table = pd.read_csv(record.artifact("trials.csv"))
    best = ranked(search.study)[0]
    assert list(table["trial"]) == [0, 1, 2, 3]
    assert [name for name in table if name.startswith("optim.weight_decay")] == ["optim.weight_decay"]
    told = next(line for line in text.splitlines() if line.startswith(f"Settings of trial {best.number}: "))
    settings = [setting.strip() for setting in told.partition(": ")[2].removesuffix(".").split(", ")]
    assert resolve(settings=settings).optim.lr == pytest.approx(best.params["optim.lr"], rel=0.01)
    page = record.artifact("report.html").read_text()
    assert f"On {len(search.baseline.data.parts['val']):,} validation images, a single accuracy varies" in page
    assert "and in best.toml" in page
    assert table["accuracy"].max() == best.values[0]  # so all texts round the same number
    raw = pd.read_csv(record.artifact("trials.csv"), dtype=str)
    assert raw["accuracy"].str.fullmatch(r"0\.\d{1,6}|1\.0").all()  # without the noise of 32-bit numbers
    for name in ("history", "importance", "slice", "contour", "parallel-coordinates", "pareto-front"):
        assert record.artifact(f"{name}.png").stat().st_size > 5000
        assert "<svg" in record.artifact(f"{name}.svg").read_text()
    config = resolve(config=record.artifact("best.toml"))
    assert (config.name, config.optim.lr) == ("s-best", best.params["optim.lr"])


def test_the_full_size_is_confirmed_after_a_search_with_a_proxy(store: Store, trained: list[Config]) -> None:
    full = tiny(train={"epochs": 2})
    with open_search("s", full, SPACE, store, proxy=["train.epochs=1"]) as search:
        run_trials(search, 3)
        plan = confirmation_plan(search, 3)
    assert [config.train.epochs for config in trained] == [1, 1, 1]
    assert [cell.config.train.epochs for cell in plan.cells] == [2, 2, 2]
    assert {cell.name for cell in plan.cells} == {"baseline", "trial 1", "trial 2"}  # trial 0 is the baseline
    assert len(confirmation_plan(search, 1).cells) == 2


def test_a_search_in_which_only_the_start_was_trained_has_nothing_to_confirm(
    store: Store, trained: list[Config]
) -> None:
    with open_search("s", BRIEF, SPACE, store) as search:
        run_trials(search, 1)
    with pytest.raises(RunFailed, match="no trial but the starting config ran to the end"):
        confirmation_plan(search, 1)


@pytest.mark.parametrize("seeds", [0, 2])
def test_a_search_whose_trials_were_all_rejected_has_failed(seeds: int, store: Store, trained: list[Config]) -> None:
    impossible = [Parameter(setting="model.backbone", choices=("alexnet", "vgg11"))]  # for larger images
    with open_search("s", BRIEF, impossible, store) as search:
        run_trials(search, 2)
        with pytest.raises(RunFailed, match="no trial ran to the end"):
            confirm(search, 0.5, top=1, seeds=seeds, command="", observer=SILENT)


def test_notes_explain_selection_and_the_ranking_of_a_proxy(store: Store) -> None:
    table = pd.DataFrame(
        {
            "cell": ["baseline", "trial 4", "trial 2", "trial 7"],
            "in the search": [0.5, 0.6, 0.58, 0.55],
            "fresh seeds": [0.52, 0.55, 0.57, 0.5],
            "n": [3, 3, 3, 2],
        }
    )
    with open_search("full", BRIEF, SPACE, store) as search:
        assert "Fresh seeds are free of this luck" in selection_notes(search, table)[0]
    with open_search("proxy", BRIEF, SPACE, store, proxy=["data.limit=256"]) as search:
        assert selection_notes(search, table)[1].endswith("over 3 trials is 0.50.")
        assert all(note[0].isupper() and note.endswith(".") for note in selection_notes(search, table))
        assert "needs --top 3" in selection_notes(search, table[:2])[1]
