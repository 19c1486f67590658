"""Jobs on a real Slurm, in the middle of which one reaches its time limit, or the driver dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from experiments.tracking.store import Store
from experiments.workers.pool import Job
from experiments.workers.remote import Remote
from experiments.workers.slurm import Slurm, in_queue
from simclr.config import to_toml
from simclr.progress import SILENT, Observer
from tests.helpers import ROOT, tiny
from tests.system.processes import has_begun, runs_of
from tests.system.slurm import Unusable, cluster, train_one

pytest.importorskip("submitit")
pytestmark = pytest.mark.slow

SECONDS = 600  # in which each thing that a test waits for must happen, on a machine that has much else to do
STEPS = 40  # of a run, each of which saves a checkpoint
CONFIG = tiny(train={"epochs": 20, "batch_size": 128, "checkpoint_minutes": 1e-9}, data={"limit": 300})
ABLATE = "ablate --config c.toml --drop color_jitter --seeds 1 --name study --yes"
FIGURES = ("eval/val/linear_top1", "train/loss")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of two nodes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        try:
            with cluster(tmp_path_factory.mktemp("slurm")):
                yield
        except Unusable as reason:
            pytest.skip(str(reason))


class Patient(Observer):
    """Fails if the work takes too long."""

    def __init__(self) -> None:
        self.end = time.monotonic() + SECONDS

    def stop(self) -> bool:
        assert time.monotonic() < self.end, f"the study has not ended within {SECONDS} seconds"
        return False


def wait(what: Callable[[], object], why: str) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, f"{why} within {SECONDS} seconds"
        time.sleep(0.1)


def wait_for_checkpoints(home: Path) -> None:
    wait(lambda: has_begun(home), "no run has begun")


@pytest.mark.usefixtures("nodes")
def test_a_run_goes_on_after_the_time_limit_of_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm would send the same signal 90 seconds before the limit."""
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path))
    store, engine = Store(tmp_path), Slurm()

    def reach_the_limit() -> str:
        wait_for_checkpoints(tmp_path)
        (job,) = engine._jobs.values()
        subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
        return str(job.job_id)

    with engine, ThreadPoolExecutor() as threads:
        interrupted = threads.submit(reach_the_limit)
        job = Job("a run", "a run", train_one, (CONFIG,), SILENT)
        (ended,) = Remote(engine).run([job], store, Patient())
    (log,) = engine.folder.glob(f"{interrupted.result()}_*_log.out")
    assert "Requeued job" in log.read_text()
    (run,) = store.records()  # the run that was interrupted went on; nothing started over
    assert (ended.error, ended.answer) == (None, run.id)
    assert run.finished
    assert run.history("train/loss")["step"].max() == STEPS


Driver = subprocess.Popen[bytes]


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """A function that starts the study in a home, with options. What it has started ends with the test."""
    (tmp_path / "c.toml").write_text(to_toml(CONFIG))
    with ExitStack() as stack:

        def start(home: str, *options: str) -> Driver:
            command = [sys.executable, "-m", "cli", *ABLATE.split(), *options]
            output = stack.enter_context((tmp_path / f"{home}.txt").open("a"))
            own = os.environ | {"SIMCLR_HOME": str(tmp_path / home)}
            process = subprocess.Popen(command, cwd=tmp_path, env=own, stdout=output, stderr=output)
            stack.callback(process.kill)
            return process

        yield start


def check_like_a_serial_study(folder: Path, last: Driver, drive: Callable[..., Driver]) -> None:
    assert last.wait(SECONDS) == 0, (folder / "home.txt").read_text()
    assert drive("serial").wait(SECONDS) == 0, (folder / "serial.txt").read_text()
    expected, found = runs_of(folder / "serial"), runs_of(folder / "home")
    assert expected.keys() == found.keys()
    for key, run in expected.items():
        for metric in FIGURES:
            assert found[key].metrics[metric] == run.metrics[metric]


@pytest.mark.long
@pytest.mark.usefixtures("nodes")
def test_a_study_whose_driver_was_killed_is_run_again(tmp_path: Path, drive: Callable[..., Driver]) -> None:
    first = drive("home", "--cluster", "slurm")
    wait_for_checkpoints(tmp_path / "home")
    first.kill()
    first.wait()
    check_like_a_serial_study(tmp_path, drive("home", "--cluster", "slurm"), drive)


@pytest.mark.long
@pytest.mark.usefixtures("nodes")
def test_ctrl_c_ends_the_jobs_with_checkpoints(tmp_path: Path, drive: Callable[..., Driver]) -> None:
    first = drive("home", "--cluster", "slurm")
    wait_for_checkpoints(tmp_path / "home")
    first.send_signal(signal.SIGINT)
    assert first.wait(SECONDS) == 130
    wait(lambda: not in_queue(), "jobs have not ended")
    assert not [run for run in Store(tmp_path / "home").records() if run.status == "RUNNING"]
    check_like_a_serial_study(tmp_path, drive("home"), drive)
