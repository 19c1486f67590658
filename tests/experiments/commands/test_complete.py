"""experiments/commands/complete.py, and what a shell gets from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from experiments.commands.complete import NAMES
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr.config import Config
from simclr.evaluate.protocol import Protocol
from simclr.settings import setting_names
from tests.helpers import ROOT


def test_the_settings_that_can_be_completed_are_all_settings() -> None:
    assert NAMES["config"] == setting_names(Config), "write the list in experiments/settings.toml anew"
    assert NAMES["protocol"] == setting_names(Protocol), "write the list in experiments/settings.toml anew"


def environment(typed: str, home: Path) -> dict[str, str]:
    """What bash sets when a word of a command is completed."""
    words = f"simclr {typed}"
    count = len(words.split(" ")) - 1
    return {
        "_SIMCLR_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(count),
        "SIMCLR_HOME": str(home),
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record with an encoder, a study and a search."""
    store = Store(tmp_path_factory.mktemp("home"))
    for name, kind in (("shapes-s0", "pretrain"), ("shapes-s1", "pretrain"), ("shapes-no-crop", "study")):
        start_run(store, name, kind, {}).finish("FINISHED")
    start_run(store, "search-shapes", "search", {}).finish("FINISHED")
    return store.folder


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("pre", ["pretrain", "presets"]),
        ("pretrain --batch", ["--batch-size"]),
        ("pretrain --preset sh", ["shapes"]),
        ("presets week", ["weekend"]),
        ("pretrain --drop col", ["color_jitter"]),
        ("pretrain --set loss.t", ["loss.temperature="]),
        ("ablate --axis temp", ["temperature"]),
        ("ablate --vary model.wid", ["model.width="]),
        ("eval --set knn.", ["knn.k=", "knn.temperature="]),
        ("eval sha", ["shapes-s1", "shapes-s0"]),
        ("compare shapes-s0 shapes-s", ["shapes-s1", "shapes-s0"]),
        ("report shapes-no", ["shapes-no-crop"]),
        ("runs --study s", ["search-shapes", "shapes-no-crop"]),
        ("runs --sort l", ["loss", "linear"]),
        ("report shapes-no-crop --format l", ["latex"]),
    ],
)
def test_a_shell_completes(typed: str, completed: list[str], home: Path) -> None:
    done = CliRunner().invoke(cli.app, [], prog_name="simclr", env=environment(typed, home))
    assert done.stdout.split() == completed


@pytest.mark.parametrize("damaged", [None, b"", b"not a database"])
def test_where_no_record_can_be_read_no_run_is_completed(damaged: bytes | None, tmp_path: Path) -> None:
    if damaged is not None:
        (tmp_path / "mlflow.db").write_bytes(damaged)
    done = CliRunner().invoke(cli.app, [], prog_name="simclr", env=environment("eval sha", tmp_path))
    assert done.output.strip() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"] * (damaged is not None)


@pytest.mark.parametrize("typed", ["eval sha", "pretrain --set loss.t", "ablate --axis temp"])
def test_completion_imports_no_heavy_library(typed: str, home: Path) -> None:
    code = f"""
import sys, cli
try:
    cli.app([], prog_name="simclr")
finally:
    print([name for name in {("torch", "mlflow", "optuna", "pandas", "sklearn")} if name in sys.modules])
"""
    variables = os.environ | environment(typed, home)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stderr
    assert len(done.stdout.split()) > 1
