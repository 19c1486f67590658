"""Jobs of Slurm: what its programs are told, what their answers mean, and what a job does when it is signalled."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from experiments.workers import slurm
from experiments.workers.slurm import Slurm
from experiments.workers.task import Lost, Outcome, Said, Task
from simclr.errors import UserError

pytest.importorskip("submitit")

PROGRAMS = {
    "srun": "",
    "sbatch": '[ -e refusal ] && cat refusal >&2 && exit 1; cat "$1" > script; echo Submitted batch job 7',
    "squeue": "cat queue",
    "scancel": "",
    "scontrol": "",
}


@dataclass(frozen=True)
class Told:
    """A task that is signalled in its first attempts, and returns its attempts."""

    token: str
    signals: tuple[int, ...] = ()

    def __call__(self, watch: Said) -> Outcome:
        attempts = Path(f"attempts-{self.token}")
        with attempts.open("a") as file:
            file.write(".")
        count = len(attempts.read_text())
        assert not watch.stop()
        if count > len(self.signals):
            return Outcome("n1", count)
        os.kill(os.getpid(), self.signals[count - 1])
        assert watch.stop()
        return Outcome("n1", stopped=count)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the programs were told, in a folder where they are stand-ins."""
    for name, work in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> told\n{work}\n')
        program.chmod(0o755)
    (tmp_path / "told").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("QUEUE_SECONDS", "LOST_SECONDS"):
        monkeypatch.setattr(slurm, name, 0.0)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT)}
    yield tmp_path / "told"
    for number, handler in kept.items():
        signal.signal(number, handler)


def run(engine: Slurm, job: str) -> None:
    """Do what a machine does with a job."""
    from submitit.core.submission import process_job

    array, _, index = job.partition("_")
    names = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": array}
    names |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": index} if index else {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        process_job(engine.folder)


def start(engine: Slurm, *tasks: Told) -> None:
    for task in tasks:
        engine.start(cast(Task, task))


def test_tasks_become_one_array_of_jobs_with_the_options_of_the_user(told: Path) -> None:
    Path("queue").write_text("7_0\n7_1\n8_0")
    with Slurm(1.0, ["partition=gpu", "exclusive", "time=4:00:00", "jobs=8"]) as engine:
        assert engine.slots == 8
        start(engine, Told("a"), Told("b"))
        assert engine.ended(0) == []
        run(engine, "7_1")
        assert engine.ended(0) == [("b", Outcome("n1", 1))]
        assert engine.ended(0) == []
    lines = Path("script").read_text().splitlines()
    for option in ("array=0-1%2", "partition=gpu", "exclusive", "time=4:00:00", "gpus-per-node=1", "signal=USR2@90"):
        assert f"#SBATCH --{option}" in lines
    calls = told.read_text().splitlines()
    assert [call.split()[0] for call in calls].count("sbatch") == 1
    assert calls[-1] == "scancel 7_0"  # which had not ended


def test_a_job_that_left_the_queue_without_an_answer_is_lost(told: Path) -> None:
    Path("queue").write_text("7_0")
    with Slurm() as engine:
        start(engine, Told("a"), Told("b"))
        ((token, lost),) = engine.ended(5)
        assert token == "b"
        assert isinstance(lost, Lost)
        assert lost.reason.startswith("job 7_1 of Slurm ended without a result (its output is in ")
        Path("queue").unlink()  # Slurm doesn't respond
        assert engine.ended(0) == []
        engine.cancel("a")
        ((token, lost),) = engine.ended(5)
        assert (token, isinstance(lost, Lost)) == ("a", True)
    assert "scancel 7_0" in told.read_text().splitlines()
    assert "#SBATCH --time=60" in Path("script").read_text().splitlines()


def test_a_job_that_left_the_queue_before_its_answer_is_read_ends_once(told: Path) -> None:
    with Slurm() as engine:
        start(engine, Told("a"))
        engine.cancel("a")  # which submits it
        run(engine, "7")
        assert [token for token, _ in engine.ended(0)] == ["a"]


def test_a_job_goes_on_after_its_time_limit(told: Path) -> None:
    Path("queue").write_text("7")
    with Slurm() as engine:
        start(engine, Told("a", (signal.SIGUSR2, signal.SIGUSR2)))
        assert engine.ended(0) == []
        for _ in range(2):
            with pytest.raises(SystemExit):
                run(engine, "7")
            assert engine.ended(0) == []
        run(engine, "7")
        assert engine.ended(0) == [("a", Outcome("n1", 3))]
    assert told.read_text().count("scontrol requeue 7\n") == 2


def test_a_job_that_slurm_ends_is_left_to_slurm(told: Path) -> None:
    Path("queue").write_text("7")
    with Slurm() as engine:
        start(engine, Told("a", (signal.SIGTERM,)))
        assert engine.ended(0) == []
        with pytest.raises(SystemExit):
            run(engine, "7")
        assert engine.ended(0) == []
        run(engine, "7")  # it was put back into the queue
        assert engine.ended(0) == [("a", Outcome("n1", 2))]
    assert "scontrol" not in told.read_text()


def test_a_job_that_can_not_be_put_back_into_the_queue_is_lost(told: Path) -> None:
    Path("bin/scontrol").write_text("#!/bin/sh\nexit 1\n")
    Path("queue").touch()
    with Slurm() as engine:
        start(engine, Told("a", (signal.SIGUSR2,)))
        engine._submit()
        with pytest.raises(SystemExit):
            run(engine, "7")
        ((_, lost),) = engine.ended(5)
        assert isinstance(lost, Lost)


def test_what_sbatch_refuses_is_said_in_one_line(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("refusal").write_text("sbatch: error: Batch job submission failed: Invalid account\n")
    with Slurm(None, ["account=none"]) as engine:
        start(engine, Told("a"))
        with pytest.raises(UserError, match=r"^sbatch refuses the jobs: Batch job submission failed: Invalid"):
            engine.ended(0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", ["", "=gpu", "partition=", "--time=60", "Time=60", "time =60", "-p"])
def test_what_is_no_option_of_sbatch_is_refused(option: str) -> None:
    with pytest.raises(UserError, match=r"^--cluster-option '.*': expected a long option of sbatch without its dashes"):
        slurm.parse_option(option)


@pytest.mark.parametrize("option", ["array=0-3", "signal=USR1@10", "nodes=2"])
def test_options_that_would_break_jobs_are_refused(option: str) -> None:
    with pytest.raises(UserError, match="is fixed, because each run is one job: leave it out"):
        slurm.parse_option(option)


@pytest.mark.parametrize(
    ("gpus", "options", "message"),
    [
        (0.5, [], r"^--gpus-per-run 0\.5: Slurm allocates whole GPUs"),
        (None, ["jobs=0"], r"^--cluster-option 'jobs=0': expected a number of jobs, 1 or more$"),
        (None, ["jobs"], r"^--cluster-option 'jobs=True': expected a number of jobs, 1 or more$"),
    ],
)
def test_numbers_that_can_not_be_are_refused(gpus: float | None, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Slurm(gpus, options)


def test_a_machine_that_submits_no_jobs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path))
    with pytest.raises(UserError, match="no program sbatch here: run the command where jobs are submitted"):
        Slurm()
