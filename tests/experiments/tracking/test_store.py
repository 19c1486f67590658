"""Tests of experiments/tracking/."""

from __future__ import annotations

import multiprocessing
import os
import socket
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from experiments.tracking import writing
from experiments.tracking.images import images_of
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, copy_run, start_run
from simclr.errors import UserError
from simclr.progress import Observer
from simclr.train.loop import Interrupted
from tests.system.processes import fork


def finished_run(store: Store, name: str = "run", key: str = "k") -> Record:
    tags = {"config_key": key, "data_digest": "d", "seed": "0"}
    with start_run(store, name, "pretrain", {"optim.lr": 0.1}, tags).finishing(Interrupted) as tracker:
        tracker.log({"train/loss": 2.0}, 1)
        tracker.log({"train/loss": 1.0}, 2)
    return tracker.record()


def test_a_record_has_everything_that_was_logged(store: Store) -> None:
    record = finished_run(store)
    assert (record.name, record.kind, record.status, record.finished) == ("run", "pretrain", "FINISHED", True)
    assert record.params == {"optim.lr": "0.1"}
    assert record.tags == {"kind": "pretrain", "config_key": "k", "data_digest": "d", "seed": "0"}
    assert record.metrics == {"train/loss": 1.0}
    assert record.parent is None
    assert record.history("train/loss").to_dict("list") == {"step": [1, 2], "value": [2.0, 1.0]}
    with Tracker(store, record.id).finishing(Interrupted) as tracker:
        assert tracker.record().status == "RUNNING"
        tracker.artifact("note.txt", lambda path: path.write_text("here"))
    assert record.artifact("note.txt").read_text() == "here"
    assert record.artifact("note.txt").is_relative_to(store.folder)
    with pytest.raises(UserError, match=r"has no file 'gone\.txt'"):
        record.artifact("gone.txt")


def test_a_step_logged_twice_keeps_its_last_value(store: Store) -> None:
    tracker = Tracker(store, finished_run(store).id)
    tracker.log({"train/loss": 0.5}, 1)
    tracker.flush()
    assert tracker.record().history("train/loss").to_dict("list") == {"step": [1, 2], "value": [0.5, 1.0]}


def test_runs_that_use_different_numbers_of_the_same_images_each_have_their_own(store: Store) -> None:
    for used in (500, 1000):
        tracker = Tracker(store, finished_run(store, name=f"with {used}").id)
        tracker.dataset("photos", "1e0fa654", "/photos", {"pretrain": used})
        tracker.flush()
        assert images_of(tracker.record()) == ("photos", {"pretrain": used})


def test_protocols_are_recorded_apart_from_other_tags(store: Store) -> None:
    tracker = Tracker(store, finished_run(store).id)
    tracker.tag({"protocol": 3})
    tracker.tag_protocols({"z/knn_top1": "3-abcdef"})
    record = tracker.record()
    assert record.protocols == {"z/knn_top1": "3-abcdef"}
    assert record.tags["protocol"] == "3"
    assert not any("/" in tag for tag in record.tags)


def test_a_copy_has_a_parent_and_names_its_source(store: Store) -> None:
    source = finished_run(store)
    Tracker(store, source.id).tag_protocols({"knn_top1": "3-abcdef"})
    Tracker(store, source.id).dataset("photos", "1e0fa654", "/photos", {"pretrain": 90})
    study = start_run(store, "study", "study", {})
    copy = copy_run(store, store.get(source.id), "cell", {"cell": "baseline"}, parent=study.run_id)
    assert (copy.kind, copy.parent, copy.finished) == ("cell", study.run_id, True)
    assert copy.tags["copied_from"] == source.id
    assert (copy.tags["cell"], copy.tags["config_key"]) == ("baseline", "k")
    assert copy.protocols == {"knn_top1": "3-abcdef"}
    assert images_of(copy) == ("photos", {"pretrain": 90})
    assert copy.history("train/loss").equals(source.history("train/loss"))
    assert [record.id for record in store.records(parent=study.run_id)] == [copy.id]


def test_a_copy_that_was_cut_short_has_no_protocol_without_its_metric(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = finished_run(store)
    Tracker(store, source.id).tag_protocols({"knn_top1": "3-abcdef"})
    study = start_run(store, "study", "study", {})
    monkeypatch.setattr(Tracker, "log_points", lambda self, points: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        copy_run(store, store.get(source.id), "cell", {}, parent=study.run_id)
    (copy,) = store.records(parent=study.run_id)
    assert copy.protocols == {}


def test_the_settings_of_an_augmentation_that_is_not_used_are_only_for_mlflows_pages(store: Store) -> None:
    params = {"augment.blur.p": "0.0", "augment.blur.kernel": "0.1", "augment.crop.p": "1.0"}
    run = start_run(store, "run", "pretrain", params)
    run.finish("FINISHED")
    study = start_run(store, "study", "study", {})
    copy = copy_run(store, run.record(), "cell", {}, parent=study.run_id)
    for record in (run.record(), copy):
        assert store.client.get_run(record.id).data.params == params
        assert record.params.keys() == params.keys() - {"augment.blur.kernel"}


@pytest.mark.parametrize("name", ["bob's", 'say "cheese"', "100 %", "a;b"])
def test_any_text_can_be_a_tag(name: str, store: Store) -> None:
    start_run(store, "s", "search", {}, {"search": name})
    start_run(store, "t", "search", {}, {"search": "another"})
    assert [record.name for record in store.records(kind="search", search=name)] == ["s"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted(3), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (BrokenPipeError(), "KILLED"),  # of `simclr ablate 2>&1 | head`
        (ValueError("boom"), "FAILED"),
        (SystemExit(1), "FAILED"),
    ],
)
def test_a_run_that_ends_early_records_why(store: Store, error: BaseException, status: str) -> None:
    tracker = start_run(store, "early", "pretrain", {})
    tracker.log({"train/loss": 3.0}, 1)
    with pytest.raises(type(error)), tracker.finishing(Interrupted):
        raise error
    record = tracker.record()
    assert record.status == status
    assert record.metrics == {"train/loss": 3.0}
    assert ("boom" in record.tags.get("error", "")) == isinstance(error, ValueError)


def test_only_one_process_trains_a_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LOCK_SECONDS", 0.0)
    tracker = start_run(store, "locked", "pretrain", {})
    with (
        tracker.finishing(Interrupted),
        pytest.raises(UserError, match="another process is training run"),
        tracker.finishing(Interrupted),
    ):
        pass
    assert tracker.record().finished


def test_runs_are_found_by_key_name_and_id(store: Store) -> None:
    with pytest.raises(UserError, match="there is no run in"):
        store.find(None)
    first, second = finished_run(store, "a", "k1"), finished_run(store, "b", "k2")
    assert [record.id for record in store.of_key("k1", "d")] == [first.id]
    assert store.of_key("k1", "other data") == []
    assert store.find(None).id == second.id
    assert store.find("a").id == first.id
    assert store.find(first.short_id).id == first.id
    with pytest.raises(UserError, match="no run has the name 'x'"):
        store.find("x")
    with pytest.raises(UserError, match=f"'{first.id[:3]}' is too short for an id: give at least 4 characters"):
        store.find(first.id[:3])
    assert [record.name for record in store.records()] == ["b", "a"]
    assert [record.name for record in store.records(config_key="k1")] == ["a"]
    study = start_run(store, "study", "study", {})
    start_run(store, "cell", "pretrain", {}, parent=study.run_id).finish("FINISHED")
    assert (store.find(None).name, store.find("cell").name) == ("b", "cell")  # those of studies only by name


def test_which_of_several_runs_with_a_name_is_used_is_said(store: Store) -> None:
    said: list[str] = []

    class Listening(Observer):
        def note(self, text: str, folder: Path | None = None) -> None:
            said.append(text)

    finished_run(store, "photos-s0", "k1")
    newest, single = finished_run(store, "photos-s0", "k2"), finished_run(store, "one", "k1")
    start_run(store, "photos-s0", "pretrain", {}).finish("FAILED")
    heard = Store(store.folder, observer=Listening())
    assert (heard.find("photos-s0").id, heard.find("one").id) == (newest.id, single.id)
    assert said == [f"2 runs are called photos-s0: using the newest, {newest.short_id}"]


def open_together(home: Path, ready: Barrier) -> None:
    """Open a store and record a run, at the same moment as other processes."""
    ready.wait()
    store = Store(home)
    with start_run(store, "together", "pretrain", {}).finishing(KeyboardInterrupt) as tracker:
        for step in range(5):
            tracker.log({"train/loss": 1.0}, step)
            tracker.flush()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_four_processes_may_create_a_store_at_once(tmp_path: Path) -> None:
    ready = multiprocessing.get_context("forkserver").Barrier(4, timeout=600)
    processes = [fork(open_together, tmp_path / "fresh", ready) for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    records = Store(tmp_path / "fresh").records()
    assert [record.status for record in records] == ["FINISHED"] * 4
    assert all(len(record.history("train/loss")) == 5 for record in records)


def test_the_tracking_uri_names_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    finished_run(Store(tmp_path / "empty" / "home"))
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "empty" / "home" / "mlflow.db").exists()


def test_a_store_that_cannot_be_opened_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "garbage.db").write_text("not a database, but long enough to look like one" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'garbage.db'}")
    with pytest.raises(UserError, match=r"can't open the tracking store .* not a database.*restore a copy") as error:
        Store(tmp_path / "empty" / "home")
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_run_is_named_in_few_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]  # nobody listens there any more
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(UserError) as error:
        Store(tmp_path / "home")
    assert str(error.value) == (
        f"can't open the tracking store http://127.0.0.1:{port}: Connection refused. Start the server, or change "
        f"MLFLOW_TRACKING_URI"
    )


def test_a_request_with_a_file_may_take_minutes(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[str] = []

    def transfer(*arguments: str) -> str:
        limits.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
        return str(tmp_path)

    tracker = start_run(store, "run", "pretrain", {})
    store.artifacts = None  # as with a server
    monkeypatch.setattr(store.client, "log_artifact", transfer)
    monkeypatch.setattr(store.client, "download_artifacts", transfer)
    usual = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    tracker.artifact("note.txt", lambda path: path.write_text("here"))
    tracker.flush()
    tracker.record().artifact("note.txt")
    assert limits == ["600", "600"]
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == usual == "8"


def test_a_kept_file_is_on_the_disk_before_it_gets_its_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fsync

    def watch(file: int) -> None:
        synced.append(os.fstat(file).st_ino)
        sync(file)

    monkeypatch.setattr(os, "fsync", watch)
    tracker = start_run(store, "run", "pretrain", {})
    tracker.artifact("note.txt", lambda path: path.write_text("here"))
    tracker.flush()
    assert tracker.record().artifact("note.txt").stat().st_ino == synced[-1]
    assert len(synced) == 2  # first in the journal
