"""An engine that does tasks in threads of this process, which can die like processes on other machines."""

from __future__ import annotations

import pickle
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Self

from experiments.workers.task import Lost, Outcome, Task


class Died(BaseException):
    """What a job raises so that its task is lost: nothing that comes after it happens."""


class Threads:
    """An Engine. Like the others, it ends the tasks that still run when its context is left: they are `abandoned`."""

    def __init__(self, slots: int = 2, threads: int | None = None) -> None:
        self.slots = slots
        self.started: list[Task] = []
        self.cancelled: list[str] = []
        self.abandoned: list[Task] = []
        self.most = 0  # tasks at the same time
        self._futures: dict[Future[Outcome], Task] = {}
        self._threads = ThreadPoolExecutor(threads or slots)  # further tasks wait

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandoned = list(self._futures.values())
        self._threads.shutdown()

    def start(self, task: Task) -> None:
        self.started.append(task)
        self._futures[self._threads.submit(lambda text: pickle.loads(text)(), pickle.dumps(task))] = task
        self.most = max(self.most, len(self._futures))

    def ended(self, seconds: float) -> list[tuple[str, Outcome | Lost]]:
        assert self._futures, "a task that has ended is waited for"
        done, _ = wait(self._futures, seconds, FIRST_COMPLETED)
        return [(self._futures.pop(future).token, outcome(future)) for future in done]

    def cancel(self, token: str) -> None:
        self.cancelled.append(token)
        for future, task in self._futures.items():
            if task.token == token:
                future.cancel()


def outcome(future: Future[Outcome]) -> Outcome | Lost:
    if future.cancelled() or isinstance(future.exception(), Died):
        return Lost("the machine is gone")
    answer: Outcome = pickle.loads(pickle.dumps(future.result()))
    return answer
