"""Jobs on a cluster: how many at the same time, what is tried again, and how they are asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.runs.expected import Expected
from experiments.tracking import signals
from experiments.tracking.claims import Busy
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from experiments.workers import remote
from experiments.workers.pool import HERE, Job
from experiments.workers.remote import RETRIES, Remote
from experiments.workers.task import Origin, Task, Unfit
from simclr import device as devices
from simclr.data.dataset import open_dataset
from simclr.errors import BadSettings, RunFailed, UserError
from simclr.progress import SILENT, Elsewhere, Observer
from simclr.train.loop import Interrupted
from tests.experiments.workers.helpers import Threads
from tests.helpers import tiny


def answer(store: Store, observer: Observer, value: object) -> object:
    """A job."""
    observer.say(f"value {value}")
    if isinstance(value, Exception):
        raise value
    return value


def train_until_stopped(store: Store, observer: Observer) -> None:
    """A job that trains without end."""
    tracker = start_run(store, "endless", "pretrain", {})
    with tracker.finishing(Interrupted):
        observer.began(tracker.run_id, 100)
        step = 0
        while not observer.stop():
            step = min(step + 1, 99)
            observer.metrics({"train/loss": 1.0}, step)
            tracker.log({"val/knn_top1": 0.25}, 50)
            time.sleep(0.01)
        raise Interrupted(step)


def jobs(*values: object, same: bool = False) -> list[Job]:
    return [Job(f"job {n}", "one" if same else str(n), answer, (value,), SILENT) for n, value in enumerate(values)]


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
    monkeypatch.setattr(remote, "LOOK_SECONDS", 0.02)
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


def test_a_bug_and_an_unfit_machine_end_everything(store: Store) -> None:
    for error in (KeyError("a bug"), Unfit("n7 has other images")):
        with Threads() as engine, pytest.raises(type(error)):
            list(Remote(engine).run(jobs(1, error), store, SILENT))


def test_a_lost_job_is_started_again(store: Store) -> None:
    lost: list[str] = []

    def once(task: Task) -> bool:
        lost.append(task.name)
        return task.name == "job 1" and lost.count("job 1") == 1

    watch = Watch()
    with Threads(loses=once) as engine:
        ended = list(Remote(engine).run(jobs("a", "b"), store, watch))
    assert sorted(each.result() for each in ended) == ["a", "b"]
    assert [task.name for task in engine.started].count("job 1") == 2
    assert any(text.startswith("job 1: the machine is gone, so it is started again") for text in watch.said)


def test_a_job_that_is_lost_again_and_again_has_failed(store: Store) -> None:
    with Threads(loses=lambda task: True) as engine:
        (ended,) = Remote(engine).run(jobs("a"), store, SILENT)
    assert len(engine.started) == RETRIES + 1
    with pytest.raises(RunFailed, match="the machine is gone, for the 4th time"):
        ended.result()


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
    with Threads(slots=2) as engine, pytest.raises(Interrupted):
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
    with pytest.raises(Unfit, match="can't compute fast in bf16, which auto stands for where the command was started"):
        expected.prepare(config, store.folder)
    assert expected.prepare(tiny(), store.folder).config.train.precision == "fp32"
