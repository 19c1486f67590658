"""Leases: claims of work in a record that several homes use, each of which lives as long as its process renews it.

A lease is a tag of the experiment. To take one, a process writes its tag and then reads those of others: if there are
any, it removes its own and tries again later. Of two processes, whichever reads last sees the other's tag, so they
never both hold the work.
"""

from __future__ import annotations

import logging
import platform
import threading
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException

from experiments.tracking import local
from experiments.tracking.faults import Refused
from simclr.errors import RunFailed

if TYPE_CHECKING:
    from experiments.tracking.store import Store

RENEW_SECONDS = 10.0  # how often the holder changes the value of its tag
LEASE_SECONDS = 180.0  # after which a tag that has not changed belongs to a process that died
RESOURCE_MISSING = "RESOURCE_DOES_NOT_EXIST"  # what MLflow says of a tag that is not there
LEASE = "mlflow.simclr.lease."  # MLflow's pages hide tags that begin so


class Lease:
    """A claim of some work against other homes. Within a home, only one process at a time may use it."""

    def __init__(self, store: Store, work: str) -> None:
        """`work` is made of letters and digits."""
        self.store = store
        self.prefix = f"{LEASE}{work}."
        self.tag = self.prefix + local.owner(store.folder)  # of this home, also if an earlier process of it died
        self.rival = False  # whether another home has been seen to renew a lease of this work
        self._seen: dict[str, tuple[str, float]] = {}  # by the tag of another: its value, and when that was first read
        self._read = -inf  # when they were last read
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquired(self) -> bool:
        """Whether the lease could be taken. Raises RunFailed if the store doesn't respond."""
        if self._others():
            return False
        self.store.sender.call(self._renew)
        if self._others():
            self._remove(self.tag)
            return False
        self._ended.clear()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Give the lease back. If the store doesn't respond, it ends after LEASE_SECONDS."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()  # otherwise it might renew what is removed
            try:
                self._remove(self.tag)
            except Refused as error:
                logging.getLogger(__name__).warning("%s. Other machines wait for %.0f s", error, LEASE_SECONDS)
            except RunFailed:
                pass

    def _others(self) -> list[str]:
        """The tags of others who claim this work. Those of processes that died are removed."""
        experiment = self.store.sender.call(self.store.client.get_experiment, self.store.experiment)
        found = {tag: value for tag, value in experiment.tags.items() if tag.startswith(self.prefix)}
        found.pop(self.tag, None)
        now, before = monotonic(), self._seen
        if now - self._read > LEASE_SECONDS / 4:  # if the store did not respond, nobody could renew a lease meanwhile
            before = {}
        self._read, self._seen = now, {}
        for tag, value in found.items():
            known, since = before.get(tag, (value, now))
            self.rival |= known != value
            self._seen[tag] = (value, since if known == value else now)
            if now - self._seen[tag][1] > LEASE_SECONDS:
                self._remove(tag)
                del self._seen[tag]
        return list(self._seen)

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with suppress(Exception):  # the next time may succeed
                self._renew()

    def _renew(self) -> None:
        self.store.client.set_experiment_tag(self.store.experiment, self.tag, f"{platform.node()} {monotonic()}")

    def _remove(self, tag: str) -> None:
        """Between reading that a tag is old and this, its process may renew it: it then writes it again soon."""
        try:
            self.store.sender.call(self.store.client.delete_experiment_tag, self.store.experiment, tag)
        except Refused as refusal:
            cause = refusal.__cause__
            if not isinstance(cause, MlflowException) or cause.error_code != RESOURCE_MISSING:  # not removed by others
                raise
