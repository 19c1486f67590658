"""What a command does that runs in several processes."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import typer

from experiments.commands import several
from experiments.commands.several import Follower, _fail, starts_processes
from experiments.commands.terminal import Terminal
from simclr import processes
from simclr.errors import Deserted, RunFailed, UserError
from tests.experiments.commands.helpers import Run, assert_one_line

KILLED = "process 1 of 2 was killed (SIGKILL), perhaps because memory ran out: to continue from the last checkpoint"


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", "\u00b2", "99999"])
def test_a_number_of_processes_that_cannot_be_is_refused(asked: str, run: Run) -> None:
    done = run("pretrain", "--config", "tiny.toml", f"--processes={asked}")
    assert_one_line(done, 2, f"--processes '{asked}': expected auto, or a number from 1 to 4096")


def test_as_many_processes_are_started_as_are_asked_for_or_as_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(several, "_start", started.append)
    for gpus, asked, did in ((0, "auto", False), (4, "auto", True), (4, "2", True), (0, "1", False)):
        monkeypatch.setattr(torch.accelerator, "device_count", lambda gpus=gpus: gpus)
        assert starts_processes(asked) == did
    assert started == [4, 2]


def test_a_process_that_was_started_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "_start", lambda count: pytest.fail("it started others"))
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with processes.pretended(4):
        assert not starts_processes("2")
        with pytest.raises(UserError, match="--processes 4, but torchrun started 2 on this machine: leave out"):
            starts_processes("4")


@pytest.mark.parametrize(
    ("codes", "end"),
    [
        ({0: Deserted.exit_code, 1: -signal.SIGKILL}, KILLED),
        ({0: -signal.SIGTERM, 1: -signal.SIGKILL}, KILLED),
        ({0: Deserted.exit_code}, "process 0 of 2 lost the others"),
        ({0: Deserted.exit_code, 1: 1}, 1),
        ({0: 2, 1: -signal.SIGTERM}, 2),
        ({0: 130, 1: 130}, 130),
    ],
)
def test_the_end_of_processes_is_told_once(codes: dict[int, int], end: str | int) -> None:
    """Either one of them has said why, and its exit code is repeated, or the message says it."""
    with pytest.raises(RunFailed if isinstance(end, str) else typer.Exit) as raised:
        _fail(codes, 2)
    if isinstance(end, str):
        assert str(raised.value).startswith(end)
    else:
        assert raised.value.exit_code == end


def test_a_process_that_lost_the_others_says_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object, **__: object) -> None:
        raise Deserted("Connection closed by peer")

    monkeypatch.setattr("experiments.runs.prepare.prepare", lose)
    done = run("pretrain", "--config", "tiny.toml")
    assert (done.exit_code, done.output) == (Deserted.exit_code, "")


def test_signals_ask_processes_of_a_run_to_stop_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    with Follower() as follower, Terminal(alone=False) as terminal:
        terminal.began("0123456789", 10)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert terminal.stop()
        assert not follower.stop()
    with Follower() as follower:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert follower.stop()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("restarts", "most", "options", "resume"),
    [(0, 0, [], False), (0, 3, [], None), (1, 3, ["--again"], None), (0, 3, ["--again"], False)],
)
def test_what_torchrun_may_start_again_is_resumed(
    restarts: int, most: int, options: list[str], resume: bool | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two machines, only that of the process that ended counts the restart."""
    asked: list[bool | None] = []

    def train(*_: object, resume: bool | None, **__: object) -> None:
        asked.append(resume)
        raise UserError("enough")

    monkeypatch.setattr("experiments.runs.train.train", train)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(most))
    assert_one_line(run("pretrain", "--config", "tiny.toml", *options), 2, "enough")
    assert asked == [resume]


def test_a_time_budget_is_for_one_process(run: Run) -> None:
    with processes.pretended(2):
        done = run("pretrain", "--preset", "half-hour")
    assert_one_line(done, 2, "a time budget (--hours) works only in one process")
