"""An engine that does tasks in threads of this process. It can lose them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Self

from experiments.workers.task import Lost, Outcome, Task


class Threads:
    """An Engine. `loses` says of each task that ended whether its machine died just before."""

    name = "threads"

    def __init__(self, slots: int = 2, loses: Callable[[Task], bool] = lambda task: False) -> None:
        self.slots, self.loses = slots, loses
        self.started: list[Task] = []
        self.most = 0  # tasks at the same time
        self._futures: dict[Future[Outcome], Task] = {}
        self._threads = ThreadPoolExecutor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def start(self, task: Task) -> None:
        self.started.append(task)
        self._futures[self._threads.submit(lambda text: pickle.loads(text)(), pickle.dumps(task))] = task
        self.most = max(self.most, len(self._futures))

    def ended(self, seconds: float) -> list[tuple[str, Outcome | Lost]]:
        done, _ = wait(self._futures, seconds, FIRST_COMPLETED)
        found: list[tuple[str, Outcome | Lost]] = []
        for future in done:
            task = self._futures.pop(future)
            lost = self.loses(task)
            found.append(
                (task.token, Lost("the machine is gone") if lost else pickle.loads(pickle.dumps(future.result())))
            )
        return found

    def cancel(self, token: str) -> None:
        for future, task in self._futures.items():
            if task.token == token:
                future.cancel()
