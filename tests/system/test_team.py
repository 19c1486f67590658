"""The record of a team: an `mlflow server` on PostgreSQL, homes of several machines that use it, and `simclr upload`.

`-s` shows the figures.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from experiments.tracking.store import Store
from tests.experiments.commands.helpers import assert_one_line, invoke
from tests.experiments.tracking.test_store import finished_run
from tests.system.processes import finish, start, write_config
from tests.system.servers import Postgres, Server, postgres

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs fork")]


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as database:
        yield database


@pytest.fixture(scope="module")
def server(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), database.uri)
    server.start()
    yield server
    server.close()


def wait_for(store: Store, statuses: Collection[str], count: int, processes: Sequence[BaseProcess]) -> None:
    """Return when so many encoders have one of these statuses. The test fails if all processes have ended before."""
    while sum(run.status in statuses for run in store.records(kind="pretrain")) < count:
        assert any(process.is_alive() for process in processes), "all workers have ended"
        time.sleep(0.1)


def test_a_home_is_uploaded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_HOME", str(tmp_path / "home"))
    run = finished_run(Store(tmp_path / "home"), "mine", "uploaded")
    (tmp_path / "home/runs" / run.id).mkdir(exist_ok=True)
    (tmp_path / "home/runs" / run.id / "step-00000001.pt").touch()
    planned = json.loads(invoke("upload", server.uri, "--dry-run", "--json").stdout)
    assert (planned["runs"], planned["points"], planned["ids"], planned["verified"]) == (1, 2, {}, False)
    done = invoke("upload", server.uri)
    assert done.exit_code == 0, done.output
    assert f"with 2 points of metrics and 0 files (0.0 MB) to {server.uri}, read" in " ".join(done.stdout.split())
    assert "not copied: checkpoints of 1 run" in done.stdout
    again = json.loads(invoke("upload", server.uri, "--json").stdout)
    assert (again["runs"], again["already_there"]) == (0, 1)
    copy = Store(tmp_path / "other", server=server.uri).find("mine")
    assert copy.id == again["ids"][run.id]
    assert copy.history("train/loss").equals(run.history("train/loss"))
    assert_one_line(invoke("upload", "http://127.0.0.1:9"), 2, "can't reach an MLflow server at http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("workers", "drops", "seeds", "whole"),
    [
        (2, ["color_jitter"], 1, False),
        pytest.param(4, ["color_jitter", "flip", "crop"], 3, True, marks=pytest.mark.long),
    ],
)
def test_nothing_is_lost_or_trained_twice_when_the_database_and_the_server_restart(
    workers: int,
    drops: list[str],
    seeds: int,
    whole: bool,
    database: Postgres,
    server: Server,
    tmp_path: Path,
) -> None:
    """Each worker has a home of its own, as on a machine of its own, and a study of the same cells.

    As a server takes long to start, it is only restarted in the `whole` test, which compares figures with those of one
    process too.
    """
    write_config(tmp_path)
    study = f"ablate --config c.toml {' '.join(f'--drop {each}' for each in drops)} --seeds {seeds} --name "
    cells = (len(drops) + 1) * seeds
    homes = [tmp_path / f"{workers}-{number}" for number in range(workers)]
    store = Store(tmp_path / "watching", server=server.uri)
    before = {record.id for record in store.records()}
    begun = len(store.records(kind="pretrain"))
    done = sum(run.finished for run in store.records(kind="pretrain"))
    began = time.perf_counter()
    processes = [
        start(home, f"{study}{home.name}", f"{home.name}.txt", MLFLOW_TRACKING_URI=server.uri) for home in homes
    ]
    wait_for(store, {"RUNNING", "FINISHED", "FAILED", "KILLED"}, begun + 1, processes)
    database.kill()
    database.start()
    wait_for(store, {"FINISHED"}, done + cells // 2, processes)
    if whole:
        server.kill()
        server.start()
    for process in processes:
        process.join()
    outputs = {home.name: (tmp_path / f"{home.name}.txt").read_text() for home in homes}
    assert [process.exitcode for process in processes] == [0] * workers, outputs
    seconds = time.perf_counter() - began
    records = [record for record in store.records() if record.id not in before]
    assert {record.status for record in records} == {"FINISHED"}
    runs = [record for record in records if record.kind == "pretrain"]
    assert sorted(Counter(run.tags["config_key"] for run in runs).values()) == [1] * cells
    for run in runs:
        steps = run.history("train/loss")["step"].tolist()
        assert steps == list(range(1, steps[-1] + 1))
        assert len(store.points(run.id, "train/loss")) == len(steps)
        assert run.artifact("model.safetensors").stat().st_size > 0
    for home in homes:
        (own,) = (record for record in records if record.name == home.name)
        assert Counter(record.parent for record in records)[own.id] == cells
        assert not [path for path in (home / "unsent").rglob("*") if path.is_file()]
    trained = Counter(next(study.name for study in records if study.id == run.parent) for run in runs)
    print(f"{workers} workers trained {dict(trained)} of {cells} cells in {seconds:.0f} s")
    if whole:
        finish(tmp_path / "serial", f"{study}serial")
        serial = {run.tags["config_key"]: run for run in Store(tmp_path / "serial").records(kind="pretrain")}
        for run in runs:
            same = serial[run.tags["config_key"]].metrics
            figures = [name for name in same if not name.startswith(("perf/", "system/", "load/"))]
            assert {name: run.metrics[name] for name in figures} == {name: same[name] for name in figures}
