"""A record on this machine's disk: the address of its sqlite database, its creation, and what happens when it moves."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlparse
from urllib.request import url2pathname

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from experiments.tracking.naming import all_called, no_runs
from simclr.errors import UserError, printable

EXPERIMENT = "simclr"
LONGEST_PATH = 500  # bytes: SQLite refuses longer names of databases, with 12 more for its journal
REMOTE = re.compile(r"nfs|cifs|smb|afp|fuse\.sshfs|fuse\.glusterfs|ceph|lustre|beegfs|gpfs")  # network file systems
BESIDE = ("-journal", "-wal", "-shm")  # files that SQLite keeps next to a database


def named_home() -> str:
    """The folder of runs, as it is named."""
    return os.environ.get("SIMCLR_HOME") or "simclr-runs"


class RunName(NamedTuple):
    """A run as `runs_on_disk` reads it."""

    id: str
    name: str


def runs_on_disk(kinds: Sequence[str]) -> list[RunName] | None:
    """The runs of some kinds, newest first, read without MLflow, which takes seconds to import.

    None where the record isn't on this disk, or can't be read.
    """
    query = (
        "SELECT run_uuid, name FROM runs JOIN tags USING (run_uuid) WHERE lifecycle_stage = 'active' AND key = 'kind' "
        f"AND value IN ({', '.join('?' * len(kinds))}) ORDER BY start_time DESC"
    )
    with suppress(UserError, OSError, RuntimeError, sqlite3.Error):
        path = database_of(Path(named_home()).resolve())
        if path is None:
            return None
        if not path.exists():
            return []
        with _open(path) as database:
            return [RunName(run_id, printable(str(name))) for run_id, name in database.execute(query, kinds)]
    return None


def check_known(name: str | None, kinds: Sequence[str], what: str = "run") -> None:
    """Raise UserError if no run of these kinds has this name, or if there is none at all, as `Store.find` does, but
    much faster. Where the record isn't on this disk, nothing is checked.
    """
    if (runs := runs_on_disk(kinds)) is None:
        return
    folder = Path(named_home()).resolve()
    if name is not None:
        all_called(name, runs, folder, what)
    elif not runs:
        raise no_runs(folder)


def database_of(folder: Path) -> Path | None:
    """The sqlite database of a home: the one that MLFLOW_TRACKING_URI names, or its own. None if that names a server.

    Raises UserError, before anything is opened, if no database can have this path.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return _check_disk(check_path(folder / "mlflow.db", "SIMCLR_HOME"), "SIMCLR_HOME")
    if not uri.startswith("sqlite"):
        return None
    try:
        url = make_url(uri)
    except ArgumentError:
        url = URL.create("sqlite")
    if not url.database or url.database == ":memory:" or "?" in uri:
        raise UserError(
            f"MLFLOW_TRACKING_URI is {uri}: expected sqlite:///FILE, with %3F for each ? and %25 for each % in FILE"
        )
    path = Path(url.database).absolute()
    if not path.parent.is_dir():
        raise UserError(f"MLFLOW_TRACKING_URI is {uri}, and there is no folder {path.parent}: create it")
    return _check_disk(check_path(path, "MLFLOW_TRACKING_URI"), "MLFLOW_TRACKING_URI")


def _check_disk(path: Path, variable: str) -> Path:
    """Raises UserError if the record would be on a network file system, whose locks SQLite can't rely on.

    Its write-ahead log needs memory that all processes share (https://sqlite.org/wal.html).
    """
    import psutil

    with suppress(OSError):  # the mounts can't be read here, or the folder can't
        place = next(parent for parent in path.parents if parent.exists()).resolve()
        mounts = [each for each in psutil.disk_partitions(all=True) if place.is_relative_to(each.mountpoint)]
        mount = max(reversed(mounts), key=lambda each: len(each.mountpoint), default=None)  # the last one hides others
        if mount is not None and REMOTE.match(mount.fstype):
            raise UserError(
                f"the record {path} is on a network file system ({mount.fstype}, mounted at {mount.mountpoint}), where "
                f"SQLite can damage it: set {variable} to a local disk, or start an MLflow server and set "
                f"MLFLOW_TRACKING_URI to its address"
            )
    return path


def check_path(path: Path, variable: str) -> Path:
    """Raises UserError, which names the variable to change, if no database can have this path."""
    if (length := len(os.fsencode(path))) > LONGEST_PATH:
        raise UserError(
            f"the path of the record, {path}, has {length} bytes: SQLite opens up to {LONGEST_PATH}. Set {variable} to "
            f"a shorter one"
        )
    if make_url(address(path)).database != str(path):  # SQLAlchemy before 2.1 can't quote a question mark
        raise UserError(f"the path of the record, {path}, has a character that no database can have: change {variable}")
    return path


def address(path: Path) -> str:
    """The address of a database for MLflow, with its path quoted.

    MLflow would create folders named as in the quoted path if the address began with `sqlite:`.
    """
    return URL.create("sqlite+pysqlite", database=str(path)).render_as_string()


def read_only_address(path: Path) -> str:
    """The same for a database that must not be written to, nor files next to it."""
    query = _without_writing(path) | {"uri": "true"}
    return URL.create("sqlite+pysqlite", database=f"file:{quote(str(path))}", query=query).render_as_string()


def _without_writing(path: Path) -> dict[str, str]:
    # Beside a write-ahead log somebody is writing, and SQLite needs that log. Without one it would create it.
    return {"mode": "ro"} if path.with_name(f"{path.name}-wal").exists() else {"immutable": "1"}


def create_database(path: Path, artifacts: Path) -> None:
    """Make an empty record at a path, at once: wherever the process is killed, there is a whole database or none.

    Only one process may do so at a time. A database without rows may be there; it is replaced.
    """
    artifacts.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.new")
    _remove(scratch)  # a process that was killed may have left one
    try:
        scratch.write_bytes(_empty_database())
        with closing(sqlite3.connect(scratch)) as database, database:
            database.execute("UPDATE experiments SET artifact_location = ?", (artifacts.as_uri(),))
        with closing(sqlite3.connect(scratch)) as database:
            # Write-ahead logging lets others read during a write, and halves the time of a write.
            database.execute("PRAGMA journal_mode=WAL")
        _remove(path)
        scratch.rename(path)
    finally:
        _remove(scratch)


def _remove(path: Path) -> None:
    """Remove a database, and then its journal, which would spoil a new one."""
    for suffix in ("", *BESIDE):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@cache
def _empty_database() -> bytes:
    """The content of an empty record. It is made in memory, where a hundred migrations need no disk."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # takes a second, and is rarely needed

    store: Any = SqlAlchemyStore("sqlite+pysqlite:///:memory:", "artifacts")  # type: ignore[no-untyped-call]
    store.create_experiment(EXPERIMENT)
    with closing(store.engine.raw_connection()) as connection:
        return bytes(connection.driver_connection.serialize())


def is_unfinished(path: Path) -> bool:
    """Whether a database lacks the experiment and holds nothing: earlier versions left one if they were killed."""
    with _open(path) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        experiments = database.execute("SELECT name FROM experiments") if "experiments" in tables else []
        others = tables - {"experiments", "alembic_version", "workspaces", "sqlite_sequence"}
        return {name for (name,) in experiments} <= {"Default"} and not any(
            database.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchone() for table in others
        )


def find_artifacts(path: Path, home: Path) -> Path | None:
    """The folder of the files of all runs: that of this home, also after it was moved; the database is then mended.

    A database outside of the home may belong to another home too, and then keeps the files there. None if the
    experiment keeps them in no folder. Raises UserError if they are in a folder that is missing, and not in this home.
    """
    own = home / "artifacts"
    with _open(path) as database:
        where = "SELECT experiment_id, artifact_location FROM experiments WHERE name = ?"
        if (found := database.execute(where, (EXPERIMENT,)).fetchone()) is None:
            return own
        experiment, location = found
        place = urlparse(location)
        if place.scheme not in ("", "file"):
            return None
        recorded = Path(url2pathname(place.path))
        if recorded == own:
            return own
        if path.parent != home:
            if recorded.is_dir():
                return recorded
            runs = database.execute("SELECT run_uuid FROM runs WHERE experiment_id = ?", (experiment,))
            if not any((own / run).is_dir() for (run,) in runs):
                raise UserError(
                    f"the record {path} keeps its files in {recorded}, which is missing: set SIMCLR_HOME to where that "
                    f"folder's parent is now, or create the folder if it was deleted"
                )
        if can_write(path, path.parent):  # so that MLflow finds the files as well
            with database:
                changes = (own.as_uri(), len(location) + 1, experiment, len(location) + 1, f"{location}/")
                database.execute(
                    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ? AND "
                    "substr(artifact_uri, 1, ?) = ?",
                    changes,
                )
                moved = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
                database.execute(moved, (own.as_uri(), experiment))
        return own


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    name = f"file:{quote(str(path))}?{urlencode({} if can_write(path, path.parent) else _without_writing(path))}"
    with closing(sqlite3.connect(name, timeout=20, uri=True)) as database:
        yield database


def can_write(*places: Path) -> bool:
    """Whether files and folders can be written, as far as they exist."""
    return all(os.access(place, os.W_OK) for place in places if place.exists())


def owner(folder: Path) -> str:
    """A name of a home among those on all machines."""
    home = f"{uuid.getnode()} {platform.node()} {folder}"
    return hashlib.blake2b(home.encode(), digest_size=8).hexdigest()
