"""Open the record of runs and read it, as `Record`s, which are plain values.

The record is one sqlite database in one folder (`SIMCLR_HOME`, by default ./simclr-runs), unless
MLFLOW_TRACKING_URI names another store. A run is found again by its config's key and its data's digest.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from filelock import FileLock, Timeout
from mlflow.entities import Metric, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from analysis.tables import is_unused
from experiments.tracking import local
from experiments.tracking.faults import Refused, first_line, remedy
from experiments.tracking.local import EXPERIMENT
from experiments.tracking.naming import all_called, ended, is_called, no_runs
from experiments.tracking.sending import Sender
from simclr.errors import RunFailed, UserError, printable
from simclr.files import written_whole
from simclr.progress import SILENT, Observer

if TYPE_CHECKING:
    from simclr.config import Config

for _name in ("mlflow", "alembic", "sqlalchemy"):  # they log tracebacks of errors that are reported in one line
    logging.getLogger(_name).setLevel(logging.CRITICAL)

ENCODERS = ("pretrain", "import")  # the kinds of runs that hold an encoder
GROUPS = ("study", "search")  # the kinds that hold runs
REPORTED = (*GROUPS, *ENCODERS, "eval")  # the kinds that have a report
TRANSFER_SECONDS = 600  # how long a request that carries a file may take
PARENT = "mlflow.parentRunId"  # MLflow nests runs by this tag
HOME = "mlflow.simclr.home"  # the tag with the owner (see local.py) of the home that trains or last trained a run
PROTOCOL = "protocol/eval/"  # the tag of an evaluation's protocol is this and the metric's name
SUPERSEDED = "superseded"  # its value for a figure that doesn't count any more


def home() -> Path:
    """The folder of runs, decoded images and downloads. Raises UserError if its name leads nowhere or is not text."""
    named = local.named_home()
    try:
        folder = Path(named).resolve()
    except (RuntimeError, OSError):
        raise UserError(
            f"the folder of runs, {named!a}, is a link that leads back to itself: set SIMCLR_HOME to another one"
        ) from None
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the folder of runs, {str(folder)!a}, is not valid UTF-8: set SIMCLR_HOME to another one"
        ) from None
    return folder


@dataclass(frozen=True)
class Record:
    """A run as it was when it was read from the store."""

    id: str
    name: str
    kind: str  # pretrain, import, eval, study, cell, search or trial
    status: str  # RUNNING, FINISHED, FAILED or KILLED
    started: datetime  # local time
    parent: str | None  # the id of the study or search that it belongs to
    params: Mapping[str, str]  # without those of augmentations that are not used, except for their probability
    tags: Mapping[str, str]
    metrics: Mapping[str, float]  # the latest value of each
    protocols: Mapping[str, str]  # identity of the protocol of each evaluated metric that counts
    store: Store = field(repr=False, compare=False)

    @property
    def short_id(self) -> str:
        """The first eight characters of the id, which is how commands show it."""
        return self.id[:8]

    @property
    def handle(self) -> str:
        """What a command calls a finished encoder: its name as a shell needs it, or its id if a newer run has that."""
        called = (run for run in self.store.records() if run.finished and run.name == self.name)
        return shlex.quote(self.name) if next(called, self).id == self.id else self.short_id

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED"

    @property
    def folder(self) -> Path:
        """Where the run keeps its checkpoints."""
        return self.store.run_folder(self.id)

    def is_called(self, name: str) -> bool:
        """Whether `name` is the run's name, or the start of its id."""
        return is_called(self, name)

    def is_of(self, config: Config) -> bool:
        """Whether this is a training run of what a config asks for, whatever the images.

        Earlier versions wrote "auto" into the key and what it stood for into a tag. In float32, they let CUDA use TF32.
        """
        key, precision = self.tags.get("config_key"), self.tags.get("precision")
        on_cuda = not self.tags.get("device", "cpu").startswith(("cpu", "mps"))
        if precision == "float32" and on_cuda and "tf32" not in self.tags:
            return False
        return key == config.key() or (key == config.key("auto") and precision == config.dtype_name())

    def history(self, metric: str) -> pd.DataFrame:
        """All points of a metric, as columns `step` and `value`. A step that was logged twice keeps its last value."""
        points = self.store.points(self.id, metric)
        frame = pd.DataFrame({"step": [p.step for p in points], "value": [p.value for p in points]})
        return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)

    def artifact(self, name: str) -> Path:
        """A local path of one of the run's files. Raises UserError if it does not exist."""
        return self.store.artifact(self.id, name)

    def find_artifact(self, name: str) -> Path | None:
        """The same, or None if it does not exist."""
        try:
            return self.artifact(name)
        except UserError:
            return None


class Store:
    """A connection to the tracking store. It is created under a lock, so several processes may start at once.

    `writable` is False for a record on a disk that can't be written, which can be read all the same.
    """

    def __init__(self, folder: Path, server: str | None = None, observer: Observer = SILENT) -> None:
        """`server` is the address of an MLflow server, and stands for what MLFLOW_TRACKING_URI names."""
        self.folder, self._server, self._observer = folder, server, observer
        self.artifacts: Path | None = None  # the folder of the files of all runs; None if a server keeps them
        self.database = database = None if server else local.database_of(folder)
        try:
            self.writable = True
            if database is not None and database.exists():
                self.writable = local.can_write(database, database.parent, folder)
            if self.writable:
                folder.mkdir(parents=True, exist_ok=True)
            lock = folder if database is None else database.parent
            with FileLock(lock / "store.lock") if self.writable else nullcontext():
                self._open()
            self._end_killed_runs()
            self.sender = Sender(self.client, self.uri, self._unsent(), self._keep)
        except OSError as error:
            raise UserError(
                f"can't use the folder {folder} for runs: {error}. Set SIMCLR_HOME to another folder"
            ) from None
        except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
            reason = first_line(error)
            raise UserError(f"can't open the tracking store {self.uri}: {reason}{remedy(reason)}") from None

    @property
    def uri(self) -> str:
        """The address of the store for MLflow."""
        if self.database is None:
            return self._server or os.environ["MLFLOW_TRACKING_URI"]
        return local.address(self.database) if self.writable else local.read_only_address(self.database)

    @property
    def shared(self) -> bool:
        """Whether other homes may use the same record. It stays this home's own when the home moves."""
        return self.database is None or self.database.parent != self.folder

    def _open(self) -> None:
        if self.database is not None:
            if not self.database.exists() or (self.writable and local.is_unfinished(self.database)):
                local.create_database(self.database, self.folder / "artifacts")
            self.artifacts = local.find_artifacts(self.database, self.folder)
        self.client = MlflowClient(self.uri)
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            location = None if self.artifacts is None else self.artifacts.as_uri()
            try:
                self.experiment = str(self.client.create_experiment(EXPERIMENT, artifact_location=location))
                return
            except MlflowException:
                experiment = self.client.get_experiment_by_name(EXPERIMENT)
                if experiment is None:  # otherwise another machine has created it just now
                    raise
        if experiment.lifecycle_stage != "active":
            raise UserError(
                f"the experiment '{EXPERIMENT}', which holds all runs, was deleted in MLflow. To get it back, run "
                f"MLFLOW_TRACKING_URI='{self.uri}' mlflow experiments restore --experiment-id "
                f"{experiment.experiment_id}. To start anew, set SIMCLR_HOME to another folder"
            )
        self.experiment = experiment.experiment_id

    def _unsent(self) -> Path:
        """Where the home keeps what this store has not been sent. Another store must not get it."""
        folder = self.folder / "unsent"
        return folder if not self.shared else folder / hashlib.blake2b(self.uri.encode(), digest_size=8).hexdigest()

    def _end_killed_runs(self) -> None:
        """Give the runs whose process was killed the status KILLED. A living process holds its lock."""
        if not self.writable:
            return
        own = (None, local.owner(self.folder))  # a run may have been continued in another home
        for run in self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'", max_results=1000):
            locked = self.lock_file(run.info.run_id).exists() and run.data.tags.get(HOME) in own
            if locked or not self.shared:
                self.end_killed(run.info.run_id)

    def end_killed(self, run_id: str) -> None:
        """Give a run the status KILLED, unless a process of this home trains it. No other home may train it."""
        path = self.lock_file(run_id)
        with suppress(Timeout, OSError, MlflowException):
            if not self.shared:
                path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path, timeout=0) if path.parent.exists() else nullcontext():
                if self.client.get_run(run_id).info.status == "RUNNING":  # it may have ended meanwhile
                    self.client.set_terminated(run_id, "KILLED")

    def _record(self, run: Run) -> Record:
        tags = run.data.tags
        protocols = {key.removeprefix(PROTOCOL): tag for key, tag in tags.items() if key.startswith(PROTOCOL)}
        return Record(
            id=run.info.run_id,
            name=printable(str(run.info.run_name)),  # MLflow's page can rename a run
            kind=tags.get("kind", ""),
            status=run.info.status,
            started=datetime.fromtimestamp(run.info.start_time / 1000),
            parent=tags.get(PARENT),
            params={key: value for key, value in run.data.params.items() if not is_unused(key, run.data.params)},
            tags={key: value for key, value in tags.items() if not key.startswith(("mlflow.", PROTOCOL))},
            metrics=run.data.metrics,
            protocols={metric: tag for metric, tag in protocols.items() if tag != SUPERSEDED},
            store=self,
        )

    def get(self, run_id: str) -> Record:
        """The run with this id."""
        return self._record(self.sender.call(self.client.get_run, run_id))

    def records(self, *, parent: str | None = None, **tags: str) -> list[Record]:
        """Runs with these tags (such as `kind="study"`) and this parent, newest first. Deleted runs are left out."""
        wanted = tags | ({PARENT: parent} if parent else {})
        # MLflow's filters can't hold every text. Values that they can't hold are compared below.
        condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items() if value.isalnum())
        return [self._record(run) for run in self.runs(condition) if wanted.items() <= run.data.tags.items()]

    def records_with_deleted(self) -> list[Record]:
        """All runs, newest first, with those that were deleted."""
        return [self._record(run) for run in self.runs(view=ViewType.ALL)]

    def runs(self, condition: str = "", view: int = ViewType.ACTIVE_ONLY) -> Iterator[Run]:
        """MLflow's own runs that meet a condition in its language, newest first."""
        token, order = None, ["attributes.start_time DESC"]
        while True:
            page = self.sender.call(self.client.search_runs, [self.experiment], condition, view, 1000, order, token)
            yield from page
            token = page.token
            if not token:
                return

    def of_key(self, key: str, digest: str | None = None) -> list[Record]:
        """Pre-training runs with a config's key, newest first: all of them, or those on data with this digest."""
        return self.records(kind="pretrain", config_key=key, **({"data_digest": digest} if digest is not None else {}))

    def of_config(self, config: Config, digest: str | None = None) -> list[Record]:
        """Like `of_key`, with the runs of earlier versions, whose key differs."""
        found = [run for key in (config.key(), config.key("auto")) for run in self.of_key(key, digest)]
        return sorted((run for run in found if run.is_of(config)), key=lambda run: run.started, reverse=True)

    def find(self, name: str | None, kinds: Sequence[str] = ENCODERS) -> Record:
        """The newest finished run of these kinds with this name, or whose id starts with it.

        None: the newest of all that belong to no study or search. Raises UserError if there is none.
        """
        known = [record for record in self.records() if record.kind in kinds]
        called = [record for record in known if record.parent is None]
        if name is not None:
            called = all_called(name, known, self.folder)
        finished = [record for record in called if record.finished]
        if finished:
            return finished[0] if name is None else self._newest(name, finished)
        if called:
            newest = called[0]
            raise UserError(
                f"run {newest.name} ({newest.short_id}) {ended(newest.status)}. {self._how_to_finish(newest)}"
            )
        if known:
            raise UserError("all runs belong to studies or searches: name one, which `simclr runs` lists")
        raise no_runs(self.folder)

    def _newest(self, name: str, called: Sequence[Record]) -> Record:
        """The first of some runs that have a name. If there are others, the user is told which one it is."""
        if len(called) > 1:
            self._observer.note(f"{len(called)} runs are called {name}: using the newest, {called[0].short_id}")
        return called[0]

    def _how_to_finish(self, record: Record) -> str:
        if record.status == "RUNNING":
            return "Wait until it ends"
        if record.parent is not None:
            parent = self.get(record.parent)
            return f"It belongs to the {parent.kind} '{parent.name}': run the command that started that again"
        from simclr.weights.checkpoint import checkpoints  # imports torch, which `simclr runs` doesn't need

        if checkpoints(record.folder):
            return "To resume it, add --resume to the command that started it"
        return "It has no checkpoint, so repeat the command that started it"

    def find_reported(self, name: str) -> Record:
        """The newest run, study or search with this name, or whose id starts with it. It may be unfinished.

        Raises UserError if there is none.
        """
        records = [record for record in self.records() if record.kind in REPORTED]
        return self._newest(name, all_called(name, records, self.folder, "run, study or search"))

    def studies_among(self, names: Sequence[str]) -> list[Record]:
        """The studies with these names, or none if all names are of runs. Raises UserError if there are both."""
        records = self.records()
        runs = {name for name in names for record in records if record.kind != "study" and record.is_called(name)}
        studies = [
            next((record for record in records if record.kind == "study" and record.is_called(name)), None)
            for name in names
            if name not in runs
        ]
        found = [study for study in studies if study is not None]
        if found and len(found) < len(names):
            raise UserError(
                f"'{found[0].name}' is a study: compare it by itself, or name its runs, which `simclr runs --study "
                f"{shlex.quote(found[0].name)}` lists"
            )
        return found

    def points(self, run_id: str, metric: str) -> list[Metric]:
        """All logged points of a metric, in the order in which they were logged."""
        return list(self.sender.call(self.client.get_metric_history, run_id, metric))

    def run_folder(self, run_id: str) -> Path:
        """Where a run keeps its checkpoints: in the home, or in SIMCLR_CHECKPOINTS, which machines may share."""
        return Path(os.environ.get("SIMCLR_CHECKPOINTS") or self.folder / "runs") / run_id

    def lock_file(self, run_id: str) -> Path:
        """The file that whoever trains a run has locked. It is in the home, as only one machine uses that."""
        return self.folder / "runs" / run_id / "lock"

    def artifact(self, run_id: str, name: str) -> Path:
        """See Record.artifact."""
        try:
            if self.artifacts is None:
                path = Path(self.sender.call(patiently()(self.client.download_artifacts), run_id, name))
            else:
                self.sender.call(lambda: None)  # it may be about to be copied there
                path = self.artifact_folder(self.artifacts, run_id) / name
        except (OSError, Refused):
            path = Path("missing")
        if not path.exists():
            raise UserError(f"run {run_id[:8]} has no file '{name}': it was deleted, or the run did not finish")
        return path

    def _keep(self, run_id: str, path: Path) -> None:
        """Copy a file to the files of a run. In a local store it appears at once and whole, also after a power cut."""
        if self.artifacts is None:
            patiently()(self.client.log_artifact)(run_id, str(path))
            return
        try:
            with written_whole(self.artifact_folder(self.artifacts, run_id) / path.name) as scratch:
                shutil.copyfile(path, scratch)
        except RunFailed as error:
            raise (error.__cause__ or error) from None  # the sender decides what it means

    @staticmethod
    def artifact_folder(artifacts: Path, run_id: str) -> Path:
        """Where a folder of the files of all runs has those of one."""
        return artifacts / run_id / "artifacts"


@contextmanager
def patiently() -> Iterator[None]:
    """Let requests to a server take TRANSFER_SECONDS meanwhile. MLflow reads the limit when it makes one."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    usual = os.environ[name]
    os.environ[name] = str(max(int(usual), TRANSFER_SECONDS))
    try:
        yield
    finally:
        os.environ[name] = usual
