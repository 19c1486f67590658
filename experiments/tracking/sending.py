"""Talk to the tracking store in a background thread. What was recorded and not sent yet is also in files.

All requests of a command to the store wait in one queue, so that it reads what it wrote before. A write returns
at once: its entry is in a journal, and a later command sends what this one could not.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from filelock import Timeout
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from experiments.tracking.datasets import log_datasets
from experiments.tracking.faults import Refused, first_line, is_lasting, is_mendable, may_pass, remedy
from experiments.tracking.journal import Journal
from simclr.errors import RunFailed

COLLECT_SECONDS = 2.0  # metrics of this time are sent together
RETRY_SECONDS = 2.0  # between two attempts
PATIENCE_SECONDS = 120.0  # how long a command waits for a store that doesn't respond
MOST_POINTS = 200  # in one request: a slow server then needs about a second

BEGAN = "mlflow.simclr.began"  # the tag of when a run last began, in ns. MLflow's pages hide such tags

T = TypeVar("T")

STARTED = time.time_ns()
NUMBERS = count()  # of the journals of this process


@dataclass(eq=False)
class Request:
    """Something that the store is asked to do: an entry of a journal to store, or a call that somebody waits for."""

    call: Callable[[], Any]
    journal: Journal | None = None
    entry: dict[str, Any] = field(default_factory=dict)
    answer: Future[Any] = field(default_factory=Future)


class Sender:
    """The queue of requests to a store, and the thread that sends them, which lives as long as there are any.

    A request that fails because the store doesn't respond is tried again every RETRY_SECONDS. Entries of one run arrive
    in the order in which they were written.
    """

    def __init__(self, client: MlflowClient, uri: str, folder: Path, keep: Callable[[str, Path], object]) -> None:
        """`keep` stores a file of a run."""
        self.client, self.uri, self.folder, self.keep = client, uri, folder, keep
        self.refused: dict[str, str] = {}  # by run: why the store will never accept an entry
        self._changed = threading.Condition()  # guards all that follows
        self._queue: deque[Request] = deque()
        self._journal: Journal | None = None  # that is written to
        self._thread: threading.Thread | None = None
        self._waiting = 0  # calls that somebody waits for
        self._stopping = False  # somebody has given up waiting
        self._trouble = ""  # why the last attempt failed; empty if it succeeded
        self._failed = 0.0  # when it failed
        self._gave_up = False  # somebody has waited in vain since a request last succeeded
        self._progress = time.monotonic()  # when a request last succeeded
        self.adopt()

    def adopt(self) -> None:
        """Put what other processes left behind into the queue, so that later reads include it.

        Raises RunFailed if the disk is full.
        """
        for path in sorted(self.folder.glob("*.jsonl")):
            try:
                journal = Journal(path)
                with self._using(journal), self._changed:
                    for entry in journal.entries():
                        self._enqueue(Request(partial(self._store, entry), journal, entry))
            except Timeout:
                continue  # its process sends it
            except OSError as error:
                if os.access(self.folder, os.W_OK):
                    raise RunFailed(f"can't write to {self.folder}: {error}. Free some space") from error
                return  # the home is read-only, so whoever may write to it has to send

    @contextmanager
    def _using(self, journal: Journal | None = None) -> Iterator[Journal]:
        """The journal that is written to, or the given one. It is not removed meanwhile."""
        with self._changed:
            if journal is None:
                if self._journal is None:
                    self._journal = Journal(self.folder / f"{STARTED}-{os.getpid()}-{next(NUMBERS):06}.jsonl")
                journal = self._journal
            journal.users += 1
        try:
            yield journal
        finally:
            self._leave(journal)

    def _leave(self, journal: Journal) -> None:
        with self._changed:
            journal.users -= 1
            if not journal.users:
                if journal is self._journal:
                    self._journal = None
                journal.close()

    def put(self, run_id: str, **what: Any) -> None:
        """Record something of a run: `metrics`, `params`, `tags`, `artifact`, `dataset` or `status`, as `_store` does.

        Raises RunFailed if the disk is full, and Refused if the store has refused something of this run. The entry is
        sent all the same.
        """
        entry = {"run": run_id, "time": time.time_ns(), **what}
        request = Request(partial(self._store, entry), entry=entry)
        try:
            with self._using() as journal, self._changed:
                journal.append(entry)
                request.journal = journal
                self._enqueue(request)
        except OSError as error:
            with self._changed:
                self._enqueue(request)
            raise RunFailed(f"can't write to {self.folder}: {error}. Free some space") from error
        self._check(run_id)

    def put_file(self, run_id: str, name: str, write: Callable[[Path], object]) -> None:
        """Record the file that `write(path)` writes, under this name. Raises OSError, and RunFailed like `put`."""
        with self._using() as journal:
            path = journal.files / str(next(NUMBERS)) / name
            path.parent.mkdir(parents=True)
            try:
                write(path)
                with path.open("rb+") as file:
                    os.fsync(file.fileno())  # as a checkpoint may be removed when the weights are recorded
            except BaseException:
                shutil.rmtree(path.parent, ignore_errors=True)
                raise
            self.put(run_id, artifact=path.relative_to(self.folder).as_posix())

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a call of the client, made after everything before it was stored.

        Raises RunFailed if the store doesn't respond for PATIENCE_SECONDS (or once more after that), and Refused if
        MLflow raises another error.
        """
        request, began = Request(partial(function, *arguments)), time.monotonic()
        with self._changed:
            self._waiting += 1
            try:
                self._enqueue(request)
                while not request.answer.done():
                    hopeless = self._gave_up or is_lasting(self._trouble)
                    patience = 0.0 if hopeless else PATIENCE_SECONDS
                    left = max(began, self._progress) + patience - time.monotonic()
                    if self._trouble and self._failed >= began and left <= 0:
                        self._gave_up = True
                        raise RunFailed(self._describe_trouble(patience))
                    self._changed.wait(left if left > 0 else None)
            except BaseException:
                self._drop(request)
                self._stopping = True
                self._changed.notify_all()
                raise
            finally:
                self._waiting -= 1
        try:
            answer: T = request.answer.result()
        except MlflowException as error:
            reason = first_line(error)
            raise Refused(f"the tracking store {self.uri} refuses this: {reason}{remedy(reason)}") from error
        return answer

    def flush(self, run_id: str) -> None:
        """Return when everything that was recorded is in the store. Raises RunFailed like `call` and `put`."""
        self.call(lambda: None)
        self._check(run_id)

    def _check(self, run_id: str) -> None:
        if reason := self.refused.get(run_id):
            raise Refused(
                f"the tracking store {self.uri} refuses what was recorded of run {run_id[:8]}: {reason}"
                f"{remedy(reason)}{self._where_kept(reason)}"
            )

    def _where_kept(self, reason: str) -> str:
        kept = f". It is kept in {self.folder}, and the next command tries to send it again"
        return kept if is_mendable(reason) else ""

    def sync(self, run_id: str) -> None:
        """Return when everything that was recorded is in the store or on the disk. It never waits for the store.

        Raises RunFailed if the disk is full, and Refused if the store has refused something of this run.
        """
        try:
            with self._changed:
                if self._journal is not None:
                    self._journal.sync()
        except OSError as error:
            raise RunFailed(f"can't write to {self.folder}: {error}. Free some space") from error
        self._check(run_id)

    def _describe_trouble(self, waited: float) -> str:
        unsent = sum(request.journal is not None for request in self._queue)
        then = "When the store works again, run the command again"
        if unsent:
            then = (
                f"{unsent} {'entries were' if unsent > 1 else 'entry was'} not sent, but kept in {self.folder}. When "
                f"the store works again, any command, such as `simclr runs`, sends them"
            )
        waiting = f" for {waited:.0f} s" if waited else ""
        return f"the tracking store {self.uri} did not respond{waiting}: {self._trouble}{remedy(self._trouble)}. {then}"

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _enqueue(self, request: Request) -> None:
        self._queue.append(request)
        if request.journal is not None:
            request.journal.users += 1
        self._stopping = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._send_all()
        except BaseException as error:  # such as a journal that can't be removed
            with self._changed:
                self._thread = None
                for request in [each for each in self._queue if each.journal is None]:
                    request.answer.set_exception(error)
                    self._queue.remove(request)
                self._changed.notify_all()

    def _send_all(self) -> None:
        """Send the queued requests until there are none or somebody has given up waiting."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping, COLLECT_SECONDS)
        while True:
            with self._changed:
                if self._stopping or not self._queue:
                    self._thread = None
                    return
                together = self._together()
            call = together[0].call if len(together) == 1 else partial(self._store, _joined(together))
            answer, refusal = None, None
            try:
                answer = call()
            except Exception as error:
                if may_pass(error):
                    self._wait(first_line(error))
                    continue
                refusal = error
            with self._changed:
                if self._trouble:
                    logging.getLogger(__name__).warning("the tracking store responds again")
                self._trouble, self._gave_up, self._progress = "", False, time.monotonic()
                for request in together:
                    if refusal is not None and request.entry:
                        self._refuse(request, first_line(refusal))
                    if refusal is None:
                        request.answer.set_result(answer)
                    else:
                        request.answer.set_exception(refusal)
                    self._drop(request)
                self._changed.notify_all()

    def _together(self) -> list[Request]:
        """The first request, with those right behind it that can be stored in one go: metrics of the same run."""
        together: list[Request] = []
        points = 0
        for request in self._queue:
            points += len(request.entry.get("metrics", []))
            same = "metrics" in request.entry and request.entry["run"] == self._queue[0].entry.get("run")
            if together and (not same or "metrics" not in together[0].entry or points > MOST_POINTS):
                break
            together.append(request)
        return together

    def _wait(self, reason: str) -> None:
        """Pause after a failed attempt."""
        with self._changed:
            if not self._trouble:
                logging.getLogger(__name__).warning(
                    "the tracking store %s does not respond: %s. Work continues, and its results are kept in %s. "
                    "Steps that need the store, such as the end of a run, wait for it for up to %.0f s",
                    self.uri,
                    reason,
                    self.folder,
                    PATIENCE_SECONDS,
                )
            self._trouble, self._failed = reason, time.monotonic()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopping, RETRY_SECONDS)

    def _drop(self, request: Request) -> None:
        """Take a request out of the queue, unless that has happened before."""
        if request in self._queue:
            self._queue.remove(request)
            if request.journal is not None:
                self._leave(request.journal)

    def _refuse(self, request: Request, reason: str) -> None:
        """Set aside an entry that the store does not accept, such as one of a run that was deleted."""
        run_id = request.entry["run"]
        if is_mendable(reason) and request.journal is not None:
            request.journal.kept.append(request.entry)
        if run_id not in self.refused:
            logging.getLogger(__name__).warning(
                "the tracking store refuses what was recorded of run %s: %s%s",
                run_id[:8],
                reason,
                self._where_kept(reason),
            )
        self.refused.setdefault(run_id, reason)

    def _store(self, entry: dict[str, Any]) -> None:
        """Send an entry. Sending it twice changes nothing.

        After an entry of a run was refused, tags that describe it and the end of the run are refused too.
        """
        run_id = entry["run"]
        match entry:
            case {"metrics": points}:  # [key, value, time in ms, step]
                for start in range(0, len(points), MOST_POINTS):
                    some = points[start : start + MOST_POINTS]
                    self.client.log_batch(run_id, metrics=[Metric(*point) for point in some])
            case {"params": params}:
                self.client.log_batch(run_id, params=[Param(*pair) for pair in params.items()])
            case {"dataset": dataset}:  # the arguments of MLflow's Dataset
                log_datasets(self.client, run_id, [dataset])
            case _ if self._is_outdated(entry):
                return
            case {"tags": tags}:
                self._check(run_id)
                self.client.log_batch(run_id, tags=[RunTag(*pair) for pair in tags.items()])
            case {"artifact": place}:  # relative to the folder, which may move
                path = self.folder / place
                if path.exists():  # otherwise it was sent before the process died
                    self.keep(run_id, path)
                    shutil.rmtree(path.parent, ignore_errors=True)
            case {"status": status, "ended": ended}:
                refused = status == "FINISHED" and run_id in self.refused
                self.client.set_terminated(run_id, "FAILED" if refused else status, ended)
                if refused:
                    self._check(run_id)

    def _is_outdated(self, entry: dict[str, Any]) -> bool:
        """Whether the run was started again after the entry was written, by a process that could not send it in
        time.

        Both times are in ns. Within one millisecond, a process can stop and another one can start the run again.
        """
        if "time" not in entry:  # written by an earlier version
            return False
        began: str = self.client.get_run(entry["run"]).data.tags.get(BEGAN, "0")
        return bool(entry["time"] < int(began))


def _joined(requests: list[Request]) -> dict[str, Any]:
    """One entry with the metrics of several."""
    points = [point for request in requests for point in request.entry["metrics"]]
    return {"run": requests[0].entry["run"], "metrics": points}


def now() -> int:
    """The time in milliseconds, as MLflow counts it."""
    return time.time_ns() // 1_000_000
