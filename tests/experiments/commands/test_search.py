"""experiments/commands/search.py. The search itself is replaced; tests/experiments/search runs real ones."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pytest

from experiments.search.confirm import SearchOutcome
from experiments.search.forecast import SearchForecast
from experiments.studies.execute import StudyOutcome
from experiments.tracking.store import Store, home
from simclr.errors import RunFailed
from simclr.train.loop import Interrupted
from tests.experiments.commands.helpers import Run, assert_one_line


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the steps of a search. The dictionary holds what each was called with."""
    calls: dict[str, Any] = {}

    @contextmanager
    def open_search(name: str, *arguments: object, **options: Any) -> Iterator[str]:
        calls["open"] = {"name": name, **options}
        yield "the search"

    def run_trials(search: str, number: int, **options: Any) -> None:
        calls["trials"] = {"number": number, **options}

    def confirm(search: str, start: float, **options: Any) -> SearchOutcome:
        calls["confirm"] = {"start": start, **options}
        failures = calls.get("failures", [])
        tables = '{"rows": []}' if options["form"] == "json" else "the tables"
        study = StudyOutcome(Store(home()).find("tiny-s0"), tables, failures)
        selection = pd.DataFrame({"cell": ["baseline"], "in the search": [0.7125], "fresh seeds": [0.705], "n": [3]})
        best = {"trial": 3, "accuracy": 71.25}
        return SearchOutcome("5 trials", best, "report: here", study, selection, ["how to read it"], ["simclr x"])

    def forecast(name: str, *arguments: object, **options: Any) -> SearchForecast:
        calls["forecast"] = options
        return SearchForecast(
            ["optim.lr"], options["trials"], 2, 60.0, (1 + options["top"]) * options["seeds"], 300.0, 5400.0
        )

    monkeypatch.setattr("experiments.search.forecast.forecast", forecast)
    monkeypatch.setattr("experiments.search.trials.open_search", open_search)
    monkeypatch.setattr("experiments.search.trials.reference_accuracy", lambda *_: 0.5)
    monkeypatch.setattr("experiments.search.trials.run_trials", run_trials)
    monkeypatch.setattr("experiments.search.confirm.confirm", confirm)
    return calls


@pytest.mark.parametrize(
    ("options", "top"),
    [([], 1), (["--proxy", "data.limit=500"], 3), (["--proxy", "data.limit=500", "--top", "2"], 2)],
    ids=["default", "proxy", "top"],
)
def test_search_runs_trials_and_confirms_the_best(
    options: list[str], top: int, run: Run, searched: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["simclr", "search", "--config", "tiny.toml"])
    done = run("search", "--config", "tiny.toml", "--trials", 5, "--max-hours", 2, "--seeds", 4, *options)
    assert done.exit_code == 0, done.output
    assert searched["open"]["name"] == "search-tiny"
    assert searched["open"]["proxy"] == [option for option in options if "=" in option]
    assert (searched["trials"]["number"], searched["trials"]["hours"]) == (5, 2.0)
    confirmed = searched["confirm"]
    assert (confirmed["start"], confirmed["top"], confirmed["seeds"]) == (0.5, top, 4)
    assert confirmed["command"] == "simclr search --config tiny.toml"
    assert confirmed["on"] is None
    assert done.stdout.startswith("5 trials\n\n")
    table, last = done.stdout.split("how to read it\n\n")
    assert "validation" in table
    assert re.search(r"start \(your config\) +71.2 +70.5 +3\n", table)
    assert last.splitlines() == ["report: here", "report of the fresh seeds: simclr report tiny-s0", "next: simclr x"]


def test_a_search_is_printed_as_json_and_its_failed_runs_end_it(run: Run, searched: dict[str, Any]) -> None:
    searched["failures"] = [RunFailed("trial 3, seed 1: it diverged")]
    done = run("search", "--config", "tiny.toml", "--json")
    found = json.loads(done.stdout)
    assert found["best"] == {"trial": 3, "accuracy": 71.25}
    assert found["selection"] == [{"cell": "baseline", "in the search": 71.25, "fresh seeds": 70.5, "n": 3}]
    assert (found["study"], found["failures"]) == ({"rows": []}, ["trial 3, seed 1: it diverged"])
    assert_one_line(done, 1, "trial 3, seed 1: it diverged")


def test_a_stopped_search_says_how_to_resume(
    run: Run, searched: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise Interrupted(7)

    monkeypatch.setattr("experiments.search.trials.run_trials", stop)
    done = run("search", "--config", "tiny.toml")
    assert done.exit_code == 130
    assert done.stderr.endswith("\nstopped after step 7: run the same command to resume\n")
    assert "confirm" not in searched


def test_a_dry_run_predicts_the_time_and_starts_nothing(run: Run, searched: dict[str, Any]) -> None:
    options = "--config", "tiny.toml", "--trials", 9, "--proxy", "data.limit=500", "--dry-run"
    shown = " ".join(run("search", *options).stdout.split())
    assert shown.startswith(
        "search-tiny: your config and 9 trials, 2 of them done, about 60 s each; then at most 12 runs "
    )
    assert "about 90 min in all" in shown
    assert "The search varies optim.lr." in shown
    assert json.loads(run("search", *options, "--json").stdout)["seconds"] == 5400
    assert "open" not in searched


def test_a_long_search_is_confirmed(run: Run, searched: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.commands.terminal.can_ask", lambda: True)
    assert run("search", "--config", "tiny.toml", input="n\n").exit_code == 1
    assert "open" not in searched
    assert run("search", "--config", "tiny.toml", "--yes").exit_code == 0
    assert "open" in searched


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pruner", "medium"], "unknown pruner 'medium': did you mean 'median'"),
        (["--objectives", "speed"], "unknown objectives 'speed'"),
        (["--seeds", "0", "--on", "test"], "--on is for runs with fresh seeds, and --seeds 0 trains none"),
        (["--space", "nowhere.toml"], "nowhere.toml"),
        (["--max-hours", "nan"], "--max-hours 'nan': expected a number"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(options: list[str], message: str, run: Run) -> None:
    assert_one_line(run("search", "--config", "tiny.toml", *options), 2, message)
