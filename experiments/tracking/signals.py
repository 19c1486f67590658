"""How a process that gives out runs and those that train them exchange signals, through tags of the runs.

A run says which task trains it, where, and how far along it is. The driver asks it to stop. Nothing but the record is
needed for that, so it works on every kind of cluster.
"""

from __future__ import annotations

import json
import platform
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

from mlflow.entities import RunTag, ViewType
from mlflow.exceptions import MlflowException

from experiments.tracking.store import Store
from simclr.progress import Forwarding, Observer

BEAT_SECONDS = 4.0  # how often a run says how far along it is, and checks whether it should stop

# MLflow's pages hide tags that begin so.
DRIVER = "mlflow.simclr.driver"  # which process gave out the run
TASK = "mlflow.simclr.task"  # JSON: the token of the task that trains it, its host, the steps done and in all
STOP = "mlflow.simclr.stop"  # the token of the task that should stop


class Running(NamedTuple):
    """A run that a task trains at this moment."""

    id: str
    token: str  # of the task
    host: str
    step: int  # steps that are done
    steps: int  # and in all
    metrics: Mapping[str, float]  # the latest value of each


def running(store: Store, driver: str) -> list[Running]:
    """The runs that are being trained for a driver. Raises RunFailed if the store doesn't respond."""
    condition = f"attributes.status = 'RUNNING' and tags.`{DRIVER}` = '{driver}'"
    found = store.sender.call(store.client.search_runs, [store.experiment], condition, ViewType.ACTIVE_ONLY, 1000)
    return [Running(run.info.run_id, **json.loads(run.data.tags[TASK]), metrics=run.data.metrics) for run in found]


def ask_to_stop(store: Store, run: Running) -> None:
    """Ask the task that trains a run to stop when its state is saved. It sees that within BEAT_SECONDS."""
    store.sender.call(store.client.set_tag, run.id, STOP, run.token)


def end_lost(store: Store, driver: str, token: str) -> None:
    """Give the run of a task that died the status KILLED."""
    for run in running(store, driver):
        if run.token == token:
            store.sender.call(store.client.set_terminated, run.id, "KILLED")


class Signals(Forwarding):
    """Passes on what a task reports, and says in the record how far its run is. Use it as a context manager.

    If the record doesn't respond, the run continues, and the next beat tries again.
    """

    def __init__(self, store: Store, driver: str, token: str, observer: Observer) -> None:
        super().__init__(observer)
        self.store, self.driver, self.token = store, driver, token
        self.run_id, self.step, self.steps = "", 0, 0
        self._stopping = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="signals", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def began(self, run_id: str, steps: int) -> None:
        super().began(run_id, steps)
        self.run_id, self.step, self.steps = run_id, 0, steps
        self._signal()
        if self._thread.ident is None:
            self._thread.start()

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        super().metrics(metrics, step)
        self.step = step

    def stop(self) -> bool:
        return self._stopping or super().stop()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._signal()

    def _signal(self) -> None:
        task = {"token": self.token, "host": platform.node(), "step": self.step, "steps": self.steps}
        tags = [RunTag(DRIVER, self.driver), RunTag(TASK, json.dumps(task))]
        with suppress(MlflowException):
            self.store.client.log_batch(self.run_id, tags=tags)
            self._stopping |= self.store.client.get_run(self.run_id).data.tags.get(STOP) == self.token
