"""Runs whose tracking store stops responding: a real `mlflow server` that is paused or dead, and a locked database.

SIMCLR_TEST_OUTAGE_SECONDS=60 makes the outages longer. `-s` shows the figures.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

import pytest

from experiments.runs.encoders import encoder_of
from experiments.runs.prepare import Prepared, prepare
from experiments.runs.train import train
from experiments.tracking.store import Record, Store
from simclr.config import to_toml
from simclr.errors import UserError
from simclr.progress import Observer
from simclr.train.loop import Interrupted
from simclr.weights.checkpoint import checkpoints
from tests.helpers import ROOT, tiny
from tests.system.servers import Server

pytestmark = [pytest.mark.long, pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")]
OUTAGE_SECONDS = float(os.environ.get("SIMCLR_TEST_OUTAGE_SECONDS", "3"))
ROUNDS = max(2, round(24 / OUTAGE_SECONDS))  # of a stretch with the store and one without
CONFIG = tiny(train={"epochs": 2, "batch_size": 128}, data={"limit": 600})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.close()


@contextmanager
def paused(server: Server) -> Iterator[None]:
    server.send(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send(signal.SIGCONT)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    connection = sqlite3.connect(database, isolation_level=None, timeout=60, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.rollback()
        connection.close()


def for_a_while(outage: Callable[[], object]) -> threading.Thread:
    """Begin an outage, which ends by itself."""
    begun = threading.Event()

    def hold() -> None:
        with outage():  # type: ignore[attr-defined]
            begun.set()
            time.sleep(OUTAGE_SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(120)
    return thread


class Switching(Observer):
    """Turns the store off and on again while a run trains, and measures the time of a step in both states."""

    def __init__(self, outage: Callable[[], object]) -> None:
        self.outage, self.steps = outage, 0
        self.seconds: dict[bool, list[float]] = {False: [], True: []}  # of a step, without and with an outage
        self.now, self.switches = None, 0
        self.clock = self.switched = time.perf_counter()

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        assert step == self.steps + 1  # every step is logged
        self.steps, now = step, time.perf_counter()
        if self.clock != self.switched:  # not the first of a stretch
            self.seconds[self.now is not None].append(now - self.clock)
        self.clock = now
        if now - self.switched > OUTAGE_SECONDS:
            self.switches += 1
            if self.now is None:
                self.now = self.outage()
                self.now.__enter__()
            else:
                self.now.__exit__(None, None, None)
                self.now = None
            self.clock = self.switched = time.perf_counter()

    def stop(self) -> bool:
        return self.switches == 2 * ROUNDS

    @property
    def speed(self) -> float:
        """The speed of training without the store, relative to that with it."""
        return mean(self.seconds[False]) / mean(self.seconds[True])


def prepared(home: Path, **train_settings: object) -> Prepared:
    settings = CONFIG.train.model_dump() | train_settings
    return prepare(CONFIG.model_copy(update={"train": CONFIG.train.model_validate(settings)}), home)


def unsent(home: Path) -> list[Path]:
    """The files of what was not sent."""
    return [path for path in (home / "unsent").rglob("*") if path.is_file()]


def assert_complete(record: Record, steps: int) -> None:
    """Every point is there, once."""
    assert record.history("train/loss")["step"].tolist() == list(range(1, steps + 1))
    assert len(record.store.points(record.id, "train/loss")) == steps


def assert_speed_is_kept(home: Path, store: Store, outage: Callable[[], object], name: str) -> None:
    work, watch = prepared(home, epochs=10**6), Switching(outage)
    with pytest.raises(Interrupted):
        train(work, store, observer=watch)
    (record,) = store.records()
    assert record.status == "KILLED"
    assert_complete(record, watch.steps)
    assert unsent(store.folder) == []
    counts = {state: len(seconds) for state, seconds in watch.seconds.items()}
    print(f"{name}: {watch.speed:.1%} of the speed, {counts[True]} steps without the store, {counts[False]} with it")
    assert watch.speed > 0.9


def test_a_locked_database_does_not_slow_training(home: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    assert_speed_is_kept(home, store, lambda: locked(store.folder / "mlflow.db"), "locked database")


def test_a_paused_server_does_not_slow_training(
    home: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert_speed_is_kept(home, Store(tmp_path / "home"), lambda: paused(server), "paused server")


class AtStep(Observer):
    """Calls a function after a step."""

    def __init__(self, step: int, call: Callable[[], object]) -> None:
        self.step, self.call = step, call

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if step == self.step:
            self.call()


@pytest.mark.parametrize("phase", ["start", "middle", "end"])
@pytest.mark.parametrize("kind", ["locked database", "paused server"])
def test_a_run_gets_over_an_outage_in_each_phase(
    kind: str,
    phase: str,
    home: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "paused server":
        server = request.getfixturevalue("server")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    work, store = prepared(home), Store(tmp_path / "home")
    outages = {"locked database": lambda: locked(store.folder / "mlflow.db"), "paused server": lambda: paused(server)}
    threads: list[threading.Thread] = []

    def begin() -> None:
        threads.append(for_a_while(outages[kind]))

    total = work.steps.total
    if phase == "start":
        begin()
        record = train(work, store)
    else:
        record = train(work, store, observer=AtStep(total if phase == "end" else total // 2, begin))
    for thread in threads:
        thread.join()
    assert record.finished
    assert [each.id for each in store.records()] == [record.id]  # it was started once
    assert_complete(record, total)
    assert encoder_of(record).run_id == record.id
    assert not checkpoints(record.folder)


# `simclr`, with less patience for a dead server.
IMPATIENT = "from experiments.tracking import sending; sending.PATIENCE_SECONDS = 3; import cli; cli.app()"


def test_a_run_whose_server_dies_is_completed_when_the_server_is_back(tmp_path: Path, server: Server) -> None:
    (tmp_path / "run.toml").write_text(to_toml(prepared(tmp_path, epochs=60, checkpoint_minutes=1e-4).config))
    environment = os.environ | {
        "SIMCLR_HOME": str(tmp_path / "home"),
        "MLFLOW_TRACKING_URI": server.uri,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }

    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-u", "-c", IMPATIENT, *arguments]

    pipe = subprocess.PIPE
    train_it = command("pretrain", "--config", str(tmp_path / "run.toml"))
    process = subprocess.Popen(
        train_it,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )
    assert process.stderr is not None
    while not process.stderr.readline().startswith("run tiny-s0"):
        assert process.poll() is None
    server.kill()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if not line.startswith("epoch")]
    assert f"the tracking store {server.uri} does not respond" in lines[0]
    assert "entries were not sent, but kept in" in lines[-1]
    assert unsent(tmp_path / "home")

    began = time.perf_counter()
    refused = subprocess.run(command("runs"), env=environment, capture_output=True, text=True)
    print(f"a dead server was reported after {time.perf_counter() - began:.1f} s: {refused.stderr}")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: can't open the tracking store {server.uri}")

    server.start()
    listed = subprocess.run(command("runs"), env=environment, capture_output=True, text=True)
    assert "tiny-s0" in listed.stdout, listed.stderr
    assert unsent(tmp_path / "home") == []
    again = subprocess.run(
        command("pretrain", "--config", str(tmp_path / "run.toml")), env=environment, capture_output=True, text=True
    )
    assert "has already trained this config" in again.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        (record,) = Store(tmp_path / "home").records()
        assert_complete(record, 60 * 4)
        assert encoder_of(record).run_id == record.id
    assert not checkpoints(record.folder)


# `simclr`, which is killed when its fifth checkpoint is saved.
KILLED = """
import os, signal
import cli
from simclr.weights import checkpoint

def save_and_die(folder, step, state, save=checkpoint.save):
    save(folder, step, state)
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save = save_and_die
cli.app()
"""


def test_a_run_killed_after_a_checkpoint_has_no_gap_in_its_curves(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(to_toml(prepared(tmp_path, checkpoint_minutes=1e-9).config))
    home = tmp_path / "home"
    environment = os.environ | {"SIMCLR_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ["pretrain", "--config", str(tmp_path / "run.toml")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = subprocess.run(
        [sys.executable, "-c", "import cli; cli.app()", *arguments, "--resume"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    (record,) = Store(home).records()
    assert record.finished
    assert_complete(record, 8)


@pytest.mark.parametrize("state", ["dead", "paused"])
def test_a_server_that_does_not_respond_at_the_start_is_reported_within_ten_seconds(
    state: str, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    if state == "dead":
        server.kill()
    else:
        server.send(signal.SIGSTOP)
    began = time.perf_counter()
    with pytest.raises(UserError, match="can't open the tracking store"):
        Store(tmp_path / "home")
    seconds = time.perf_counter() - began
    print(f"a {state} server was reported after {seconds:.1f} s")
    assert seconds < 10
