"""The record of runs in MLflow. No other file imports MLflow or sees its objects.

The record is one sqlite database in one folder (`SIMCLR_HOME`, by default ./simclr-runs), unless
MLFLOW_TRACKING_URI names another store. Reading gives `Record`s, which are plain values; writing goes through a
`Tracker`. A run is found again by its config's key and its data's digest.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

# MLflow reads these when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

import pandas as pd
from filelock import FileLock, Timeout
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from simclr.errors import RunFailed, UserError

EXPERIMENT = "simclr"
ENCODERS = ("pretrain", "import")  # the kinds of runs that hold an encoder
FLUSH_SECONDS = 2.0
PATIENCE_SECONDS = 300.0  # how long training continues while a locked database or a dead server refuses metrics

_PARENT = "mlflow.parentRunId"  # MLflow nests runs by this tag
_PROTOCOL = "protocol/eval/"  # the tag of an evaluation's protocol is this and the metric's name


def home() -> Path:
    """The folder of runs, decoded images and downloads."""
    return Path(os.environ.get("SIMCLR_HOME") or "simclr-runs").resolve()


def store_uri(folder: Path) -> str:
    """MLFLOW_TRACKING_URI, or else a sqlite file in the folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').as_posix()}"


@dataclass(frozen=True)
class Record:
    """A run as it was when it was read from the store."""

    id: str
    name: str
    kind: str  # pretrain, import, eval, study, cell, search or trial
    status: str  # RUNNING, FINISHED, FAILED or KILLED
    started: datetime  # local time
    parent: str | None  # the id of the study or search that it belongs to
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]  # the latest value of each
    protocols: Mapping[str, str]  # identity of the protocol of each evaluated metric
    store: Store = field(repr=False, compare=False)

    @property
    def short_id(self) -> str:
        """The first eight characters of the id, which is how commands show it."""
        return self.id[:8]

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED"

    @property
    def folder(self) -> Path:
        """Where the run keeps its checkpoints."""
        return self.store.run_folder(self.id)

    def is_called(self, name: str) -> bool:
        """Whether `name` is the run's name, or the start of its id (four characters or more)."""
        return name == self.name or (len(name) >= 4 and self.id.startswith(name))

    def history(self, metric: str) -> pd.DataFrame:
        """All points of a metric, as columns `step` and `value`. A step that was logged twice keeps its last value."""
        points = self.store.points(self.id, metric)
        frame = pd.DataFrame({"step": [p.step for p in points], "value": [p.value for p in points]})
        return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)

    def artifact(self, name: str) -> Path:
        """A local path of one of the run's files. Raises UserError if it does not exist."""
        return self.store.artifact(self.id, name)


class Store:
    """A connection to the tracking store. It is created under a lock, so several processes may start at once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, store_uri(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "store.lock"):
                self._client = MlflowClient(self.uri)
                experiment = self._client.get_experiment_by_name(EXPERIMENT)
                self._experiment = self._create() if experiment is None else experiment.experiment_id
        except OSError as error:
            raise UserError(
                f"can't use the folder {folder} for runs: {error}. Set SIMCLR_HOME to another folder"
            ) from None
        except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
            raise UserError(f"can't open the tracking store {self.uri}: {str(error).splitlines()[0]}") from None

    def _create(self) -> str:
        local = self.uri.startswith("sqlite")
        location = (self.folder / "artifacts").as_uri() if local else None
        experiment = self._client.create_experiment(EXPERIMENT, artifact_location=location)
        if local:  # write-ahead logging lets others read during a write, and halves the time of a write
            with closing(sqlite3.connect(self.uri.removeprefix("sqlite:///"))) as database:
                database.execute("PRAGMA journal_mode=WAL")
        return str(experiment)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _record(self, run: Run) -> Record:
        tags = run.data.tags
        return Record(
            id=run.info.run_id,
            name=str(run.info.run_name),
            kind=tags.get("kind", ""),
            status=run.info.status,
            started=datetime.fromtimestamp(run.info.start_time / 1000),
            parent=tags.get(_PARENT),
            params=run.data.params,
            tags={key: value for key, value in tags.items() if not key.startswith(("mlflow.", _PROTOCOL))},
            metrics=run.data.metrics,
            protocols={key.removeprefix(_PROTOCOL): value for key, value in tags.items() if key.startswith(_PROTOCOL)},
            store=self,
        )

    def get(self, run_id: str) -> Record:
        """The run with this id."""
        return self._record(self._client.get_run(run_id))

    def records(self, *, parent: str | None = None, **tags: str) -> list[Record]:
        """Runs with these tags (such as `kind="study"`) and this parent, newest first. Deleted runs are left out."""
        wanted = tags | ({_PARENT: parent} if parent else {})
        # MLflow's filters can't hold every text. Values that they can't hold are compared below.
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items() if value.isalnum())
        found: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], condition, ViewType.ACTIVE_ONLY, 1000, ["attributes.start_time DESC"], token
            )
            found += page
            token = page.token
            if not token:
                return [self._record(run) for run in found if wanted.items() <= run.data.tags.items()]

    def of_key(self, key: str, digest: str) -> list[Record]:
        """Pre-training runs of a config's key on data with this digest, newest first."""
        return self.records(kind="pretrain", config_key=key, data_digest=digest)

    def find(self, name: str | None, kinds: Sequence[str] = ENCODERS) -> Record:
        """The newest finished run of these kinds with this name, or whose id starts with it. None: the newest of all.

        Raises UserError if there is none.
        """
        candidates = [record for record in self.records() if record.kind in kinds]
        called = [record for record in candidates if name is None or record.is_called(name)]
        for record in called:
            if record.finished:
                return record
        if called:
            raise UserError(
                f"run {called[0].name} ({called[0].short_id}) has not finished: its status is {called[0].status}. To "
                f"resume it, add --resume to the command that started it"
            )
        if candidates:
            near = get_close_matches(str(name), [record.name for record in candidates], n=1)
            hint = f"did you mean '{near[0]}'? `simclr runs` lists all" if near else "`simclr runs` lists all"
            raise UserError(f"no run has the name '{name}' or an id that starts with it: {hint}")
        raise UserError(f"there is no run in {self.folder}: train one with `simclr pretrain --preset shapes`")

    def find_study(self, name: str) -> Record:
        """The newest study with this name, or whose id starts with it. Raises UserError if there is none."""
        studies = self.records(kind="study")
        for record in studies:
            if record.is_called(name):
                return record
        known = ", ".join(record.name for record in studies) or "none yet"
        raise UserError(f"no study has the name '{name}'. Studies: {known}. `simclr ablate` runs one")

    def points(self, run_id: str, metric: str) -> list[Metric]:
        """All logged points of a metric, in the order in which they were logged."""
        return list(self._client.get_metric_history(run_id, metric))

    def run_folder(self, run_id: str) -> Path:
        """Where a run keeps its checkpoints."""
        return self.folder / "runs" / run_id

    def artifact(self, run_id: str, name: str) -> Path:
        """See Record.artifact."""
        place = urlparse(self._client.get_run(run_id).info.artifact_uri)
        try:
            if place.scheme == "file":
                path = Path(url2pathname(place.path)) / name
            else:
                path = Path(self._client.download_artifacts(run_id, name))
        except (OSError, MlflowException):
            path = Path("missing")
        if not path.exists():
            raise UserError(f"run {run_id[:8]} has no file '{name}': it was deleted, or the run did not finish")
        return path

    # --- writing ------------------------------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        kind: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        *,
        parent: str | None = None,
    ) -> Tracker:
        """A new run, with the status RUNNING."""
        all_tags = {"kind": kind, **(tags or {})} | ({_PARENT: parent} if parent else {})
        with _write_errors(self):
            run = self._client.create_run(self._experiment, tags=all_tags, run_name=name)
            self._client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in params.items()])
        return Tracker(self, run.info.run_id)

    def copy(self, record: Record, kind: str, tags: Mapping[str, str], *, parent: str) -> Record:
        """A new, finished run with the params, tags and metrics of another one, under a parent. It names its source."""
        own = {**record.tags, "kind": kind, **tags, "copied_from": record.id}
        tracker = self.start(record.name, kind, record.params, own, parent=parent)
        for metric in record.metrics:
            tracker.pending += self.points(record.id, metric)
        tracker.flush()
        tracker.tag_protocols(record.protocols)  # last: a metric whose protocol is tagged is complete
        tracker.finish("FINISHED")
        return tracker.record()

    def reopen(self, record: Record) -> Tracker:
        """Resume writing to a run: its status becomes RUNNING."""
        with _write_errors(self):
            self._client.update_run(record.id, status="RUNNING")
        return Tracker(self, record.id)


@contextmanager
def _write_errors(store: Store) -> Iterator[None]:
    """A failed write becomes a RunFailed."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        reason = str(error).splitlines()[0]
        raise RunFailed(f"can't write to the tracking store in {store.folder}: {reason}. Is its disk full?") from error


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
        self.tag({f"{_PROTOCOL}{metric}": identity for metric, identity in identities.items()})

    def _send(self, **entries: Any) -> None:
        with _write_errors(self.store):
            self.store._client.log_batch(self.run_id, **entries)

    def artifact(self, name: str, write: Callable[[Path], object]) -> None:
        """Keep the file that `write(path)` writes with the run, under this name."""
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, _write_errors(self.store):
                path = Path(scratch) / name
                write(path)
                self.store._client.log_artifact(self.run_id, str(path))
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
                self.store._client.set_terminated(self.run_id, status)

    @contextmanager
    def finishing(self, stopped: type[BaseException]) -> Iterator[Tracker]:
        """Close the run at the end: FINISHED, KILLED after `stopped` or Ctrl-C, or FAILED (with the tag `error`).

        The run's folder is locked meanwhile, so that only one process trains it.
        """
        lock = self._lock()
        status = "FAILED"
        try:
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
            lock = FileLock(folder / "lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise UserError(f"another process is training run {self.run_id[:8]}: wait until it ends") from None
        except OSError as error:
            with suppress(RunFailed):
                self.finish("FAILED")
            raise RunFailed(f"can't write to {folder}: {error}. Free some space") from error
        return lock
