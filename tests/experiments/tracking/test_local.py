"""The record on a disk: how it is created, where it may be, and what happens when it is moved or can't be written."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from filelock import FileLock
from mlflow import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from experiments.tracking import local
from experiments.tracking.store import Store, home
from experiments.tracking.writing import Tracker, start_run
from simclr.errors import RunFailed, UserError
from tests.experiments.tracking.test_store import finished_run


def keep(store: Store, run_id: str, text: str) -> None:
    tracker = Tracker(store, run_id)
    tracker.artifact("note.txt", lambda path: path.write_text(text))
    tracker.flush()


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file, to see whether anything changed."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# --- where it may be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "lustre"])
def test_a_record_on_a_network_file_system_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [("/", "ext4"), (str(tmp_path), kind), (str(tmp_path / "scratch"), "xfs")]
    found = [SimpleNamespace(mountpoint=place, fstype=each) for place, each in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: found)
    (tmp_path / "scratch").mkdir()
    for variable, uri in (("SIMCLR_HOME", ""), ("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/own.db")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match=rf"network file system \({kind}, .* set {variable} to a local disk"):
            Store(tmp_path / "home")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert not (tmp_path / "home").exists()
    assert Store(tmp_path / "scratch" / "home").records() == []  # a local disk that is mounted below


# --- creation ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["write_bytes", "unlink", "rename"])
def test_a_store_whose_creation_was_killed_is_created_by_the_next_command(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*arguments: object, **options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, kill)
        with pytest.raises(Killed):
            Store(tmp_path / "home")
    assert not (tmp_path / "home" / "mlflow.db").exists()
    assert finished_run(Store(tmp_path / "home")).finished
    assert not list((tmp_path / "home").glob("*.new*"))


def half_migrated(path: Path, statements: int) -> None:
    """What an earlier version left if it was killed after this many statements of its migrations."""
    path.parent.mkdir()
    left = [statements]

    def count(*arguments: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    event.listen(Engine, "before_cursor_execute", count)
    try:
        with suppress(Killed):
            MlflowClient(f"sqlite:///{path}").create_experiment("simclr")
    finally:
        event.remove(Engine, "before_cursor_execute", count)


@pytest.mark.parametrize("statements", [1, 30, 60, 120, 250, 500])
def test_a_database_that_an_earlier_version_never_finished_is_made_anew(statements: int, tmp_path: Path) -> None:
    half_migrated(tmp_path / "home" / "mlflow.db", statements)
    assert finished_run(Store(tmp_path / "home")).finished


def test_a_database_with_runs_is_never_made_anew(tmp_path: Path) -> None:
    finished_run(Store(tmp_path / "home"))
    (tmp_path / "home").rename(tmp_path / "moved")  # because MLflow checks each database once
    path = tmp_path / "moved" / "mlflow.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM experiments WHERE name = 'simclr'")
        database.execute("UPDATE alembic_version SET version_num = '27a6a02d2cf1'")
    with pytest.raises(UserError, match=r"can't open the tracking store .*: Detected out-of-date database schema"):
        Store(tmp_path / "moved")
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (1,)


def test_the_database_of_another_program_keeps_its_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path / 'shared.db'}")
    other = client.create_run(client.create_experiment("other")).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    store = Store(tmp_path / "home")
    assert [record.id for record in store.records()] == []
    keep(store, finished_run(store).id, "here")
    assert client.get_run(other).info.status == "RUNNING"


def test_an_experiment_that_was_deleted_in_mlflow_is_named(store: Store) -> None:
    run = finished_run(store)
    client = MlflowClient(store.uri)
    client.delete_experiment(store.experiment)
    with pytest.raises(UserError, match=r"was deleted in MLflow. To get it back, run .* mlflow experiments restore"):
        Store(store.folder)
    client.restore_experiment(store.experiment)
    assert [record.id for record in Store(store.folder).records()] == [run.id]


# --- moves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [False, True])
def test_a_home_that_was_moved_keeps_its_runs(copied: bool, tmp_path: Path) -> None:
    before, after = tmp_path / "home", tmp_path / "renamed" / "home"
    old = finished_run(Store(before))
    keep(old.store, old.id, "old")
    shutil.copytree(before, after)
    if not copied:
        shutil.rmtree(before)
    store = Store(after)
    new = finished_run(store, "new")
    keep(store, new.id, "new")
    for run, text in ((old, "old"), (new, "new")):
        found = store.get(run.id).artifact("note.txt")
        assert found.read_text() == text
        assert found.is_relative_to(after)
        (listed,) = MlflowClient(store.uri).list_artifacts(run.id)  # as MLflow's pages do
        assert listed.path == "note.txt"
    assert not (before / "artifacts" / new.id).exists()


def test_a_home_with_its_database_elsewhere_may_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    run = finished_run(Store(tmp_path / "home"))
    keep(run.store, run.id, "here")
    second = Store(tmp_path / "second home")  # shares the record, while the first one keeps the files
    assert second.get(run.id).artifact("note.txt").is_relative_to(tmp_path / "home")
    (tmp_path / "home").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"keeps its files in .*home/artifacts, which is missing: set SIMCLR_HOME"):
        Store(tmp_path / "second home")
    store = Store(tmp_path / "moved")
    assert store.get(run.id).artifact("note.txt").is_relative_to(tmp_path / "moved")
    assert len(MlflowClient(store.uri).list_artifacts(run.id)) == 1


def test_a_shared_record_stays_with_its_home_while_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "second home" / "artifacts" / "another run").mkdir(parents=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    run = finished_run(Store(tmp_path / "home"))
    keep(run.store, run.id, "here")
    (tmp_path / "home").rename(tmp_path / "not mounted")
    with pytest.raises(UserError, match=r"keeps its files in .*home/artifacts, which is missing"):
        Store(tmp_path / "second home")
    (tmp_path / "not mounted").rename(tmp_path / "home")
    assert Store(tmp_path / "second home").get(run.id).artifact("note.txt").read_text() == "here"


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["50%", "a%20b", "a?b", "a#b", 'it\'s "quoted"', "a; b & c = d", "ä 日本"])
def test_a_home_may_have_any_name(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / name)
    run = finished_run(store)
    keep(store, run.id, "here")
    assert Store(tmp_path / name).get(run.id).artifact("note.txt").read_text() == "here"
    assert len(MlflowClient(store.uri).list_artifacts(run.id)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_home_that_no_database_can_have_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 200) / ("y" * 200) / ("z" * 100)
    with pytest.raises(UserError, match=r"has \d+ bytes: SQLite opens up to 500. Set SIMCLR_HOME to a shorter one"):
        Store(long)
    monkeypatch.setenv("SIMCLR_HOME", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(UserError, match=r"caf\\udce9', is not valid UTF-8"):
        home()
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_is_a_loop_of_links_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path / "a"))
    with pytest.raises(UserError, match=r"set SIMCLR_HOME to another"):
        Store(home())


def test_the_longest_path_can_be_opened(tmp_path: Path) -> None:
    parts = local.LONGEST_PATH - len(str(tmp_path)) - len("//mlflow.db") - 200
    assert finished_run(Store(tmp_path / ("x" * 200) / ("y" * (parts - 1)))).finished


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite://", "expected sqlite:///FILE"),
        ("sqlite:///:memory:", "expected sqlite:///FILE"),
        ("sqlite:///{folder}/a?b/x.db", "expected sqlite:///FILE"),
        ("sqlite:///{folder}/missing/x.db", "there is no folder .*missing: create it"),
    ],
)
def test_a_tracking_uri_that_cannot_be_used_is_refused_at_once(
    uri: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(folder=tmp_path))
    with pytest.raises(UserError, match=f"MLFLOW_TRACKING_URI is .*{message}"):
        Store(tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


# --- records that can't be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("open_elsewhere", [False, True])
def test_a_home_that_cannot_be_written_is_read(
    open_elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(Store(tmp_path / "home"))
    keep(run.store, run.id, "here")
    killed = start_run(run.store, "killed", "pretrain", {})
    (tmp_path / "home").rename(tmp_path / "moved")
    database = tmp_path / "moved" / "mlflow.db"
    with closing(sqlite3.connect(database)) as writer:
        if open_elsewhere:  # which is when the write-ahead log exists
            writer.execute("BEGIN IMMEDIATE")
        else:
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            for suffix in ("-wal", "-shm"):
                Path(f"{database}{suffix}").unlink(missing_ok=True)
        before = files_of(tmp_path)
        monkeypatch.setattr(local, "can_write", lambda *places: False)
        store = Store(tmp_path / "moved")
        assert {record.id for record in store.records()} == {run.id, killed.run_id}
        assert store.get(run.id).artifact("note.txt").read_text() == "here"
        assert not store.writable
        with pytest.raises(RunFailed, match="readonly database"):
            start_run(store, "new", "pretrain", {})
        assert files_of(tmp_path) == before


# --- runs whose process is gone ---------------------------------------------------------------------------------------


def test_a_run_whose_process_was_killed_gets_the_status_killed(store: Store) -> None:
    killed, alive = (start_run(store, name, "pretrain", {}) for name in ("killed", "alive"))
    assert {record.status for record in store.records()} == {"RUNNING"}
    (store.run_folder(alive.run_id)).mkdir(parents=True)
    with FileLock(store.run_folder(alive.run_id) / "lock"):
        statuses = {record.id: record.status for record in Store(store.folder).records()}
    assert statuses == {killed.run_id: "KILLED", alive.run_id: "RUNNING"}
    assert {record.status for record in Store(store.folder).records()} == {"KILLED"}


def test_a_run_of_another_home_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    tracker = start_run(Store(tmp_path / "home"), "elsewhere", "pretrain", {})
    assert Store(tmp_path / "second home").get(tracker.run_id).status == "RUNNING"


def test_a_folder_for_checkpoints_does_not_hide_who_trains(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_run(store, "alive", "pretrain", {}).finishing(KeyboardInterrupt) as alive:
        monkeypatch.setenv("SIMCLR_CHECKPOINTS", str(store.folder / "elsewhere"))
        assert Store(store.folder).get(alive.run_id).status == "RUNNING"


def test_a_run_that_another_home_continued_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second")
    killed = start_run(first, "killed", "pretrain", {})
    with suppress(KeyboardInterrupt), killed.finishing(SystemExit):
        raise KeyboardInterrupt
    with Tracker(second, killed.run_id).finishing(KeyboardInterrupt):
        assert Store(first.folder).get(killed.run_id).status == "RUNNING"


def test_whoever_has_the_claim_of_a_run_ends_it_for_a_home_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    gone = start_run(Store(tmp_path / "first"), "gone", "pretrain", {})
    second = Store(tmp_path / "second")
    second.end_killed(gone.run_id)
    assert second.get(gone.run_id).status == "KILLED"
    assert not second.run_folder(gone.run_id).exists()  # otherwise the run would look like one of this home


def test_a_database_error_is_one_line_on_no_log(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = start_run(store, "run", "pretrain", {})
    with closing(sqlite3.connect(store.folder / "mlflow.db")) as database:
        database.execute("DROP TABLE tags")
    tracker.tag({"a": 1})
    with pytest.raises(RunFailed, match="no such table: tags") as error:
        tracker.flush()
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
