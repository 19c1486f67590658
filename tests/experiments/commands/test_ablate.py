"""experiments/commands/ablate.py. The study itself is replaced; tests/experiments/studies runs real ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from analysis.power import Spread
from experiments.studies.design import Design
from experiments.studies.execute import StudyOutcome
from experiments.studies.forecast import Forecast
from experiments.studies.plan import StudyPlan
from experiments.tracking.claims import claim_name
from experiments.tracking.store import Store
from experiments.workers.pool import HERE, Pool
from simclr.errors import RunFailed
from simclr.progress import Observer
from simclr.train.loop import Interrupted
from tests.experiments.commands.helpers import Run, assert_one_line


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the forecast (2,000 s for each run) and the study. The list holds what the studies were run with."""
    executed: list[dict[str, Any]] = []

    def forecast(plan: StudyPlan, store: Store, seeds: Sequence[int], observer: Observer) -> list[Forecast]:
        observer.note("the images")
        return [Forecast(cell, 2000.0, 5 * 2**20, [seeds[0]], 100.0) for cell in plan.cells]

    def execute(
        name: str,
        plan: StudyPlan,
        store: Store,
        seeds: Sequence[int],
        command: str,
        observer: Observer,
        form: str,
        pool: Pool,
    ) -> StudyOutcome:
        assert pool is HERE
        observer.note("the images")
        cells = [cell.name for cell in plan.cells]
        runs = [cell.of_seed(seeds[0]).run_name() for cell in plan.cells]
        executed.append(
            {
                "name": name,
                "cells": cells,
                "runs": runs,
                "seeds": list(seeds),
                "on": plan.cells[0].on,
                "design": plan.design,
            }
        )
        return StudyOutcome(store.find("tiny-s0"), f"the tables in {form}", [])

    monkeypatch.setattr("experiments.studies.forecast.forecast", forecast)
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


def test_runs_are_called_after_their_study(run: Run, study: list[dict[str, Any]]) -> None:
    options = ["--config", "tiny.toml", "--drop", "flip", "--set", "loss.temperature=0.4"]
    assert run("ablate", *options).exit_code == run("ablate", *options, "--name", "mine").exit_code == 0
    assert [each["runs"] for each in study] == [
        ["tiny-temperature=0.4-s0", "no-flip-s0@tiny-temperature=0.4"],
        ["mine-s0", "no-flip-s0@mine"],
    ]


def test_a_study_that_runs_already_is_refused_before_its_cells_are_timed(
    run: Run, trained: Store, study: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.studies.forecast.forecast", lambda *_: pytest.fail("timed"))
    with claim_name(trained, "study", "mine"):
        done = run("ablate", "--config", "tiny.toml", "--drop", "flip", "--name", "mine")
    assert_one_line(
        done, 2, "another process is running the study 'mine': wait until it ends, or choose another --name"
    )
    assert study == []


def test_a_dry_run_shows_cells_seeds_time_and_memory_and_runs_nothing(
    run: Run, study: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("ablate", "--config", "tiny.toml", "--drop", "flip", "--only", "crop", "--seeds", 2, "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stderr == "the images\n"
    plan, _, power = done.stdout.partition("\n\n")
    summary, more, header, _, *rows = plan.splitlines()
    assert summary.startswith("study tiny-no-flip-only-crop: 3 cells x 2 seeds (0 to 1), about 1.8 h of")
    assert more == "training and evaluation left, evaluated on validation images"
    assert header.split("  ")[0] == "cell"
    assert [re.split("  +", row) for row in rows] == [
        [name, "1 of 2", "about 35 min", "5 MiB"] for name in ("baseline", "no flip", "only crop")
    ]
    assert " ".join(power.split()).startswith("2 seeds can't show a difference: at least three are needed.")
    done = run("ablate", "--config", "tiny.toml", "--drop", "flip", "--dry-run")
    lines = done.stdout.partition("\n\n")[2].strip().splitlines()
    assert len(lines) <= 3
    shown = " ".join(lines)  # G*Power: 5 pairs find 1.682 standard deviations, 10 find one and 5 find two
    assert "5 seeds detect 1.7 standard deviations of paired differences, which aren't known yet: 0.5" in shown
    assert "One standard deviation takes 10 seeds, two take 5 (p corrected for 1 comparison)." in shown
    assert study == []
    monkeypatch.setattr("experiments.studies.power.ASSUMED_DATA", "digits")
    monkeypatch.setattr("experiments.studies.power.ASSUMED_STEPS", 1)
    options = ["--seeds", 5, "--until", 1, "--max-seeds", 8, "--margin", 0.3, "--dry-run"]
    done = run("ablate", "--config", "tiny.toml", "--drop", "flip", *options)
    assert "2 cells x 5 seeds (0 to 4) or up to 8" in done.stdout
    planned = json.loads(run("ablate", "--config", "tiny.toml", "--drop", "flip", *options, "--json").stdout)
    assert [cell["settings"] for cell in planned["cells"]] == [{}, {"augment.flip.p": 0.0}]
    assert planned["seconds"] == 2 * 7 * 2100
    power = planned["power"]
    assert power["detectable"] == pytest.approx(0.73 * 1.6820, abs=1e-3)  # G*Power: 5 pairs find 1.682 deviations
    assert [each["points"] for each in power["needed"]] == [0.3, 0.5, 1.0, 2.0, 5.0]
    assert power["expected_seeds"] == 5  # (2.776 x 0.73 / 1)^2 = 4.1
    shown = " ".join(done.stdout.split())
    assert "With a probability of 80 %, 5 seeds detect a difference of 1.2 points in linear accuracy." in shown
    assert "That is a guess from other runs, our studies of CIFAR-10" in shown
    assert "--until is expected to need 5 seeds." in shown
    shown = " ".join(
        run("ablate", "--config", "tiny.toml", "--drop", "flip", "--until", 0.1, "--dry-run").stdout.split()
    )
    assert "need 411 seeds, more than --max-seeds 20: the intervals will be wider than requested." in shown


def test_a_spread_of_few_runs_makes_the_detectable_difference_a_range(
    run: Run, study: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.studies.power._spread", lambda *_: (Spread(0.99, 2), "measured"))
    done = run("ablate", "--config", "tiny.toml", "--drop", "flip", "--seeds", 3, "--dry-run")
    shown = " ".join(done.stdout.split())
    # G*Power: 3 pairs find 3.26 deviations, and chi-square with 2 degrees of freedom has 0.0506 and 7.378 in its tails
    assert "3 seeds detect a difference of 3.2 points in linear accuracy (roughly: 1.7 to 20, because" in shown
    assert "seeds needed (80 %, roughly)" in shown
    monkeypatch.setattr("experiments.studies.power._spread", lambda *_: (Spread(50, 2), "measured"))
    done = run("ablate", "--config", "tiny.toml", "--drop", "flip", "--seeds", 3, "--dry-run")
    expected = "3 seeds can't detect even a difference of 100 points with a probability of 80 %."
    assert expected in " ".join(done.stdout.split())


def test_options_for_the_number_of_seeds_are_the_study_s_design(run: Run, study: list[dict[str, Any]]) -> None:
    drop = ["ablate", "--config", "tiny.toml", "--drop", "flip"]
    assert run(*drop, "--set", "seed=3").exit_code == 0
    assert study[0]["seeds"] == [3, 4, 5, 6, 7]
    assert study[0]["design"] == Design()
    assert run(*drop, "--seeds", 3, "--until", 0.5, "--margin", 2).exit_code == 0
    assert study[1]["design"] == Design(margin=2, until=0.5, first=(0, 1, 2), most=20)


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
    monkeypatch.setattr("experiments.commands.terminal.can_ask", lambda: asks)
    done = run("ablate", "--config", "tiny.toml", "--drop", "crop", *options, input=answer)
    assert done.exit_code == code
    assert len(study) == runs
    assert ("Do you want to start?" in done.stderr) == (answer is not None)


def test_cells_that_failed_are_reported_after_the_tables(
    run: Run, study: list[dict[str, Any]], trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = StudyOutcome(
        trained.find("tiny-s0"), "the tables", [RunFailed("'no crop', seed 0: it diverged"), RunFailed("another")]
    )
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
    "its own value": (["--vary", "loss.temperature=0.2"], "is the baseline's own value"),
    "wrong type": (["--vary", "train.epochs=many,few"], "train.epochs = "),
    "no seeds": (["--drop", "flip", "--seeds", "0"], "--seeds '0': expected at least 1\n"),
    "no such images": (["--drop", "flip", "--on", "validation"], "--on 'validation': expected test or val"),
    "too few to add to": (["--drop", "flip", "--seeds", "2", "--until", "1"], "--until needs the spread of 3 seeds"),
    "too few to end at": (
        ["--drop", "flip", "--until", "1", "--max-seeds", "4"],
        "--max-seeds 4 is less than --seeds 5",
    ),
    "no rule to limit": (["--drop", "flip", "--max-seeds", "9"], "--max-seeds limits --until"),
    "twice": (["--only", "flip", "--only", "flip"], "--only flip is given twice"),
    "nothing": ([], "--drop, --only, --axis or --vary"),
    "too large a batch": (["--vary", "train.batch_size=64,9000"], "1 of 3 cells can't run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_one_line_and_exit_code_2(case: str, run: Run) -> None:
    options, message = WRONG[case]
    assert_one_line(run("ablate", "--config", "tiny.toml", *options), 2, message)


def test_a_dry_run_names_the_value_of_the_baseline_and_says_why_there_are_these_cells(
    run: Run, study: list[dict[str, Any]]
) -> None:
    done = run("ablate", "--config", "tiny.toml", "--vary", "loss.temperature=0.1", "--drop", "flip", "--dry-run")
    shown = " ".join(done.stdout.split())
    assert "baseline (temperature=0.2)" in shown
    assert "--vary is crossed with all other cells" in shown


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["loss.temperature=0.1,0.5", "optim.lr=0.002"], True),
        (["loss.temperature=0.1,0.5", "optim.lr=0.001,0.002"], False),
        (["method=supcon,dcl", "optim.lr=0.002"], True),
        (["method=simclr,dcl", "optim.lr=0.002"], False),
    ],
)
def test_a_dry_run_says_that_cells_which_all_differ_in_two_settings_cannot_tell_which_matters(
    run: Run, study: list[dict[str, Any]], settings: list[str], told: bool
) -> None:
    options = [part for setting in settings for part in ("--vary", setting)]
    done = run("ablate", "--config", "tiny.toml", *options, "--set", "optim.lr=0.001", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert ("can't tell which of them matters" in " ".join(done.stdout.split())) is told
