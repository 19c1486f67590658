"""cli.py: the table of commands, what help costs, and exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import cli
from experiments.commands.names import names_in
from experiments.configs.presets import presets
from simclr.augment import AUGMENTATIONS
from simclr.data.sources import DATASETS
from simclr.errors import RunFailed, UserError
from tests.helpers import ROOT

HEAVY = ("torch", "mlflow", "optuna", "pandas", "sklearn", "matplotlib")


def test_help_imports_no_heavy_library() -> None:
    """Nor does `simclr presets`, nor the message for a mistyped command. All are shown in one process, to save time."""
    calls = [
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in cli.COMMANDS),
        ["presets"],
        ["pretran"],
        ["frobnicate"],
    ]
    code = f"""
import sys, cli
for arguments in {calls}:
    try:
        cli.app(arguments)
    except SystemExit:
        pass
    print([name for name in {HEAVY} if name in sys.modules], arguments, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert lines.pop(-4) == "error: unknown command 'pretran': did you mean 'pretrain'?"
    assert lines.pop(-2) == "error: unknown command 'frobnicate': `simclr --help` lists all commands"
    assert lines == [f"[] {arguments}" for arguments in calls]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/commands").glob("*.py")), ids=lambda path: path.stem)
def test_names_for_help_are_those_of_the_tables(path: Path) -> None:
    for table in re.findall(r'names_in\("([\w.]+)"\)', path.read_text()):
        module, _, name = table.rpartition(".")
        assert names_in(table) == list(getattr(import_module(module), name))


def test_names_of_a_table_that_does_not_exist() -> None:
    with pytest.raises(LookupError, match=r"simclr\.model has no table TAILS"):
        names_in("simclr.model.TAILS")


def test_help_lists_every_command_in_full() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    for name, (_, text) in cli.COMMANDS.items():
        assert f"  {name:10}  {text}\n" in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_says_what_each_option_does(name: str) -> None:
    where, text = cli.COMMANDS[name]
    module, _, function = where.partition(":")
    assert getattr(import_module(f"experiments.commands.{module}"), function).__doc__.startswith(f"{text}\n\n")
    shown = CliRunner().invoke(cli.app, [name, "--help"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith(f"Usage: simclr {name} ")
    assert f"\n  Example: simclr {name}" in shown.output
    assert not re.search(r"\{\w+\}", shown.output.partition("\n")[2])  # the first line is the usage
    assert "(none)" not in shown.output
    assert "list[" not in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    assert CliRunner().invoke(cli.app, [name, "-h"]).output == shown.output
    parent = typer.main.get_command(cli.app)
    command: Any = parent.commands[name].make_context(name, [], resilient_parsing=True).command  # type: ignore[attr-defined]
    for parameter in command.params:
        assert parameter.help[0].isupper(), parameter.name
        assert parameter.help.endswith("."), parameter.name


def test_help_lists_the_names_that_the_tables_hold() -> None:
    shown = "".join(CliRunner().invoke(cli.app, ["pretrain", "--help"]).output.split())
    for name in (*AUGMENTATIONS, *DATASETS, *presets()):
        assert name in shown


def test_only_pretrain_works_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(cli.app, ["runs"])
    assert done.exit_code == 2
    assert (
        done.stderr
        == "error: simclr runs runs in one process: start it without torchrun, which only pretrain supports\n"
    )
    assert CliRunner().invoke(cli.app, ["pretrain", "--help"]).exit_code == 0


def test_the_version_is_that_of_the_package() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"simclr {version('simclr-suite')}\n"


def test_without_arguments_the_help_is_shown() -> None:
    done = CliRunner().invoke(cli.app, [])
    assert done.exit_code == 2
    assert all(f"\n{title}:\n" in done.output for title in cli.SECTIONS)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("a mistake"), 2, "error: a mistake\n"),
        (UserError("no file a\nerror: b\x1b[2J"), 2, "error: no file a\\nerror: b\\x1b[2J\n"),
        (RunFailed("it diverged"), 1, "failed: it diverged\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (KeyboardInterrupt("stopped after step 3"), 130, "stopped after step 3\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (
            PermissionError(13, "Permission denied", "a.png"),
            1,
            "failed: can't read or write a.png: Permission denied; check the folder's permissions and the free space "
            "on its disk, or choose another path\n",
        ),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("experiments.commands.presets.presets", fail)
    done = CliRunner().invoke(cli.app, ["presets"])
    assert done.exit_code == code
    assert done.stderr == message


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("experiments.commands.presets.presets", fail)
    assert isinstance(CliRunner().invoke(cli.app, ["presets"]).exception, KeyError)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
def test_output_that_nobody_reads_ends_a_command_as_other_programs_end() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "cli.py", "presets"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("how", [["-m", "cli"], ["cli.py"]])
def test_cli_runs_as_a_module_and_as_a_script(how: list[str]) -> None:
    done = subprocess.run([sys.executable, *how, "presets"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\ncifar10-cpu " in done.stdout


def test_a_command_without_options_suggests_its_help() -> None:
    done = CliRunner().invoke(cli.app, ["ui", "--foo"])
    assert (done.exit_code, done.stderr) == (
        2,
        "error: unknown option '--foo': choose from --help, --no-browser, --port\n",
    )
