"""Write to the record of runs: start and copy runs, and log to one through a `Tracker`."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from experiments.tracking.store import PARENT, PROTOCOL, Record, Store, first_line
from simclr.errors import RunFailed, UserError

FLUSH_SECONDS = 2.0
LOCK_SECONDS = 10.0  # a process that looks whether this run was killed holds its lock for a moment
PATIENCE_SECONDS = 300.0  # how long training continues while a locked database or a dead server refuses metrics
REMEDIES = {  # by what a database or MLflow says
    "disk is full": ". Free some space there",
    "locked": ". Close the program that is using the database",
    "readonly": ". Make the folder writable, or set SIMCLR_HOME to another one",
    "Current state is deleted": " It was deleted in MLflow: restore it there, and run the command again",
}


@contextmanager
def _write_errors(store: Store) -> Iterator[None]:
    """A failed write becomes a RunFailed."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        reason = first_line(error)
        remedy = next((remedy for part, remedy in REMEDIES.items() if part in reason), "")
        raise RunFailed(f"can't write to the tracking store in {store.folder}: {reason}{remedy}") from error


class Tracker:
    """Writes to one run. Metrics are collected and sent every FLUSH_SECONDS."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.run_id = store, run_id
        self.pending: list[Metric] = []
        self._sent_at = time.monotonic()  # when sending was last attempted
        self._refused_since: float | None = None

    def record(self) -> Record:
        """The run as the store has it now."""
        return self.store.get(self.run_id)

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Collect metrics, and send them now and then. A store that refuses them for PATIENCE_SECONDS is an error."""
        now = int(time.time() * 1000)
        self.pending += [Metric(key, float(value), now, step) for key, value in metrics.items()]
        if time.monotonic() - self._sent_at > FLUSH_SECONDS:
            try:
                self.flush()
            except RunFailed:
                self._refused_since = self._sent_at if self._refused_since is None else self._refused_since
                if self._sent_at - self._refused_since > PATIENCE_SECONDS:
                    raise

    def flush(self) -> None:
        """Send the collected metrics. Raises RunFailed if the store refuses them; they are then kept."""
        self._sent_at = time.monotonic()
        while self.pending:
            self._send(metrics=self.pending[:1000])  # MLflow's limit for one call
            self.pending = self.pending[1000:]
        self._refused_since = None

    def tag(self, tags: Mapping[str, object]) -> None:
        """Set tags of the run. Values over 5,000 characters are cut."""
        self._send(tags=[RunTag(key, str(value)[:5000]) for key, value in tags.items()])

    def tag_protocols(self, identities: Mapping[str, str]) -> None:
        """Record under which protocol each evaluated metric was measured."""
        self.tag({f"{PROTOCOL}{metric}": identity for metric, identity in identities.items()})

    def _send(self, **entries: Any) -> None:
        with _write_errors(self.store):
            self.store.client.log_batch(self.run_id, **entries)

    def artifact(self, name: str, write: Callable[[Path], object]) -> None:
        """Keep the file that `write(path)` writes with the run, under this name."""
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, _write_errors(self.store):
                path = Path(scratch) / name
                write(path)
                self.store.keep(self.run_id, path)
        except OSError as error:
            raise RunFailed(
                f"can't write the file {name}: {error}. Free some space and run the command again"
            ) from error

    def finish(self, status: str) -> None:
        """Send what is left and close the run with a status. Raises RunFailed if the store can't be written."""
        try:
            self.flush()
        finally:
            with _write_errors(self.store):
                self.store.client.set_terminated(self.run_id, status)

    @contextmanager
    def finishing(self, stopped: type[BaseException]) -> Iterator[Tracker]:
        """Close the run at the end: FINISHED, KILLED after `stopped` or Ctrl-C, or FAILED (with the tag `error`).

        Meanwhile the run has the status RUNNING and its folder is locked, so that only one process trains it.
        """
        lock = self._lock()
        status = "FAILED"
        try:
            with _write_errors(self.store):
                self.store.client.update_run(self.run_id, status="RUNNING")
            yield self
            status = "FINISHED"
        except (stopped, KeyboardInterrupt):
            status = "KILLED"
            raise
        except BaseException as error:
            with suppress(RunFailed):
                self.tag({"error": f"{type(error).__name__}: {error}"})
            raise
        finally:
            try:
                self.finish(status)
            except RunFailed:
                if status == "FINISHED":  # otherwise the reason why the run ended matters more
                    raise
            finally:
                lock.release()

    def _lock(self) -> FileLock:
        folder = self.store.run_folder(self.run_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "lock")
            lock.acquire(LOCK_SECONDS)
        except Timeout:
            raise UserError(f"another process is training run {self.run_id[:8]}: wait until it ends") from None
        except OSError as error:
            with suppress(RunFailed):
                self.finish("FAILED")
            raise RunFailed(f"can't write to {folder}: {error}. Free some space") from error
        return lock


def start_run(
    store: Store,
    name: str,
    kind: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    *,
    parent: str | None = None,
) -> Tracker:
    """A new run, with the status RUNNING."""
    all_tags = {"kind": kind, **(tags or {})} | ({PARENT: parent} if parent else {})
    with _write_errors(store):
        run = store.client.create_run(store.experiment, tags=all_tags, run_name=name)
        store.client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in params.items()])
    return Tracker(store, run.info.run_id)


def copy_run(store: Store, record: Record, kind: str, tags: Mapping[str, str], *, parent: str) -> Record:
    """A new, finished run with the params, tags and metrics of another one, under a parent. It names its source."""
    own = {**record.tags, "kind": kind, **tags, "copied_from": record.id}
    tracker = start_run(store, record.name, kind, record.params, own, parent=parent)
    for metric in record.metrics:
        tracker.pending += store.points(record.id, metric)
    tracker.flush()
    tracker.tag_protocols(record.protocols)  # last: a metric whose protocol is tagged is complete
    tracker.finish("FINISHED")
    return tracker.record()
