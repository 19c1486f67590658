"""Tests of experiments/tracking/naming.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from experiments.tracking.local import RunName, check_known
from experiments.tracking.naming import all_called
from experiments.tracking.store import ENCODERS, Store
from simclr.errors import UserError
from tests.experiments.tracking.test_store import finished_run


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("shape-s0", ["shapes-s0"]),
        ("no-blur-s1", ["no-blur-s1@colour", "no-blur-s1@shapes"]),
        ("no-color_jitter-s0", ["no-color_jitter,temperature=0.1-s0@cifar10-cpu-limit=2000-epochs=3"]),
        ("nothing", []),
    ],
)
def test_the_nearest_names_are_suggested(given: str, meant: list[str]) -> None:
    names = ["shapes-s0", "no-blur-s1@colour", "no-blur-s1@shapes", "no-blur-s1@shapes"]
    names.append("no-color_jitter,temperature=0.1-s0@cifar10-cpu-limit=2000-epochs=3")
    runs = [RunName(f"{number}{uuid4().hex}", name) for number, name in enumerate(names)]
    with pytest.raises(UserError) as error:
        all_called(given, runs, Path())
    ids = {run.name: run.id[:8] for run in reversed(runs)}  # of two runs with one name, the newest comes first
    assert " or ".join(f"'{name}' ({ids[name]})" for name in meant) in str(error.value)
    assert ("did you mean" in str(error.value)) == bool(meant)


def test_names_are_checked_without_mlflow_as_with_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(store.folder))

    def message(check: Callable[[], object]) -> str | None:
        try:
            check()
        except UserError as error:
            return str(error)
        return None

    run = None
    for kinds in (ENCODERS, ("eval",)):
        for name in ("a", "b", "a1", None, run and run.id[:4], run and run.id[:3]):
            checked = message(lambda name=name, kinds=kinds: check_known(name, kinds))
            assert checked == message(lambda name=name, kinds=kinds: store.find(name, kinds))
        run = run or finished_run(store, "a")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        check_known("b", ENCODERS)  # a server isn't asked
