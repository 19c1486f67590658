"""experiments/commands/rename.py."""

from __future__ import annotations

import pytest

from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from tests.experiments.commands.helpers import assert_one_line, invoke


def test_a_run_has_another_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(store.folder))
    run = start_run(store, "one", "pretrain", {})
    run.finish("FINISHED")
    start_run(store, "two", "pretrain", {}).finish("FINISHED")
    study = start_run(store, "study", "study", {})
    start_run(store, "cell", "pretrain", {}, parent=study.run_id).finish("FINISHED")
    done = invoke("rename", "one", "first")
    assert done.stdout == f"one ({run.run_id[:8]}) is now called first\n"
    assert (store.find("first").id, store.find("first").status) == (run.run_id, "FINISHED")
    assert_one_line(invoke("rename", "one", "again"), 2, "'one'")
    assert_one_line(invoke("rename", "first", "two"), 2, "there is already a run called two: choose another name")
    assert_one_line(invoke("rename", "cell", "mine"), 2, "cell belongs to a study or a search")
    assert_one_line(invoke("rename", "study", "mine"), 2, "no run")
    assert_one_line(invoke("rename", "first", ""), 2, "expected a name that is not empty")
