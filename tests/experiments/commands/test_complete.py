"""experiments/commands/complete.py, and what a shell gets from it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from experiments.configs.presets import presets
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from tests.helpers import ROOT


def environment(typed: str, home: Path) -> dict[str, str]:
    """What bash sets when a word of a command is completed."""
    words = ["simclr", *re.findall(r"[=:@]+|[^ =:@]+|(?<= )$", typed)]
    return {
        "_SIMCLR_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "SIMCLR_HOME": str(home),
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record with an encoder, a study and a search."""
    store = Store(tmp_path_factory.mktemp("home"))
    encoders = ("no-crop@shapes-s0", "shapes-s0", "shapes-s1")
    for name, kind in (*((name, "pretrain") for name in encoders), ("shapes-no-crop", "study")):
        start_run(store, name, kind, {}).finish("FINISHED")
    start_run(store, "search-shapes", "search", {}).finish("FINISHED")
    return store.folder


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("pre", ["pretrain", "presets"]),
        ("pretrain --batch", ["--batch-size"]),
        ("pretrain --preset sh", ["shapes"]),
        ("pretrain --preset=sh", ["shapes"]),
        ("pretrain --seed=1 --preset=", list(presets())),
        ("presets week", ["weekend"]),
        ("pretrain --drop col", ["color_jitter"]),
        ("pretrain --set loss.t", ["loss.temperature=", "loss.temperature=VALUE"]),
        ("pretrain --set loss.temperature=0.5 --set=data.di", ["data.dir=", "data.dir=VALUE"]),
        ("pretrain --set data.dir=", []),
        ("pretrain --set=data.dir=pho", []),
        ("ablate --axis temp", ["temperature"]),
        ("ablate --vary model.wid", ["model.width=", "model.width=VALUE"]),
        ("eval --set knn.", ["knn.k=", "knn.temperature="]),
        ("eval sha", ["shapes-s1", "shapes-s0"]),
        ("eval ", ["shapes-s1", "shapes-s0", "no-crop@shapes-s0"]),
        ("eval no", ["no-crop@shapes-s0"]),
        ("eval no-crop@", ["@shapes-s0"]),
        ("eval no-crop@sha", ["@shapes-s0"]),
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


# A command of this name for bash, which shows what it is given unless it is asked for completions.
PROGRAM = f"""#!/bin/sh
if [ -n "$_SIMCLR_COMPLETE" ] || [ "$1" = --show-completion ]; then
    exec {shlex.quote(sys.executable)} -c 'import cli; cli.app(prog_name="simclr")' "$@"
fi
printf '<%s>' "$@"; echo '<end>'
"""


def in_bash(lines: list[str], folder: Path, home: Path) -> str:
    """What a terminal with bash shows while these lines are typed."""
    import pty

    program = folder / "bin" / "simclr"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    own = {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SIMCLR_HOME": str(home)}
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], os.environ | own | {"TERM": "dumb"})
    shown = b""
    try:
        for count, line in enumerate(['source <(simclr --show-completion bash); simclr "ready"', *lines], 1):
            os.write(terminal, line.encode() + b"\n")
            while shown.count(b"<end>") < count:
                shown += os.read(terminal, 4096)
    finally:
        os.write(terminal, b"\x15exit\n")
        os.waitpid(process, 0)
        os.close(terminal)
    return shown.decode()


@pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="needs bash in a terminal")
def test_the_tab_key_of_bash_completes_names_settings_and_files(home: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    lines = ["simclr pretrain --preset=week\t--set loss.t\t0.5", "simclr eval no-crop@sh\t--data-dir pho\t"]
    shown = in_bash(lines, tmp_path, home)
    assert "<pretrain><--preset=weekend><--set><loss.temperature=0.5><end>" in shown
    assert "<eval><no-crop@shapes-s0><--data-dir><photos/><end>" in shown


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
