"""experiments/commands/delete.py."""

from __future__ import annotations

import json
import os
import re

import optuna
import pytest

from experiments.search.saved import STATE
from experiments.tracking import local
from experiments.tracking.deleting import CONFIRMS
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from tests.experiments.commands.helpers import assert_one_line, invoke


@pytest.fixture(autouse=True)
def home(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record with one run and one search, whose trials Optuna keeps."""
    monkeypatch.setenv("SIMCLR_HOME", str(store.folder))
    start_run(store, "one", "pretrain", {}).finish("FINISHED")
    start_run(store, "wide", "search", {}, {"search": "wide"}).finish("FINISHED")
    optuna.create_study(storage=local.address(store.folder / STATE), study_name="wide")


def names_in(store: Store) -> set[str]:
    return {record.name for record in store.records()}


def test_a_run_is_deleted_after_a_confirmation(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_line(invoke("delete", "one"), 2, "is not a terminal, so you can't be asked: add --yes to")
    monkeypatch.setattr("experiments.commands.delete.can_ask", lambda: True)
    refused = invoke("delete", "one", input="n\n")
    assert refused.exit_code == 1
    assert re.search(r"\none +\w{8} +pretrain +0\.0 MB\n.*Delete them permanently\?", refused.stderr)
    assert names_in(store) == {"one", "wide"}
    done = invoke("delete", "one", input="y\n")
    assert done.exit_code == 0
    assert done.stdout.endswith("deleted 1 run (0.0 MB): one\n")  # after the answer, which the runner echoes
    assert names_in(store) == {"wide"}
    assert_one_line(invoke("delete", "one", "--yes"), 2, "no run, study or search has the name 'one'")


def test_a_search_is_deleted_with_its_trials(store: Store) -> None:
    study = start_run(store, "wide-trial-3", "study", {}, {CONFIRMS: "wide"})  # with fresh seeds
    start_run(store, "trial-3-s1", "pretrain", {}, {"cell": "trial 3"}, parent=study.run_id).finish("FINISHED")
    study.finish("FINISHED")
    start_run(store, "wide-trial-4", "study", {}).finish("FINISHED")  # somebody's own
    done = invoke("delete", "wide", "--yes", "--json")
    assert done.exit_code == 0, done.output
    assert {each["name"] for each in json.loads(done.stdout)["runs"]} == {"wide", "wide-trial-3", "trial-3-s1"}
    assert names_in(store) == {"one", "wide-trial-4"}
    assert optuna.get_all_study_names(local.address(store.folder / STATE)) == []


def test_a_record_that_cannot_be_written_is_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    assert_one_line(invoke("delete", "one", "--yes"), 2, "is not writable, so no run can be deleted")
    assert names_in(store) == {"one", "wide"}
