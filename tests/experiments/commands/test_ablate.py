"""experiments/commands/ablate.py. The study itself is replaced; tests/experiments/studies runs real ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from experiments.studies.execute import StudyOutcome
from experiments.studies.plan import StudyPlan
from experiments.studies.run import Forecast
from experiments.tracking.store import Store
from simclr.progress import Observer
from simclr.train.loop import Interrupted
from tests.experiments.commands.helpers import Run, assert_one_line


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the forecast (2,000 s for each run) and the study. The list holds what the studies were run with."""
    executed: list[dict[str, Any]] = []

    def forecast(plan: StudyPlan, store: Store, seeds: Sequence[int], observer: Observer) -> list[Forecast]:
        observer.note("the images")
        return [Forecast(cell, 2000.0, 5 * 2**20, [seeds[0]]) for cell in plan.cells]

    def execute(
        name: str, plan: StudyPlan, store: Store, seeds: Sequence[int], command: str, observer: Observer, form: str
    ) -> StudyOutcome:
        observer.note("the images")
        executed.append(
            {"name": name, "cells": [cell.name for cell in plan.cells], "seeds": list(seeds), "on": plan.cells[0].on}
        )
        return StudyOutcome(store.find("tiny-s0"), f"the tables in {form}", [])

    monkeypatch.setattr("experiments.studies.run.forecast", forecast)
    monkeypatch.setattr("experiments.studies.execute.execute", execute)
    return executed


def test_ablate_runs_the_cells_that_were_asked_for(run: Run, study: list[dict[str, Any]]) -> None:
    vary = ["--vary", "loss.temperature=0.1,0.2", "--set", "seed=4", "--seeds", 2]
    done = run("ablate", "--config", "tiny.toml", "--drop", "color_jitter", *vary)
    assert done.exit_code == 0, done.output
    assert done.stdout == "the tables in terminal\n"
    assert done.stderr.count("the images\n") == 1
    (executed,) = study
    assert executed["name"] == "tiny-no-color_jitter-temperature"
    assert "no color_jitter, temperature=0.1" in executed["cells"]
    assert (executed["seeds"], executed["on"]) == ([4, 5], "val")
    assert run("ablate", "--config", "tiny.toml", "--drop", "flip", "--on", "test").exit_code == 0
    assert study[-1]["on"] == "test"


def test_a_dry_run_shows_cells_seeds_time_and_memory_and_runs_nothing(run: Run, study: list[dict[str, Any]]) -> None:
    done = run("ablate", "--config", "tiny.toml", "--drop", "flip", "--only", "crop", "--seeds", 2, "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stderr == "the images\n"
    summary, more, header, _, *rows = done.stdout.splitlines()
    assert summary.startswith("study tiny-no-flip-only-crop: 3 cells x 2 seeds (0 to 1), about 1.7 h of")
    assert more == "training left, plus the evaluations on validation images"
    assert header.split("  ")[0] == "cell"
    assert [re.split("  +", row) for row in rows] == [
        [name, "1 of 2", "about 33 min", "5 MiB"] for name in ("baseline", "no flip", "only crop")
    ]
    assert study == []
    planned = json.loads(run("ablate", "--config", "tiny.toml", "--drop", "flip", "--dry-run", "--json").stdout)
    assert [cell["settings"] for cell in planned["cells"]] == [{}, {"augment.flip.p": 0.0}]
    assert planned["seconds"] == 8000


@pytest.mark.parametrize(
    ("asks", "options", "answer", "code", "runs"),
    [
        (True, [], "n\n", 1, 0),
        (True, [], "y\n", 0, 1),
        (True, ["--yes"], None, 0, 1),
        (False, [], None, 0, 1),
    ],
    ids=["no", "yes", "--yes", "nobody to ask"],
)
def test_a_study_of_more_than_an_hour_asks_before_it_starts(
    asks: bool,
    options: list[str],
    answer: str | None,
    code: int,
    runs: int,
    run: Run,
    study: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("experiments.commands.ablate.can_ask", lambda: asks)
    done = run("ablate", "--config", "tiny.toml", "--drop", "crop", *options, input=answer)
    assert done.exit_code == code
    assert len(study) == runs
    assert ("Start the study?" in done.stderr) == (answer is not None)


def test_cells_that_failed_are_reported_after_the_tables(
    run: Run, study: list[dict[str, Any]], trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = StudyOutcome(trained.find("tiny-s0"), "the tables", ["'no crop', seed 0: it diverged", "another"])
    monkeypatch.setattr("experiments.studies.execute.execute", lambda *arguments: outcome)
    done = run("ablate", "--config", "tiny.toml", "--drop", "crop")
    assert_one_line(done, 1, "failed: 'no crop', seed 0: it diverged; another")
    assert done.stdout == "the tables\n"


def test_a_stopped_study_says_how_to_resume(
    run: Run, study: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> StudyOutcome:
        raise Interrupted(7)

    monkeypatch.setattr("experiments.studies.execute.execute", stop)
    done = run("ablate", "--config", "tiny.toml", "--drop", "crop")
    assert done.exit_code == 130
    assert done.stderr.endswith("\nstopped after step 7: run the same command to resume\n")


WRONG = {
    "axis": (["--axis", "temprature"], "did you mean 'temperature'"),
    "augmentation": (["--drop", "colour_jitter"], "did you mean 'color_jitter'"),
    "one value": (["--vary", "loss.temperature=0.1"], "two or more"),
    "wrong type": (["--vary", "train.epochs=many,few"], "train.epochs = "),
    "no seeds": (["--drop", "flip", "--seeds", "0"], "--seeds '0': expected at least 1\n"),
    "no such images": (["--drop", "flip", "--on", "validation"], "--on 'validation': expected test or val"),
    "twice": (["--only", "flip", "--only", "flip"], "--only flip is given twice"),
    "nothing": ([], "--drop, --only, --axis or --vary"),
    "too large a batch": (["--vary", "train.batch_size=64,9000"], "1 of 3 cells can't run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_line_and_exit_code_2(case: str, run: Run) -> None:
    options, message = WRONG[case]
    assert_one_line(run("ablate", "--config", "tiny.toml", *options), 2, message)
