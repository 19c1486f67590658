"""Claims of work, which another process may hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from filelock import FileLock

from experiments.tracking import claims
from experiments.tracking.claims import Busy, claim_config, claim_file, claim_name
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr.errors import RunFailed
from simclr.progress import Observer


class Watch(Observer):
    """Keeps what it is told, and does something each time that it is asked to stop."""

    def __init__(self, act: Callable[[], bool]) -> None:
        self.act, self.said = act, list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)

    def stop(self) -> bool:
        return self.act()


@contextmanager
def another_process(store: Store, *work: str) -> Iterator[FileLock]:
    """Holds the lock of some work."""
    path = claim_file(store, *work)
    path.parent.mkdir(exist_ok=True)
    with FileLock(path) as lock:
        yield lock


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.01)


def test_a_process_waits_for_the_one_that_trains_its_config(store: Store) -> None:
    tags = {"config_key": "k", "data_digest": "d"}
    run = start_run(store, "run", "pretrain", {}, tags)
    with another_process(store, "k", "d") as lock:

        def release() -> bool:
            lock.release()
            return False

        watch = Watch(release)
        with claim_config(store, "k", "d", observer=watch):
            assert watch.said == [f"run {run.run_id[:8]} is training this config in another process: waiting"]
        with claim_config(store, "k", "d", observer=watch), claim_config(store, "k", "d"):  # within its own claim
            assert len(watch.said) == 1


def test_a_config_on_other_images_is_another_claim(store: Store) -> None:
    with another_process(store, "k", "d"), claim_config(store, "k", "other", wait=False):
        pass


def test_a_process_that_need_not_wait_learns_that_the_config_is_busy(store: Store) -> None:
    with (
        another_process(store, "k", "d"),
        pytest.raises(Busy, match="another process is about to train this config"),
        claim_config(store, "k", "d", wait=False),
    ):
        pass


def test_waiting_ends_when_the_observer_asks_to_stop(store: Store) -> None:
    with (
        another_process(store, "k", "d"),
        pytest.raises(KeyboardInterrupt),
        claim_config(store, "k", "d", observer=Watch(lambda: True)),
    ):
        pass


def test_a_study_is_run_by_one_process(store: Store) -> None:
    with claim_name(store, "study", "s"), claim_name(store, "search", "s"), claim_name(store, "study", "t"):
        pass
    with (
        another_process(store, "study", "s"),
        pytest.raises(Busy, match="another process is running the study 's': wait until it ends"),
        claim_name(store, "study", "s"),
    ):
        pass


def test_a_home_that_cannot_be_written_is_an_error_of_one_line(store: Store) -> None:
    (store.folder / "locks").write_text("a file where the folder of locks belongs")
    with pytest.raises(RunFailed, match=r"can't write to .*locks"), claim_config(store, "k", "d"):
        pass
