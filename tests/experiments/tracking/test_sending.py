"""Tests of experiments/tracking/sending.py."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
    UNAUTHENTICATED,
)
from mlflow.store.tracking import sqlalchemy_store

from experiments.tracking import sending
from experiments.tracking.datasets import DATASET, datasets_of, log_datasets
from experiments.tracking.faults import Refused
from experiments.tracking.journal import Journal
from experiments.tracking.sending import Sender
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr.errors import RunFailed

LOCKED = MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)
DELETED = MlflowException("the run was deleted", RESOURCE_DOES_NOT_EXIST)


class FakeClient:
    """A store that keeps what it accepts. `obstacle` is called before; it may raise, or wait."""

    def __init__(self, obstacle: Callable[[str], None] = lambda run_id: None) -> None:
        self.obstacle = obstacle
        self.stored: list[Any] = []
        self.batches: list[int] = []  # the number of points in each request
        self.tags: dict[str, str] = {}  # of every run

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.obstacle(run_id)
        self.batches += [len(metrics)] if metrics else []
        self.stored += [(run_id, each.key, each.value) for each in (*metrics, *params, *tags)]

    def log_inputs(self, run_id: str, datasets: Any) -> None:
        self.obstacle(run_id)
        self.stored += [(run_id, each.dataset.name, each.dataset.digest) for each in datasets]

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(tags=self.tags))

    def keep(self, run_id: str, path: Path) -> None:
        self.obstacle(run_id)
        self.stored.append((run_id, path.name, path.read_text()))

    def set_terminated(self, run_id: str, status: str, ended: int) -> None:
        self.obstacle(run_id)
        self.stored.append((run_id, "status", status))


class Blocked:
    """An obstacle that holds a request until it is released, which then fails once with the error, if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.reached, self.released = threading.Event(), threading.Event()
        self.error = error

    def __call__(self, run_id: str) -> None:
        self.reached.set()
        assert self.released.wait(60)
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def locked(run_id: str) -> None:
    raise LOCKED


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sending, "COLLECT_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "tracking":
            thread.join(60)
            assert not thread.is_alive()


def open_sender(folder: Path, obstacle: Callable[[str], None] = lambda run_id: None) -> tuple[Sender, Any]:
    client: Any = FakeClient(obstacle)
    return Sender(client, "fake://store", folder, client.keep), client


def die(sender: Sender) -> None:
    """Leave the sender as a killed process would: its lock is free, and its journal is there."""
    assert sender._journal is not None
    sender._journal.lock.release(force=True)


def point(value: float, step: int = 0) -> list[Any]:
    return ["loss", value, 1000, step]


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_a_write_does_not_wait_for_the_store_and_a_read_sees_it(tmp_path: Path) -> None:
    blocked = Blocked()
    sender, client = open_sender(tmp_path, blocked)
    for step in range(5):
        sender.put("run", metrics=[point(step, step)])
    assert blocked.reached.wait(60)
    assert client.stored == []
    blocked.released.set()
    assert sender.call(lambda: list(client.stored)) == [("run", "loss", step) for step in range(5)]
    assert left_in(tmp_path) == []


def test_metrics_that_have_queued_up_are_sent_together_and_all_else_in_order(tmp_path: Path) -> None:
    blocked = Blocked()
    sender, client = open_sender(tmp_path, blocked)
    sender.put("run", params={"lr": "1"})
    assert blocked.reached.wait(60)
    for value in range(sending.MOST_POINTS + 1):
        sender.put("run", metrics=[point(value)])
    sender.put("run", tags={"protocol": "3"})
    sender.put("run", metrics=[point(-1)])
    sender.put("other", metrics=[point(-2)])
    sender.put("run", status="FINISHED", ended=0)
    blocked.released.set()
    sender.flush("run")
    assert client.batches == [sending.MOST_POINTS, 1, 1, 1]
    assert client.stored[0] == ("run", "lr", "1")
    assert client.stored[-4:] == [
        ("run", "protocol", "3"),
        ("run", "loss", -1),
        ("other", "loss", -2),
        ("run", "status", "FINISHED"),
    ]


def test_what_could_not_be_sent_is_kept_and_sent_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "PATIENCE_SECONDS", 0.0)
    sender, client = open_sender(tmp_path, locked)
    sender.put("run", metrics=[point(float("nan"), 1), point(2.0, 2)])
    sender.put_file("run", "model.txt", lambda path: path.write_text("weights"))
    sender.put("run", tags={"protocol": "3"})
    sender.put("run", status="FINISHED", ended=0)
    with pytest.raises(RunFailed, match=r"fake://store did not respond: database is locked.* 4 entries were not sent"):
        sender.flush("run")
    assert caplog.text.count("does not respond") == 1
    assert str(tmp_path) in caplog.text
    client.obstacle = lambda run_id: pytest.fail("the store of a dead process was used")
    die(sender)

    fresh, store = open_sender(tmp_path)
    fresh.put("run", tags={"new": "yes"})
    fresh.flush("run")
    assert repr(store.stored) == repr(
        [
            ("run", "loss", float("nan")),
            ("run", "loss", 2.0),
            ("run", "model.txt", "weights"),
            ("run", "protocol", "3"),
            ("run", "status", "FINISHED"),
            ("run", "new", "yes"),
        ]
    )
    assert left_in(tmp_path) == []


def test_a_store_that_comes_back_gets_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures = iter([LOCKED] * 3)
    tried = threading.Event()

    def obstacle(run_id: str) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        tried.set()

    sender, client = open_sender(tmp_path, obstacle)
    sender.put("run", metrics=[point(1.0)])
    assert tried.wait(60)
    sender.flush("run")
    assert client.stored == [("run", "loss", 1.0)]
    assert [record.message.split()[-1] for record in caplog.records][-1] == "again"


def test_a_command_waits_for_a_dead_store_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PATIENCE_SECONDS", 0.0)
    sender, client = open_sender(tmp_path, locked)
    sender.put("run", metrics=[point(1.0)])
    with pytest.raises(RunFailed, match="did not respond"):
        sender.flush("run")
    monkeypatch.setattr(sending, "PATIENCE_SECONDS", 1e9)
    with pytest.raises(RunFailed, match="did not respond"):
        sender.flush("run")
    client.obstacle = lambda run_id: None
    sender.flush("run")
    assert client.stored == [("run", "loss", 1.0)]


def test_a_refused_entry_fails_its_run_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = Blocked(DELETED)
    sender, client = open_sender(tmp_path, blocked)
    sender.put("gone", metrics=[point(1.0)])
    blocked.released.set()
    with pytest.raises(RunFailed, match="refuses what was recorded of run gone: the run was deleted"):
        sender.flush("gone")
    with pytest.raises(RunFailed, match="refuses"):
        sender.put("gone", status="FINISHED", ended=0)
    sender.put("run", metrics=[point(2.0)])
    sender.put("run", status="FINISHED", ended=0)
    sender.flush("run")
    assert client.stored == [("gone", "status", "FAILED"), ("run", "loss", 2.0), ("run", "status", "FINISHED")]
    assert caplog.text.count("refuses") == 1
    assert left_in(tmp_path) == []


def test_an_error_of_a_call_is_raised_where_it_was_made(tmp_path: Path) -> None:
    sender, _ = open_sender(tmp_path)

    def fail() -> None:
        raise DELETED

    with pytest.raises(Refused, match="the run was deleted"):
        sender.call(fail)
    with pytest.raises(ZeroDivisionError):
        sender.call(lambda: 1 / 0)


def test_an_error_in_the_thread_itself_is_raised_by_whoever_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_for_flush(run_id: str) -> None:
        while sender._waiting == 0:
            pass

    sender, _ = open_sender(tmp_path, wait_for_flush)

    def fail(journal: Journal) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "close", fail)
        sender.put("run", metrics=[point(1.0)])
        with pytest.raises(PermissionError):
            sender.flush("run")
    sender.flush("run")


@pytest.mark.parametrize("code", [PERMISSION_DENIED, UNAUTHENTICATED])
def test_a_wrong_password_loses_nothing(code: int, tmp_path: Path) -> None:
    refusals = iter([MlflowException("wrong password", code)])

    def obstacle(run_id: str) -> None:
        if (error := next(refusals, None)) is not None:
            raise error

    sender, client = open_sender(tmp_path, obstacle)
    sender.put("run", metrics=[point(1.0)])
    sender.flush("run")
    assert client.stored == [("run", "loss", 1.0)]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_ends_a_wait_and_loses_nothing(tmp_path: Path) -> None:
    blocked = Blocked()
    sender, client = open_sender(tmp_path, blocked)
    sender.put("run", metrics=[point(1.0)])
    main, ended = threading.get_ident(), threading.Event()

    def interrupt() -> None:
        assert blocked.reached.wait(60)
        while sender._waiting == 0:
            pass
        signal.pthread_kill(main, signal.SIGINT)
        while not ended.wait(5):  # Python notices a signal only later if it comes just before a lock is waited for
            signal.pthread_kill(main, signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores the signal
    try:
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            sender.flush("run")
        ended.set()
    finally:
        signal.signal(signal.SIGINT, before)
    helper.join()
    assert len(left_in(tmp_path)) == 2  # the journal and its lock
    blocked.released.set()
    sender.flush("run")
    assert client.stored == [("run", "loss", 1.0)]


def test_a_full_disk_is_reported_and_the_entry_is_sent_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, client = open_sender(tmp_path)

    def full(journal: Journal, entry: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(RunFailed, match=r"No space left on device.* Free some space"):
        sender.put("run", metrics=[point(1.0)])
    sender.flush("run")
    assert client.stored == [("run", "loss", 1.0)]


def test_a_file_that_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    sender, client = open_sender(tmp_path)
    with pytest.raises(OSError, match="No space"):
        sender.put_file("run", "model.txt", half)
    sender.flush("run")
    assert client.stored == []
    assert left_in(tmp_path) == []


# --- with MLflow ------------------------------------------------------------------------------------------------------


def test_points_sent_twice_are_stored_once(store: Store) -> None:
    tracker = start_run(store, "run", "pretrain", {})
    for _ in range(2):
        tracker.log_points([["loss", 1.0, 1000, 1], ["loss", float("nan"), 1000, 2]])
        tracker.flush()
    assert len(store.points(tracker.run_id, "loss")) == 2


def test_a_run_is_created_once_even_if_the_answer_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create, losses = store.client.create_run, iter([True, True])

    def lose_answer(*arguments: Any) -> Any:
        run = create(*arguments)
        if next(losses, False):
            raise MlflowException("API request failed with timeout exception")
        return run

    monkeypatch.setattr(store.client, "create_run", lose_answer)
    tracker = start_run(store, "bob's", "pretrain", {"lr": 1}, {"config_key": "k"})
    assert [record.id for record in store.records()] == [tracker.run_id]
    assert tracker.record().params == {"lr": "1"}


def test_two_processes_may_record_the_same_new_images_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one inserts its row after the first one has looked for it and before the first one inserts it."""
    images = dict.fromkeys(DATASET, "images") | {"schema": "{}", "profile": "{}"}
    first, second = (start_run(store, name, "pretrain", {}) for name in ("first", "second"))
    for tracker in (first, second):
        tracker.flush()
    new_id, other = sqlalchemy_store.uuid.uuid4, iter([second.run_id])

    def insert_meanwhile() -> Any:
        if (run_id := next(other, None)) is not None:
            log_datasets(store.client, run_id, [images])
        return new_id()

    monkeypatch.setattr(sqlalchemy_store, "uuid", SimpleNamespace(uuid4=insert_meanwhile))
    log_datasets(store.client, first.run_id, [images])
    assert next(other, None) is None
    for tracker in (first, second):
        assert datasets_of(store.client.get_run(tracker.run_id)) == [images]
