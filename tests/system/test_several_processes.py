"""One run in several processes, from the command line: it ends as with one process, and survives a killed process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from experiments.tracking.store import Record, Store
from simclr.config import to_toml
from simclr.errors import Deserted
from tests.helpers import ROOT, tiny
from tests.simclr.several import environment, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals"),
]
COMMAND = [sys.executable, "-m", "cli", "pretrain", "--config", "c.toml"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def start(folder: Path, home: str, *command: str, **names: str) -> subprocess.Popen[str]:
    own = names | {"SIMCLR_HOME": str(folder / home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def write_config(folder: Path, epochs: int) -> None:
    train = {"epochs": epochs, "batch_size": 64, "norm_batch": 16, "knn_every": 1, "checkpoint_minutes": 1e-9}
    (folder / "c.toml").write_text(to_toml(tiny(train=train, data={"limit": 300})))


def wait_for(what: Callable[[], Any], job: subprocess.Popen[str]) -> Any:
    while not (found := what()):
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    return found


def trainers(job: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The processes that train, by their numbers."""
    found = {}
    for child in psutil.Process(job.pid).children():
        if "pretrain" in child.cmdline() and "RANK" in (names := child.environ()):
            found[int(names["RANK"])] = child
    return found


def checkpoint_of(folder: Path, step: int) -> Callable[[], list[Path]]:
    return lambda: [path for path in folder.rglob("step-*.pt") if int(path.stem.removeprefix("step-")) >= step]


def the_run(folder: Path, home: str) -> Record:
    (record,) = (record for record in Store(folder / home).records() if record.kind == "pretrain")
    return record


@pytest.mark.long
def test_a_command_in_two_processes_records_what_one_would(tmp_path: Path) -> None:
    write_config(tmp_path, epochs=2)
    curves = []
    for home, options in (("one", []), ("two", ["--processes", "2"])):
        job = start(tmp_path, home, *COMMAND, *options)
        out, err = job.communicate()
        assert job.returncode == 0, err
        assert out.count("done: ") == 1
        assert "Traceback" not in err
        assert "c10d" not in err  # no warnings of torch about processes that wait for each other
        record = the_run(tmp_path, home)
        assert record.finished
        curves.append(record.history("train/loss"))
    assert curves[0]["step"].tolist() == curves[1]["step"].tolist()
    assert curves[0]["value"].tolist() == pytest.approx(curves[1]["value"].tolist(), rel=1e-3)
    assert the_run(tmp_path, "one").tags["config_key"] == the_run(tmp_path, "two").tags["config_key"]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_process_ends_the_run_with_one_message_and_a_checkpoint(victim: int, tmp_path: Path) -> None:
    write_config(tmp_path, epochs=8)
    job = start(tmp_path, "home", *COMMAND, "--processes", "2")
    wait_for(checkpoint_of(tmp_path, 3), job)
    trainers(job)[victim].kill()
    out, err = job.communicate()
    assert job.returncode == 1
    (failed,) = (line for line in err.splitlines() if "failed" in line or "Traceback" in line or "error" in line)
    assert failed.startswith(f"failed: process {victim} of 2 was killed (SIGKILL), perhaps because memory ran out: ")
    assert not out
    resumed = start(tmp_path, "home", *COMMAND, "--resume")
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert the_run(tmp_path, "home").finished


@pytest.mark.long
def test_torchrun_starts_again_from_the_checkpoint(tmp_path: Path) -> None:
    write_config(tmp_path, epochs=8)
    job = start(tmp_path, "home", *TORCHRUN, "--max-restarts", "1", *COMMAND[1:])
    wait_for(checkpoint_of(tmp_path, 3), job)
    trainers(job)[1].kill()
    _, err = job.communicate()
    assert job.returncode == 0, err
    assert the_run(tmp_path, "home").finished


@pytest.mark.long
def test_two_launchers_with_a_home_each_train_as_one_process_and_start_again(tmp_path: Path) -> None:
    """They are two machines, as far as they know: each has its own images and record. One process is killed."""
    write_config(tmp_path, epochs=8)
    alone = start(tmp_path, "alone", *COMMAND)
    assert alone.wait() == 0
    port = free_port()
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1", "--rdzv-backend", "c10d"]
    options += ["--rdzv-endpoint", f"localhost:{port}", "--local-addr", "localhost"]
    launchers = [
        start(tmp_path, home, *TORCHRUN[:-2], *options, *COMMAND[1:], GLOO_SOCKET_IFNAME="lo")
        for home in ("first", "second")
    ]
    wait_for(checkpoint_of(tmp_path, 3), launchers[0])
    (victim,) = trainers(launchers[1]).values()
    victim.kill()
    said = [launcher.communicate()[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n-----\n".join(said)
    (own,) = (home for home in ("first", "second") if Store(tmp_path / home).records())  # the first rank may be in any
    curves = [the_run(tmp_path, home).history("train/loss") for home in ("alone", own)]
    assert curves[0]["step"].tolist() == curves[1]["step"].tolist()
    assert curves[0]["value"].tolist() == pytest.approx(curves[1]["value"].tolist(), rel=1e-3)


@pytest.mark.long
def test_ctrl_c_stops_all_processes_with_a_checkpoint(tmp_path: Path) -> None:
    write_config(tmp_path, epochs=8)
    job = start(tmp_path, "home", *COMMAND, "--processes", "2")
    wait_for(checkpoint_of(tmp_path, 3), job)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate()
    assert job.returncode == 130, err
    assert err.splitlines()[-1].startswith("stopped after step ")
    assert the_run(tmp_path, "home").status == "KILLED"


FOLDER = ["--dataset", "folder", "--unlabelled", "--set", "data.side=16", "--data-dir"]
DIFFERENT = {  # the options of each process, and what the message says
    "optim.peak_rate is 0.001 in process 0 and 0.5 in process 1": ([], ["--lr", "0.5"]),
    "train.knn_every is 1 in process 0 and 0 in process 1": ([], ["--set", "train.knn_every=0"]),
    "the digest of the images is ": ([*FOLDER, "a"], [*FOLDER, "b"]),
}


@pytest.mark.long
def test_processes_that_differ_end_before_there_is_a_run(tmp_path: Path) -> None:
    """They are started by hand, as on two machines."""
    write_config(tmp_path, epochs=2)
    draw = np.random.default_rng(0)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(80):
            Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / folder / f"{number}.png")
    for number, (message, both) in enumerate(DIFFERENT.items()):
        port, home = free_port(), f"home{number}"
        jobs = [
            start(tmp_path, home, *COMMAND, *options, **environment(2, rank, port)) for rank, options in enumerate(both)
        ]
        said = "".join(job.communicate()[1] for job in jobs)
        assert sorted(job.returncode for job in jobs) == [2, Deserted.exit_code], said
        (error,) = (line for line in said.splitlines() if "error" in line)
        assert error.startswith("error: the processes of this run disagree: ")
        assert message in error
        assert not Store(tmp_path / home).records()
