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

LOOK_SECONDS = 2.0  # how often the record is asked how far along the runs are
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


class Flight(NamedTuple):
    """A task that was started and has not ended."""

    job: Job
    task: Task
    losses: int  # how often the job was lost before


class Remote:
    """Does jobs on a cluster, as many at the same time as there is room for."""

    several = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.driver = uuid.uuid4().hex
        self._flying: dict[str, Flight] = {}  # by the token of the task
        self._relayed: dict[str, int] = {}  # by run: the last step whose accuracy the watch was told

    def run(self, jobs: Iterable[Job], store: Store, observer: Observer) -> Iterator[Ended]:
        """See Pool. After an error, of a job's reader too, the runs that still train are stopped with a checkpoint."""
        try:
            yield from self._do(jobs, store, observer)
        except KeyboardInterrupt:  # they have stopped, or the user doesn't want to wait
            raise
        except BaseException:  # an error of whoever reads this arrives as GeneratorExit
            self._land(store, observer)
            raise

    def _do(self, jobs: Iterable[Job], store: Store, observer: Observer) -> Iterator[Ended]:
        waiting, held, origin = iter(jobs), list[Job](), Origin.of(store, self.driver)
        while True:
            while len(self._flying) < self.engine.slots and not observer.stop():
                if (job := self._next(waiting, held)) is None:
                    break
                self._start(job, origin, 0)
            if not self._flying:
                if observer.stop():
                    raise KeyboardInterrupt
                return
            # All have landed before the first is read, whose reader may raise an error.
            ended = [(self._flying.pop(token), outcome) for token, outcome in self.engine.ended(LOOK_SECONDS)]
            for flight, outcome in ended:
                if isinstance(outcome, Lost):
                    self._end_lost(store, flight.task.token)
                    if not observer.stop() and (failed := self._again(flight, outcome, origin, observer)) is not None:
                        yield failed
                    continue
                for text in outcome.said:
                    observer.say(f"{flight.job.name}, on {outcome.host}: {text}")
                if outcome.stopped is None:
                    yield Ended(flight.job, outcome.answer, outcome.error)
                elif not observer.stop():
                    yield Ended(flight.job, error=Interrupted(outcome.stopped))
            self._look(store, observer)

    def _land(self, store: Store, observer: Observer) -> None:
        """Ask all that fly to stop, and wait for them."""
        if self._flying:
            observer.say(f"stopping the other runs on the cluster ({len(self._flying)}): saving checkpoints")
        with suppress(UserError, RunFailed):  # the cluster is gone
            while self._flying:
                self._look(store, observer, stop=True)
                for token, outcome in self.engine.ended(LOOK_SECONDS):
                    del self._flying[token]
                    if isinstance(outcome, Lost):
                        self._end_lost(store, token)

    def _next(self, waiting: Iterator[Job], held: list[Job]) -> Job | None:
        """The next job whose run no other job is about. Those of `held` come first; others are added to it."""
        busy = {flight.job.key for flight in self._flying.values()}
        for job in held:
            if job.key not in busy:
                held.remove(job)
                return job
        for job in waiting:
            if job.key not in busy:
                return job
            held.append(job)
        return None

    def _start(self, job: Job, origin: Origin, losses: int) -> None:
        task = Task(origin, uuid.uuid4().hex, job.name, job.call, job.arguments)
        self._flying[task.token] = Flight(job, task, losses)
        self.engine.start(task)

    def _again(self, flight: Flight, lost: Lost, origin: Origin, observer: Observer) -> Ended | None:
        """Start a lost job again, or return it as failed."""
        if flight.losses == RETRIES:
            return Ended(flight.job, error=RunFailed(f"{lost.reason}, for the {RETRIES + 1}th time"))
        where = "from its last checkpoint if the next machine can read it"
        observer.say(f"{flight.job.name}: {lost.reason}, so it is started again, {where}")
        self._start(flight.job, origin, flight.losses + 1)
        return None

    def _end_lost(self, store: Store, token: str) -> None:
        with suppress(RunFailed):  # without the record it stays RUNNING until its config is claimed again
            end_lost(store, self.driver, token)

    def _look(self, store: Store, observer: Observer, *, stop: bool = False) -> None:
        """Tell the watch of each job, and the observer, how far its run is, and pass on the wish to stop.

        `stop` asks all to stop. If the record doesn't respond, runs go on, and the next look tries again.
        """
        shown = []
        try:
            found: dict[str, Running] = {run.token: run for run in running(store, self.driver)}
            for token, flight in self._flying.items():
                run, name = found.get(token), flight.job.name
                if run is None:
                    shown.append(Elsewhere(name))
                    if stop or observer.stop():
                        self.engine.cancel(token)
                    continue
                shown.append(Elsewhere(name, run.host, run.step, run.steps, run.metrics))
                self._relay(store, run, flight.job.watch)
                if stop or flight.job.watch.stop():
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
