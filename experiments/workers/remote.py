"""Do jobs on a cluster, through an engine: start them, watch their runs in the record, and start lost ones again."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple, Protocol

from experiments.tracking.signals import Running, ask_to_stop, end_lost, running
from experiments.tracking.store import Store
from experiments.workers.pool import Ended, Job
from experiments.workers.task import Lost, Origin, Outcome, Task
from simclr.errors import RunFailed, UserError
from simclr.progress import Elsewhere, Observer, knn_metric
from simclr.train.loop import Interrupted

POLL_SECONDS = 2.0  # how often the record is asked about the progress of the runs
RETRIES = 3  # how often a job is started again because its machine or process died


class Engine(AbstractContextManager["Engine"], Protocol):
    """A cluster that runs tasks, each in a process of its own on some machine. Leaving its context ends all of them."""

    @property
    def slots(self) -> int:
        """How many tasks can run at the same time now, at least 1. It is asked before each start."""

    def start(self, task: Task) -> None:
        """Send a task, which is picklable, to a machine that has room, and call it there; return at once.

        Raises UserError if no machine can ever run it.
        """

    def ended(self, seconds: float) -> list[tuple[str, Outcome | Lost]]:
        """The tokens of tasks that have ended since the last call, and how. Waits up to `seconds` for one.

        Lost: the machine or the process died, so that starting the job again makes sense. Raises UserError or RunFailed
        if the cluster is gone.
        """

    def cancel(self, token: str) -> None:
        """End a task that waits or that has not begun to train. It may be Lost then."""


class ActiveTask(NamedTuple):
    """A task that was started and has not ended."""

    job: Job
    task: Task
    times_lost: int  # how often the job was lost before


class Remote:
    """Does jobs on a cluster, as many at the same time as there is room for."""

    several = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.driver = uuid.uuid4().hex
        self._active: dict[str, ActiveTask] = {}  # by the token of the task
        self._relayed: dict[str, int] = {}  # by run: the last step whose accuracy was passed on to the job's watch

    def run(self, jobs: Iterable[Job], store: Store, observer: Observer) -> Iterator[Ended]:
        """See Pool. After an error, also of the caller, the runs that still train are stopped with a checkpoint."""
        try:
            yield from self._do(jobs, store, observer)
        except KeyboardInterrupt:  # the tasks have stopped, or the user doesn't want to wait
            raise
        except BaseException:  # an error of the caller that reads this arrives as GeneratorExit
            self._stop_all(store, observer)
            raise

    def _do(self, jobs: Iterable[Job], store: Store, observer: Observer) -> Iterator[Ended]:
        waiting, held, origin = iter(jobs), list[Job](), Origin.of(store, self.driver)
        while True:
            while len(self._active) < self.engine.slots and not observer.stop():
                if (job := self._next(waiting, held)) is None:
                    break
                self._start(job, origin, 0)
            if not self._active:
                if observer.stop():
                    raise KeyboardInterrupt
                return
            # Remove all that have ended before yielding the first, because its reader may raise an error.
            ended = [(self._active.pop(token), outcome) for token, outcome in self.engine.ended(POLL_SECONDS)]
            for active, outcome in ended:
                if isinstance(outcome, Lost):
                    self._end_lost(store, active.task.token)
                    if not observer.stop() and (failed := self._again(active, outcome, origin, observer)) is not None:
                        yield failed
                    continue
                for text in outcome.said:
                    observer.say(f"{active.job.name}, on {outcome.host}: {text}")
                if outcome.stopped is None:
                    yield Ended(active.job, outcome.answer, outcome.error)
                elif not observer.stop():
                    yield Ended(active.job, error=Interrupted(outcome.stopped))
            self._report(store, observer)

    def _stop_all(self, store: Store, observer: Observer) -> None:
        """Ask all active tasks to stop, and wait for them."""
        if self._active:
            observer.say(f"stopping the other runs on the cluster ({len(self._active)}): saving checkpoints")
        with suppress(UserError, RunFailed):  # the cluster is gone
            while self._active:
                self._report(store, observer, stop=True)
                for token, outcome in self.engine.ended(POLL_SECONDS):
                    del self._active[token]
                    if isinstance(outcome, Lost):
                        self._end_lost(store, token)

    def _next(self, waiting: Iterator[Job], held: list[Job]) -> Job | None:
        """The next job whose run no active job has. Those of `held` come first; jobs that must wait are added to it."""
        busy = {active.job.key for active in self._active.values()}
        for job in held:
            if job.key not in busy:
                held.remove(job)
                return job
        for job in waiting:
            if job.key not in busy:
                return job
            held.append(job)
        return None

    def _start(self, job: Job, origin: Origin, times_lost: int) -> None:
        task = Task(origin, uuid.uuid4().hex, job.name, job.call, job.arguments)
        self._active[task.token] = ActiveTask(job, task, times_lost)
        self.engine.start(task)

    def _again(self, active: ActiveTask, lost: Lost, origin: Origin, observer: Observer) -> Ended | None:
        """Start a lost job again, or return it as failed."""
        if active.times_lost == RETRIES:
            return Ended(active.job, error=RunFailed(f"{lost.reason}, for the {RETRIES + 1}th time"))
        where = "from its last checkpoint"
        if not origin.shares_checkpoints:
            where += " if it is on the same machine, and otherwise from the beginning"
        observer.say(f"{active.job.name}: {lost.reason}, so it is started again, {where}")
        self._start(active.job, origin, active.times_lost + 1)
        return None

    def _end_lost(self, store: Store, token: str) -> None:
        with suppress(RunFailed):  # without the record it stays RUNNING until its config is claimed again
            end_lost(store, self.driver, token)

    def _report(self, store: Store, observer: Observer, *, stop: bool = False) -> None:
        """Tell the watch of each job, and the observer, how far its run is, and pass on requests to stop.

        `stop` asks all to stop. If the record doesn't respond, runs go on, and the next call tries again.
        """
        shown = []
        try:
            found: dict[str, Running] = {run.token: run for run in running(store, self.driver)}
            for token, active in self._active.items():
                run, name = found.get(token), active.job.name
                if run is None:
                    shown.append(Elsewhere(name))
                    if stop or observer.stop():
                        self.engine.cancel(token)
                    continue
                shown.append(Elsewhere(name, run.host, run.step, run.steps, run.metrics))
                self._relay(store, run, active.job.watch)
                if stop or active.job.watch.stop():
                    ask_to_stop(store, run)
        except RunFailed:
            return
        observer.elsewhere(shown)

    def _relay(self, store: Store, run: Running, watch: Observer) -> None:
        """Tell a watch the accuracies of its run that are new."""
        if name := knn_metric(run.metrics):
            for point in store.points(run.id, name):
                if point.step > self._relayed.get(run.id, 0):
                    self._relayed[run.id] = point.step
                    watch.metrics({name: point.value}, point.step)
