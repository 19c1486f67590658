"""Copying a record. tests/system/test_team.py does so through a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf, nan
from pathlib import Path
from threading import Thread

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracking import MlflowClient

from experiments.tracking import uploading
from experiments.tracking.store import Store
from experiments.tracking.uploading import Content, Upload, open_server
from experiments.tracking.writing import Tracker, copy_run, start_run
from simclr.errors import RunFailed, UserError


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a run of its own and a copy of another run, whose curves hold all that a point can be."""
    folder = tmp_path_factory.mktemp("recorded")
    store = Store(folder)
    alone = start_run(store, "alone", "pretrain", {f"p{n}": n for n in range(130)}, {"config_key": "k"})
    alone.log_points([["loss", value, 1000 + n, step] for n, (value, step) in enumerate([(nan, 1), (2, 2), (3, 2)])])
    alone.log_points([["loss", inf, 2000, 3], ["big", 1e300, 1, -1], *(["x", n / 3, n, n] for n in range(450))])
    alone.dataset("digits", "abc", "here", {"train": 3})
    alone.artifact("note.txt", lambda path: path.write_text("kept"))
    alone.tag_protocols({"knn_top1": "3-abcdef"})
    alone.describe("A *note*")
    alone.finish("FINISHED")
    study = start_run(store, "study", "study", {}, {"plan": "p"})
    own = start_run(store, "own", "pretrain", {}, {"config_key": "k2"}, parent=study.run_id)
    own.finish("KILLED")
    copy_run(store, alone.record(), "cell", {"cell": "one"}, parent=study.run_id)
    study.finish("FINISHED")
    return folder


@pytest.fixture
def source(recorded: Path, tmp_path: Path) -> Store:
    """A home of the test's own with that record."""
    return Store(Path(shutil.copytree(recorded, tmp_path / "home")))


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The record of a server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'server.db'}")
    return Store(tmp_path / "kept")


def copied(source: Store, target: Store) -> Upload:
    work = Upload(source, target)
    work.copy()
    return work


def test_a_copy_has_everything_that_the_original_has(source: Store, target: Store) -> None:
    work = copied(source, target)
    assert len(work.ids) == 4
    records = {record.name: record for record in target.records() if record.kind != "cell"}
    (cell,) = (record for record in target.records() if record.kind == "cell")
    for original in source.records():
        copy = target.get(work.ids[original.id])
        assert (copy.name, copy.kind, copy.status, copy.started) == (
            original.name,
            original.kind,
            original.status,
            original.started,
        )
        assert (copy.params, copy.protocols) == (original.params, original.protocols)
        assert {k: v for k, v in copy.tags.items() if k != "copied_from"} == {
            k: v for k, v in original.tags.items() if k != "copied_from"
        }
        assert copy.metrics == original.metrics
        for metric in original.metrics:
            assert copy.history(metric).equals(original.history(metric))
            assert Content(target, target.client.get_run(copy.id)).points
    assert cell.parent == records["own"].parent == records["study"].id
    assert cell.tags["copied_from"] == records["alone"].id
    assert records["alone"].artifact("note.txt").read_text() == "kept"
    raw = target.client.get_run(records["alone"].id)
    assert raw.data.tags["mlflow.note.content"] == "A *note*"
    assert raw.info.end_time == source.client.get_run(work.missing[0].id).info.end_time
    (given,) = raw.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest[:4], given.dataset.profile) == ("digits", "abc-", '{"train": 3}')


def test_a_copy_is_made_once_and_follows_its_original(source: Store, target: Store) -> None:
    ids = copied(source, target).ids
    again = Upload(source, target)
    assert (again.ids, again.missing) == (ids, [])
    alone = source.find("alone")
    tracker = Tracker(source, alone.id)
    tracker.log({"eval/linear_top1": 0.5})
    tracker.artifact("note.txt", lambda path: path.write_text("new"))
    tracker.flush()
    work = copied(source, target)
    assert [content.id for content in work.missing] == [alone.id]
    assert work.ids == ids
    copy = target.find("alone")
    assert copy.artifact("note.txt").read_text() == "new"
    assert copy.metrics["eval/linear_top1"] == 0.5
    assert len(target.records()) == 4


@pytest.mark.parametrize("method", ["create_run", "log_artifact", "set_tag"])
def test_a_copy_that_was_cut_short_is_completed(
    method: str, source: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], getattr(MlflowClient, method)

    def cut(self: MlflowClient, *arguments: object, **options: object) -> object:
        answer = real(self, *arguments, **options)
        calls.append(method)
        if len(calls) == 1:
            raise MlflowException("cut short", INVALID_PARAMETER_VALUE)
        return answer

    monkeypatch.setattr(MlflowClient, method, cut)
    with pytest.raises(RunFailed, match="cut short"):
        copied(source, target)
    copied(source, target)
    assert len(target.records()) == 4
    assert Upload(source, target).missing == []


def test_what_arrives_differently_is_an_error_and_is_sent_again(
    source: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = MlflowClient.log_artifact

    def damaged(self: MlflowClient, run_id: str, path: str, *arguments: object) -> None:
        keep(self, run_id, path, *arguments)
        (target.folder / "artifacts" / run_id / "artifacts" / Path(path).name).write_text("kepT")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", damaged)
        with pytest.raises(RunFailed, match=r"the copy of run alone \(\w{8}\) differs in note.txt"):
            copied(source, target)
    copied(source, target)
    assert target.find("alone").artifact("note.txt").read_text() == "kept"


def test_runs_that_have_not_ended_and_names_that_are_taken_are_errors(
    source: Store, target: Store, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="there is no run in"):
        Upload(target, source)
    theirs = start_run(target, "study", "study", {}, {"plan": "another"})
    with pytest.raises(UserError, match=r"has another study 'study', and commands find it by that name"):
        Upload(source, target)
    target.client.delete_run(theirs.run_id)
    start_run(target, "alone", "pretrain", {}, {"config_key": "k"}).finish("FINISHED")
    assert Upload(source, target).known_configs == 1
    with (
        Tracker(source, source.find("alone").id).finishing(KeyboardInterrupt),
        pytest.raises(UserError, match=r"run alone .* has not ended"),
    ):
        Upload(source, target)


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, text = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[ThreadingHTTPServer]:
    """A web server that is no MLflow server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


def test_another_server_is_an_error_of_one_line(tmp_path: Path, web: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{web.server_port}"
    for answer, message in {
        (401, "who are you?"): r"refuses to answer \(status 401\): set MLFLOW_TRACKING_USERNAME",
        (404, "no such page"): r"does not answer like an MLflow server \(status 404\)",
        (200, "<html>"): r"does not answer like an MLflow server \(status 200\)",
        (200, "2.9.1"): f"runs MLflow 2.9.1, and this is MLflow {uploading.VERSION}: install the same major version",
    }.items():
        web.answer = answer  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=message):
            open_server(tmp_path, url)


@pytest.mark.parametrize(
    "url", ["mlflow.example.org:5000", "sqlite:///there.db", "http://", "", "ftp://host", "http://["]
)
def test_a_wrong_address_is_an_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the address of an MLflow server: expected http://HOST:PORT"):
        open_server(tmp_path, url)


def test_no_server_or_a_record_elsewhere_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"can't reach an MLflow server at http://127.0.0.1:9: Connection refused\."):
        open_server(tmp_path, "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="only a record on this disk can be copied: unset it"):
        open_server(tmp_path, "http://127.0.0.1:9")
