"""A Slurm cluster of two nodes on this machine, each with one core. It listens on the loopback device only."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from experiments.runs.prepare import prepare
from experiments.runs.train import train
from experiments.tracking.store import Store
from simclr.config import Config
from simclr.progress import Observer
from tests.simclr.several import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
START_SECONDS = 120  # in which the nodes must be there; it takes two on an idle machine
NODES = ("a", "b")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that is put back into the queue waits for as long as its credentials are valid: at least 5 seconds.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdTimeout=20
SchedulerParameters=sched_interval=1
PartitionName=main Nodes=ALL Default=YES
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1\n"


class Unusable(Exception):  # noqa: N818 (it describes the machine)
    """Slurm can't run here."""


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A context in which SLURM_CONF names the cluster. Raises Unusable."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    if missing := [program for program in PROGRAMS if shutil.which(program, path=path) is None]:
        raise Unusable(f"needs {', '.join(missing)} of Slurm")
    host, config = socket.gethostname(), folder / "slurm.conf"
    text = CONFIG.format(host=host, port=free_port(), user=getpass.getuser(), folder=folder)
    config.write_text(text + "".join(NODE.format(name=name, host=host, port=free_port()) for name in NODES))
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    own = {name: str(folder / f"munge.{name}") for name in ("socket", "pid-file", "log-file", "seed-file")}
    own["socket"] = str(folder / "munge.sock")
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", *(f"--{name}={to}" for name, to in own.items())]
    with ExitStack() as stack:
        before = os.environ.copy()
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        os.environ |= {"PATH": path, "SLURM_CONF": str(config)}
        stack.callback(_kill_jobs, folder)
        servers = {"munged": stack.enter_context(_running(munged, folder / "munged"))}
        _wait(lambda: Path(own["socket"]).exists(), servers, folder)
        commands = {"slurmctld": ["slurmctld", "-D"], **{name: ["slurmd", "-D", "-N", name] for name in NODES}}
        for name, command in commands.items():
            servers[name] = stack.enter_context(_running(command, folder / name))
        _wait(lambda: _nodes() == "idle 2", servers, folder)
        yield


def train_one(store: Store, observer: Observer, config: Config) -> str:
    """The job of a test: it trains a run, and returns its id."""
    return train(prepare(config, store.folder, observer), store, resume=None, observer=observer).id


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A context in which a server runs in a folder, and writes its log there. It is killed at the end."""
    folder.mkdir()
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield server
    finally:
        server.kill()
        server.wait()


def _kill_jobs(folder: Path) -> None:
    """Kill the processes of jobs whose server was started below this folder. They are no children of the server."""
    found: list[psutil.Process] = []
    for step in psutil.process_iter():
        with suppress(psutil.Error):  # it has just ended
            if step.name() == "slurmstepd" and Path(step.cwd()).is_relative_to(folder):
                found += [step, *step.children(recursive=True)]
    for each in found:
        with suppress(psutil.Error):
            each.kill()


def _nodes() -> str:
    """The states of nodes, and how many have each."""
    command = ["sinfo", "--noheader", "--format=%t %D"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _wait(what: Callable[[], bool], servers: Mapping[str, subprocess.Popen[bytes]], folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not what():
        ended = [name for name, server in servers.items() if server.poll() is not None]
        if ended or time.monotonic() > end:
            name = (ended or list(servers))[-1]
            log = (folder / name / "log").read_text().splitlines()
            raise Unusable(f"Slurm doesn't start here: the log of {name} ends with {log[-1:]}")
        time.sleep(0.1)
