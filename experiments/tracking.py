"""The record of runs: the only file that knows MLflow.

One sqlite store in one folder (`SIMCLR_HOME`, else ./simclr-runs) unless MLFLOW_TRACKING_URI names another. A run is
found again by its config key and the digest of its data.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

import pandas as pd
from filelock import FileLock, Timeout
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.entities import Run as Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from simclr.errors import RunFailed, UserError

EXPERIMENT = "simclr"
ENCODERS = ("pretrain", "import")  # kinds of runs that hold an encoder
PROTOCOL_TAG = "protocol/eval/"  # before a metric's name: the identity of the protocol that its value was found under
BESIDE = "ref"  # what stands beside eval/METRIC is ref/low/METRIC, ...: a list of eval/ is accuracies alone
FLUSH_SECONDS = 2.0
PATIENCE_SECONDS = 300.0  # a locked database or a restarting server is waited for; training goes on meanwhile


def home() -> Path:
    """Where runs, decoded data and downloads are kept."""
    return Path(os.environ.get("SIMCLR_HOME") or "simclr-runs").resolve()


def store_uri(folder: Path) -> str:
    """The tracking store: MLFLOW_TRACKING_URI, else a sqlite file in the folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').as_posix()}"


class Store:
    """A connection to the tracking store, made and migrated under a lock so that processes may start together."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, store_uri(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "store.lock"):
                self.client = MlflowClient(self.uri)
                experiment = self.client.get_experiment_by_name(EXPERIMENT)
                if experiment is None:
                    local = self.uri.startswith("sqlite")
                    self.experiment = self.client.create_experiment(
                        EXPERIMENT, artifact_location=(folder / "artifacts").as_uri() if local else None
                    )
                    if local:  # concurrent readers and writers, and about half the time for a write
                        with closing(sqlite3.connect(self.uri.removeprefix("sqlite:///"))) as database:
                            database.execute("PRAGMA journal_mode=WAL")
                else:
                    self.experiment = experiment.experiment_id
        except OSError as error:
            raise UserError(f"can't use {folder} (SIMCLR_HOME) for runs: {error}; name another folder") from None
        except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
            raise UserError(f"can't open the tracking store {self.uri}: {str(error).splitlines()[0]}") from None

    def search(self, condition: str = "") -> list[Run]:
        """Runs that meet an MLflow filter, newest first; deleted ones are left out."""
        found: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment], condition, ViewType.ACTIVE_ONLY, 1000, ["attributes.start_time DESC"], token
            )
            found += page
            token = page.token
            if not token:
                return found

    def of_key(self, key: str, digest: str) -> list[Run]:
        """Pre-training runs of a config on the same data, newest first."""
        return self.search(f"tags.kind = 'pretrain' and tags.config_key = '{key}' and tags.data_digest = '{digest}'")

    def find(self, name: str | None, kinds: Sequence[str] = ENCODERS) -> Run:
        """The finished run of one of the kinds that has this name, or an id that starts so; None: the newest."""
        encoders = [run for run in self.search() if run.data.tags.get("kind") in kinds]
        runs = [run for run in encoders if name is None or _is_called(run, name)]
        for run in runs:
            if run.info.status == "FINISHED":
                return run
        if runs:
            raise UserError(
                f"run {runs[0].info.run_name} ({runs[0].info.run_id[:8]}) has not finished (it is "
                f"{runs[0].info.status}): the command that began it goes on with --resume"
            )
        if encoders:
            near = get_close_matches(str(name), [str(run.info.run_name) for run in encoders], n=1)
            hint = f"did you mean '{near[0]}'? Or see `simclr runs`" if near else "see `simclr runs`"
            raise UserError(f"no run is called '{name}' or has an id that starts so: {hint}")
        raise UserError(f"no run in {self.folder}: train one with `simclr pretrain --preset shapes`")

    def table(self) -> pd.DataFrame:
        """One row a run, newest first: id, name, kind, status, local start time, seed, latest metrics, protocols."""
        rows = [
            {
                "id": run.info.run_id[:8],
                "name": run.info.run_name,
                "kind": run.data.tags.get("kind"),
                "status": run.info.status,
                "started": datetime.fromtimestamp(run.info.start_time / 1000).strftime("%Y-%m-%d %H:%M"),
                "seed": run.data.tags.get("seed"),
                **run.data.metrics,
                **{tag: value for tag, value in run.data.tags.items() if tag.startswith(PROTOCOL_TAG)},
            }
            for run in self.search()
        ]
        return pd.DataFrame(rows)

    def history(self, run_id: str, metric: str) -> pd.DataFrame:
        """The points of one metric of a run: step, value. Of a step that was logged twice (after a kill) the last."""
        points = self.client.get_metric_history(run_id, metric)
        frame = pd.DataFrame({"step": [p.step for p in points], "value": [p.value for p in points]})
        return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)

    def run_folder(self, run_id: str) -> Path:
        """Where a run keeps its checkpoints."""
        return self.folder / "runs" / run_id

    def artifact(self, run_id: str, name: str) -> Path:
        """A local path of an artifact of a run. Raises UserError when it is not there."""
        place = urlparse(self.client.get_run(run_id).info.artifact_uri)
        try:
            if place.scheme == "file":
                path = Path(url2pathname(place.path)) / name
            else:
                path = Path(self.client.download_artifacts(run_id, name))
        except (OSError, MlflowException):
            path = Path("missing")
        if not path.exists():
            raise UserError(f"run {run_id[:8]} has no artifact '{name}': it was deleted, or the run did not finish")
        return path

    def start(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> Tracker:
        """A new run."""
        with _writing(self):
            run = self.client.create_run(self.experiment, tags=dict(tags), run_name=name)
            entries = [Param(key, str(value)) for key, value in params.items()]
            self.client.log_batch(run.info.run_id, params=entries)
        return Tracker(self, run.info.run_id)

    def copy(self, run: Run, tags: Mapping[str, str]) -> str:
        """A new, finished run with the params, tags and points of all metrics of another, and some tags more."""
        own = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
        tracker = self.start(str(run.info.run_name), own | dict(tags), run.data.params)
        for metric in run.data.metrics:
            tracker.pending += self.client.get_metric_history(run.info.run_id, metric)
        tracker.finish("FINISHED")
        return tracker.run_id

    def studies(self) -> list[Run]:
        """The parent runs of ablations, newest first."""
        return self.search("tags.kind = 'study'")

    def find_study(self, name: str) -> Run:
        """The study with this name, or whose id starts so."""
        for run in self.studies():
            if _is_called(run, name):
                return run
        known = ", ".join(str(run.info.run_name) for run in self.studies()) or "none yet"
        raise UserError(f"no study is called '{name}': there are {known}; `simclr ablate` makes one")

    def reopen(self, run: Run) -> Tracker:
        """Go on with a run that did not finish."""
        with _writing(self):
            self.client.update_run(run.info.run_id, status="RUNNING")
        return Tracker(self, run.info.run_id)


def _is_called(run: Run, name: str) -> bool:
    """Whether this is a run's name, or how its id starts."""
    return name == run.info.run_name or (len(name) >= 4 and bool(run.info.run_id.startswith(name)))


@contextmanager
def _writing(store: Store) -> Iterator[None]:
    """A store that can't be written is a RunFailed."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        reason = str(error).splitlines()[0]
        raise RunFailed(f"can't write to the tracking store in {store.folder}: {reason}; is its disk full?") from error


class Tracker:
    """Writes to one run; metrics are gathered and sent every FLUSH_SECONDS."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.run_id = store, run_id
        self.pending: list[Metric] = []
        self.tried = time.monotonic()
        self.refused: float | None = None  # since when

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Gather metrics, and send them now and then; a store that refuses them is tried again for PATIENCE_SECONDS."""
        now = int(time.time() * 1000)
        self.pending += [Metric(key, float(value), now, step) for key, value in metrics.items()]
        if time.monotonic() - self.tried > FLUSH_SECONDS:
            try:
                self.flush()
            except RunFailed:
                self.refused = self.tried if self.refused is None else self.refused
                if self.tried - self.refused > PATIENCE_SECONDS:
                    raise

    def flush(self) -> None:
        """Send what has been gathered. Raises RunFailed when the store can't be written; it is then kept."""
        self.tried = time.monotonic()
        while self.pending:
            self._send(metrics=self.pending[:1000])  # MLflow's limit for one call
            self.pending = self.pending[1000:]
        self.refused = None

    def tag(self, **tags: object) -> None:
        self._send(tags=[RunTag(key, str(value)[:5000]) for key, value in tags.items()])

    def _send(self, **entries: Any) -> None:
        with _writing(self.store):
            self.store.client.log_batch(self.run_id, **entries)

    def artifact(self, name: str, write: Callable[[Path], object]) -> None:
        """Store what `write(path)` writes as the artifact `name`."""
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, _writing(self.store):
                path = Path(scratch) / name
                write(path)
                self.store.client.log_artifact(self.run_id, str(path))
        except OSError as error:
            raise RunFailed(
                f"can't write the artifact {name}: {error}; free some space, then run the same again"
            ) from error

    def finish(self, status: str) -> None:
        """Send what is left and close the run with a status. Raises RunFailed when the store can't be written."""
        try:
            self.flush()
        finally:
            with _writing(self.store):
                self.store.client.set_terminated(self.run_id, status)

    @contextmanager
    def finishing(self, stopped: type[BaseException]) -> Iterator[Tracker]:
        """Close the run: FINISHED, KILLED on `stopped` or an interrupt, FAILED (tag `error`) on anything else.

        Its folder is locked meanwhile: a run is trained by one process at a time.
        """
        folder = self.store.run_folder(self.run_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise UserError(f"run {self.run_id[:8]} is being trained by another process") from None
        except OSError as error:
            with suppress(RunFailed):
                self.finish("FAILED")
            raise RunFailed(f"can't write to {folder}: {error}; free some space") from error
        status = "FAILED"
        try:
            yield self
            status = "FINISHED"
        except (stopped, KeyboardInterrupt):
            status = "KILLED"
            raise
        except BaseException as error:
            with suppress(RunFailed):
                self.tag(error=f"{type(error).__name__}: {error}")
            raise
        finally:
            try:
                self.finish(status)
            except RunFailed:
                if status == "FINISHED":  # a store that can't be written must not hide why the run ended
                    raise
            finally:
                lock.release()


def ui_command(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command and environment that serve MLflow's UI on loopback, with telemetry and job execution off.

    Raises UserError where the port is taken, or a server elsewhere has the runs.
    """
    if (uri := store_uri(folder)).startswith("http"):
        raise UserError(f"the runs are on the server {uri} (MLFLOW_TRACKING_URI): open that in a browser")
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise UserError(f"can't listen on port {port}: {error.strerror}; take another --port") from None
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    return command, os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
