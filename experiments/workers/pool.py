"""Do the jobs of a study or a search: here one after another, or on a cluster (see remote.py) several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from experiments.tracking.store import Store
from simclr.progress import Observer


class Job(NamedTuple):
    """A run to train or evaluate, as a call of a function that needs nothing of this process.

    It is called with a store and an observer, and then the arguments. It must be a function of a module, and it and its
    arguments must be picklable, so that another machine can call it. It must be idempotent.
    """

    name: str  # what it is called in messages
    key: str  # jobs with the same key are about the same run, and are never done at the same time
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    watch: Observer  # stays in this process. It is told the metrics of the run, and asked whether the job should stop


class Ended(NamedTuple):
    """A job that ended."""

    job: Job
    answer: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        """What the job returned. Raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.answer


class Pool(Protocol):
    """Something that does jobs."""

    several: bool  # whether it does several jobs at the same time

    def run(self, jobs: Iterable[Job], store: Store, observer: Observer) -> Iterator[Ended]:
        """Do jobs, and yield each when it has ended. The next one is taken from `jobs` when there is room for it.

        Raises KeyboardInterrupt or Interrupted if the observer asks to stop, when all that had begun have stopped. They
        are also stopped if whoever reads this stops reading, or raises an error.
        """


class Here:
    """Does jobs in this process, one after another."""

    several = False

    def run(self, jobs: Iterable[Job], store: Store, observer: Observer) -> Iterator[Ended]:
        for position, job in enumerate(jobs):
            if position and observer.stop():  # the job before needed no training, or was about to end
                raise KeyboardInterrupt
            try:
                ended = Ended(job, job.call(store, job.watch, *job.arguments))
            except Exception as error:
                ended = Ended(job, error=error)
            yield ended


HERE = Here()
