"""Jobs on a cluster: how many at the same time, what is tried again, and how they are asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from experiments.runs.encoders import WeightsMissing
from experiments.runs.expected import Expected
from experiments.tracking import signals
from experiments.tracking.claims import Busy
from experiments.tracking.signals import Running
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from experiments.workers import remote
from experiments.workers.pool import HERE, Job
from experiments.workers.remote import RETRIES, Remote
from experiments.workers.task import Lost, Origin, Outcome, Unfit, portable
from simclr import device as devices
from simclr.data.dataset import open_dataset
from simclr.errors import BadSettings, RunFailed, UserError
from simclr.progress import SILENT, Elsewhere, Observer
from simclr.train.loop import Interrupted
from tests.experiments.workers.helpers import Died, Threads
from tests.helpers import tiny


def answer(store: Store, observer: Observer, value: object) -> object:
    """A job."""
    observer.say(f"value {value}")
    if isinstance(value, Exception):
        raise value
    return value


def die(store: Store, observer: Observer, times: int) -> str:
    """A job whose process dies when it has begun to train, the first so many times."""
    observer.began(start_run(store, "mortal", "pretrain", {}).run_id, 100)
    if len(store.records(kind="pretrain")) <= times:
        raise Died
    return "alive"


def train_until_stopped(store: Store, observer: Observer) -> None:
    """A job that trains without end."""
    tracker = start_run(store, "endless", "pretrain", {})
    with tracker.finishing(Interrupted):
        observer.began(tracker.run_id, 100)
        step, end = 0, time.monotonic() + 300
        while not observer.stop():
            assert time.monotonic() < end, "nobody has asked it to stop"
            step = min(step + 1, 99)
            observer.metrics({"train/loss": 1.0}, step)
            tracker.log({"val/knn_top1": 0.25}, 50)
            time.sleep(0.01)
        raise Interrupted(step)


def jobs(*values: object, same: bool = False) -> list[Job]:
    return [Job(f"job {n}", "one" if same else str(n), answer, (value,), SILENT) for n, value in enumerate(values)]


def read(pool: Remote, todo: list[Job], store: Store, observer: Observer) -> None:
    """Read results as commands do. The traceback of a comprehension would keep the pool at work after an error."""
    for ended in pool.run(todo, store, observer):
        ended.result()


class Watch(Observer):
    """Keeps what it is told, and asks to stop as soon as `until` says so."""

    def __init__(self, until: Callable[[Watch], bool] = lambda watch: False) -> None:
        self.until = until
        self.said: list[str] = []
        self.seen: list[Elsewhere] = []
        self.told: list[tuple[float, int]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def elsewhere(self, runs: list[Elsewhere]) -> None:
        self.seen += runs

    def metrics(self, metrics: dict[str, float], step: int) -> None:
        self.told += [(value, step) for value in metrics.values()]

    def stop(self) -> bool:
        return self.until(self)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(signals, "BEAT_SECONDS", 0.02)


def test_jobs_are_done_as_many_at_once_as_there_is_room_for(store: Store) -> None:
    watch = Watch()
    with Threads(slots=3) as engine:
        ended = list(Remote(engine).run(jobs(*range(7)), store, watch))
    assert {each.job.name: each.result() for each in ended} == {f"job {n}": n for n in range(7)}
    assert engine.most == 3
    assert sum(": value " in text for text in watch.said) == 7


def test_a_job_is_taken_only_when_there_is_room(store: Store) -> None:
    taken: list[str] = []

    def one_by_one():  # type: ignore[no-untyped-def]
        for job in jobs(0, 1, 2):
            taken.append(job.name)
            yield job

    with Threads(slots=1) as engine:
        for count, _ in enumerate(Remote(engine).run(one_by_one(), store, SILENT), 1):
            assert len(taken) == count


def test_jobs_about_the_same_run_are_never_done_at_the_same_time(store: Store) -> None:
    with Threads(slots=3) as engine:
        assert len(list(Remote(engine).run(jobs(1, 2, 3, same=True), store, SILENT))) == 3
    assert engine.most == 1


@pytest.mark.parametrize("error", [UserError("bad"), BadSettings("diverged"), RunFailed("full"), Busy("busy")])
def test_the_error_of_a_job_arrives_as_it_was_raised(error: Exception, store: Store) -> None:
    with Threads() as engine:
        here, there = (next(pool.run(jobs(error), store, SILENT)) for pool in (HERE, Remote(engine)))
    for ended in (here, there):
        with pytest.raises(type(error), match=str(error)):
            ended.result()


def test_no_job_begins_after_a_stop_even_if_none_has_trained_meanwhile(store: Store) -> None:
    ended: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        ended.extend(each.answer for each in HERE.run(jobs(1, 2, 3), store, Watch(lambda _: len(ended) == 2)))
    assert ended == [1, 2]


def test_a_bug_and_an_unfit_machine_end_everything(store: Store) -> None:
    for error in (KeyError("a bug"), Unfit("n7 has other images")):
        with Threads() as engine, pytest.raises(type(error)) as raised:
            read(Remote(engine), jobs(1, error), store, SILENT)
        notes = getattr(raised.value, "__notes__", [])
        assert [isinstance(error, KeyError)] * len(notes) == ["raise value" in note for note in notes]
        assert len(notes) == isinstance(error, KeyError)


def test_an_error_that_cannot_be_pickled_arrives_as_its_text(store: Store) -> None:
    error = portable(WeightsMissing("the weights are gone", "train again"))
    assert type(error) is UserError
    assert str(error) == "the weights are gone: train again"


def test_after_an_error_the_runs_that_still_train_are_stopped_with_a_checkpoint(store: Store) -> None:
    """Also after an error of whoever reads what has ended, as in a search."""

    both = [Job("endless", "e", train_until_stopped, (), SILENT), Job("bad", "b", fail_beside, (), SILENT)]
    watch = Watch()
    with Threads() as engine, pytest.raises(RunFailed, match="full"):
        read(Remote(engine), [*both, *jobs("never started")], store, watch)
    assert engine.abandoned == []
    assert len(engine.started) == 2
    assert [record.status for record in store.records()] == ["KILLED"]
    assert "stopping the other runs on the cluster (1): saving checkpoints" in watch.said


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # of the engine, as the pool is closed
def test_after_an_error_nobody_waits_for_what_ended_with_it(store: Store) -> None:
    class Together(Threads):
        def ended(self, seconds: float) -> list[tuple[str, Outcome | Lost]]:
            wait(self._futures)
            return super().ended(seconds)

    with Together() as engine, pytest.raises(RunFailed, match="full"):
        read(Remote(engine), jobs(RunFailed("full"), RunFailed("full")), store, SILENT)


def fail_beside(store: Store, observer: Observer) -> None:
    """A job that fails when another one trains."""
    while not store.records(kind="pretrain"):
        time.sleep(0.01)
    raise RunFailed("full")


def test_an_outage_of_the_record_ends_no_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fails, works = count(), remote.running

    def running(*arguments: Any) -> list[Running]:
        if next(fails) < 3:
            raise RunFailed("the tracking store did not respond for 120 s")
        return works(*arguments)

    monkeypatch.setattr(remote, "running", running)
    watch = Watch(lambda watch: bool(watch.seen))
    with Threads() as engine, pytest.raises(KeyboardInterrupt):
        list(Remote(engine).run([Job("endless", "e", train_until_stopped, (), watch)], store, watch))
    assert next(fails) > 3
    assert [record.status for record in store.records()] == ["KILLED"]


def test_a_lost_job_is_started_again_and_its_run_does_not_look_alive(store: Store) -> None:
    watch = Watch()
    with Threads() as engine:
        ended = list(Remote(engine).run([*jobs("a"), Job("mortal", "m", die, (1,), SILENT)], store, watch))
    assert sorted(each.result() for each in ended) == ["a", "alive"]
    assert [task.name for task in engine.started].count("mortal") == 2
    assert "mortal: the machine is gone, so it is started again, from its last checkpoint" in watch.said
    assert [record.status for record in store.records()] == ["RUNNING", "KILLED"]  # the job of this test ends no run


def test_checkpoints_can_be_read_everywhere_if_the_record_or_their_folder_is_shared(store: Store) -> None:
    here = Origin.of(store, "driver")
    assert here.shares_checkpoints
    assert not replace(here, database=None).shares_checkpoints
    assert replace(here, database=None, variables={"SIMCLR_CHECKPOINTS": "/shared"}).shares_checkpoints


def test_a_job_that_is_lost_again_and_again_has_failed(store: Store) -> None:
    with Threads() as engine:
        (ended,) = Remote(engine).run([Job("mortal", "m", die, (9,), SILENT)], store, SILENT)
    assert len(engine.started) == RETRIES + 1
    with pytest.raises(RunFailed, match="the machine is gone, for the 4th time"):
        ended.result()
    assert {record.status for record in store.records()} == {"KILLED"}


def test_a_task_that_waits_is_cancelled_when_all_should_stop(store: Store) -> None:
    """The engine has room for fewer tasks than it says."""
    watch = Watch(lambda watch: any(each.step > 0 for each in watch.seen))
    endless = [Job(f"endless {n}", str(n), train_until_stopped, (), watch) for n in range(2)]
    with Threads(slots=2, threads=1) as engine, pytest.raises(KeyboardInterrupt):
        list(Remote(engine).run(endless, store, watch))
    assert engine.started[1].token in engine.cancelled
    assert [record.status for record in store.records()] == ["KILLED"]


def test_the_watch_of_a_job_can_stop_it(store: Store) -> None:
    """As Optuna does to prune a trial: its accuracies arrive, and only this run stops."""
    pruner, watch = Watch(lambda watch: bool(watch.told)), Watch()
    both = [Job("endless", "e", train_until_stopped, (), pruner), *jobs("a")]
    with Threads() as engine:
        ended = {each.job.name: each for each in Remote(engine).run(both, store, watch)}
    assert ended["job 0"].result() == "a"
    with pytest.raises(Interrupted):
        ended["endless"].result()
    assert pruner.told == [(0.25, 50)]
    assert {each.status for each in store.records()} == {"KILLED"}
    assert any(each.name == "endless" and each.host and 0 < each.step < each.steps == 100 for each in watch.seen)


def test_a_request_to_stop_reaches_all(store: Store) -> None:
    watch = Watch(lambda watch: sum(each.step > 0 for each in watch.seen) >= 2)
    endless = [Job(f"endless {n}", str(n), train_until_stopped, (), watch) for n in range(4)]
    with Threads(slots=2) as engine, pytest.raises(KeyboardInterrupt):
        list(Remote(engine).run(endless, store, watch))
    assert len(engine.started) == 2
    assert [each.status for each in store.records()] == ["KILLED"] * 2


def test_another_machine_needs_a_server_and_finds_shared_checkpoints(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIMCLR_CHECKPOINTS", str(tmp_path / "shared"))
    origin = Origin.of(store, "d")
    monkeypatch.delenv("SIMCLR_CHECKPOINTS")
    assert origin.store().run_folder("r") == tmp_path / "shared" / "r"  # in another process, this comes with the task
    monkeypatch.setattr("platform.node", lambda: "n7")
    with pytest.raises(Unfit, match=r"the record is the file .*, and n7 can't use it.*set MLFLOW_TRACKING_URI"):
        origin.store()


def test_a_machine_that_cannot_compute_alike_is_unfit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(train={"precision": "auto"})
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: True)
    expected = Expected.of(config, open_dataset(config.data, store.folder).identity)
    assert expected.precision == "bf16"
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: False)
    with pytest.raises(
        Unfit, match=r"auto means bf16 on the machine where the command was started, but .* is slow in it"
    ):
        expected.prepare(config, store.folder)
    assert expected.prepare(tiny(), store.folder).config.train.precision == "fp32"
