"""Write to the record of runs: start and copy runs, and log to one through a `Tracker`."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow.entities import RunTag

from experiments.tracking import local
from experiments.tracking.datasets import datasets_of
from experiments.tracking.sending import BEGAN, now
from experiments.tracking.store import HOME, PARENT, PROTOCOL, Record, Store
from simclr.errors import RunFailed, UserError

LOCK_SECONDS = 10.0  # a process that checks whether this run was killed holds its lock for a moment

LONGEST_TAG = 5000  # characters
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow shows as the description of a run

Point = list[str | float | int]


class Tracker:
    """Writes to one run. Writes return at once and are sent in the background; reading waits until they were."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.run_id = store, run_id

    def record(self) -> Record:
        """The run, with everything that was written to it. Raises RunFailed if the store doesn't respond."""
        return self.store.get(self.run_id)

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record metrics. Raises RunFailed if the disk is full, or if the store refuses what is recorded."""
        self.log_points([[key, float(value), now(), step] for key, value in metrics.items()])

    def log_points(self, points: list[Point]) -> None:
        """Record points of metrics: the metric, its value, the time in milliseconds, and the step."""
        self.store.sender.put(self.run_id, metrics=points)

    def tag(self, tags: Mapping[str, object]) -> None:
        """Set tags of the run. Values over 5,000 characters are cut."""
        self.store.sender.put(self.run_id, tags={key: str(value)[:LONGEST_TAG] for key, value in tags.items()})

    def describe(self, text: str) -> None:
        """Set the description on the run's page, in Markdown. Over 5,000 characters are cut."""
        self.tag({DESCRIPTION: text})

    def dataset(self, name: str, digest: str, source: str, counts: Mapping[str, int]) -> None:
        """Record which images the run uses: their name, digest (up to 27 characters) and place, and how many."""
        profile = json.dumps(counts)
        described = {
            "name": name[:500],
            # MLflow keeps the first profile of all that have the same name and digest.
            "digest": f"{digest}-{zlib.crc32(profile.encode()):08x}",
            "source_type": "local",
            "source": json.dumps({"uri": source}),
        }
        self.store.sender.put(self.run_id, dataset=described | {"profile": profile})

    def rename(self, name: str) -> None:
        """Give the run another name."""
        self.store.sender.call(partial(self.store.client.update_run, self.run_id, name=name))

    def tag_protocols(self, identities: Mapping[str, str]) -> None:
        """Record under which protocol each evaluated metric was measured."""
        self.tag({f"{PROTOCOL}{metric}": identity for metric, identity in identities.items()})

    def artifact(self, name: str, write: Callable[[Path], object]) -> None:
        """Keep the file that `write(path)` writes with the run, under this name."""
        try:
            self.store.sender.put_file(self.run_id, name, write)
        except OSError as error:
            raise RunFailed(
                f"can't write the file {name}: {error}. Free some space and run the command again"
            ) from error

    def sync(self) -> None:
        """Return when everything that was written is in the store or on the disk. It never waits for the store.

        Raises RunFailed if the disk is full, or if the store refuses what is recorded.
        """
        self.store.sender.sync(self.run_id)

    def flush(self) -> None:
        """Return when everything that was written is in the store. Raises RunFailed if the store doesn't respond."""
        self.store.sender.flush(self.run_id)

    def finish(self, status: str) -> None:
        """Close the run with a status, after everything else was sent. Raises RunFailed if the store doesn't respond.

        The next command then sends what is left, and the status.
        """
        try:
            self.store.sender.put(self.run_id, status=status, ended=now())
        finally:
            self.flush()

    @contextmanager
    def finishing(self, stopped: type[BaseException]) -> Iterator[Tracker]:
        """Close the run at the end: FINISHED, KILLED or FAILED (with the tag `error`).

        It is KILLED after `stopped` or Ctrl-C, or if nobody reads what it prints any more.

        Meanwhile the run has the status RUNNING and is locked, so that only one process trains it.
        """
        lock = self._lock()
        status = "FAILED"
        try:
            self.store.sender.call(self._begin)
            yield self
            status = "FINISHED"
        except (stopped, KeyboardInterrupt, BrokenPipeError):
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

    def _begin(self) -> None:
        """Mark the run as running. What another process recorded of it before, and sends later, won't change that."""
        tags = {BEGAN: time.time_ns(), HOME: local.owner(self.store.folder)}
        self.store.client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
        self.store.client.update_run(self.run_id, "RUNNING")

    def _lock(self) -> FileLock:
        path = self.store.lock_file(self.run_id)
        try:
            for folder in (path.parent, self.store.run_folder(self.run_id)):
                folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            lock.acquire(LOCK_SECONDS)
        except Timeout:
            raise UserError(f"another process is training run {self.run_id[:8]}: wait until it ends") from None
        except OSError as error:
            with suppress(RunFailed):
                self.finish("FAILED")
            raise RunFailed(f"can't write to {error.filename or path}: {error}. Free some space") from error
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
    began, attempts = now(), count()

    def create() -> str:
        if next(attempts):  # the store may have carried out an attempt whose answer was lost
            same = store.client.search_runs([store.experiment], f"attributes.start_time = {began}")
            for run in same:
                if run.info.run_name == name and all_tags.items() <= run.data.tags.items():
                    return str(run.info.run_id)
        return str(store.client.create_run(store.experiment, began, all_tags, name).info.run_id)

    tracker = Tracker(store, store.sender.call(create))
    store.sender.put(tracker.run_id, params={key: str(value) for key, value in params.items()})
    return tracker


def copy_run(store: Store, record: Record, kind: str, tags: Mapping[str, str], *, parent: str) -> Record:
    """A new, finished run with the params, tags, images and metrics of another one, under a parent.

    It names its source.
    """
    own = {**record.tags, "kind": kind, **tags, "copied_from": record.id}
    original = store.sender.call(store.client.get_run, record.id)
    tracker = start_run(store, record.name, kind, original.data.params, own, parent=parent)
    for dataset in datasets_of(original):
        store.sender.put(tracker.run_id, dataset=dataset)
    for metric in record.metrics:
        tracker.log_points([[p.key, p.value, p.timestamp, p.step] for p in store.points(record.id, metric)])
    tracker.tag_protocols(record.protocols)  # last: a metric whose protocol is tagged is complete
    tracker.finish("FINISHED")
    return tracker.record()
