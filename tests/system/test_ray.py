"""A study and a search on a Ray cluster, of which a machine dies: they end as they would without a cluster.

`-s` shows what the cluster costs.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.search.space import Parameter
from experiments.search.trial_table import ranked
from experiments.search.trials import Search, open_search, run_trials
from experiments.studies.execute import execute
from experiments.studies.opening import open_study
from experiments.studies.plan import StudyPlan, plan_study
from experiments.studies.results import read_results
from experiments.tracking.store import Store
from experiments.workers import remote
from experiments.workers.engines import open_pool
from experiments.workers.pool import Ended, Job, Pool
from simclr.progress import Elsewhere, Observer
from tests.helpers import ROOT, tiny
from tests.system.processes import finish, has_begun, runs_of, start, write_config
from tests.system.servers import Server, postgres

pytest.importorskip("ray")

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
SECONDS = 600  # after which all work of the short test is asked to stop, which fails it
SPACE = [Parameter(setting="optim.lr", low=1e-4, high=1e-2, log=True)]
Restart = Callable[[], None]


class Machines(Observer):
    """Machines of a cluster, one at first, which die as soon as a run trains if `die` says so. Then two others start.

    Whenever `every` more runs or trials are done, it calls the next of `restarts`.
    """

    def __init__(self, cluster: Any, seconds: float, every: int) -> None:
        self.cluster, self.alive, self.every = cluster, [cluster.add_node(**NODE)], every
        self.die, self.restarts, self.done = True, list[Restart](), 0
        self.said: list[str] = []
        self.end = time.monotonic() + seconds

    def stop(self) -> bool:
        return time.monotonic() > self.end

    def say(self, text: str) -> None:
        self.said.append(text)

    def overall(self, what: str, done: int, total: int, best: str, seconds: float = 0) -> None:
        if done > self.done and done % self.every == 0 and self.restarts:
            self.restarts.pop(0)()
        self.done = done

    def elsewhere(self, runs: Sequence[Elsewhere]) -> None:
        if self.die and any(run.host for run in runs):
            self.die = False
            for machine in self.alive:
                self.cluster.remove_node(machine, allow_graceful=False)
            self.alive = [self.cluster.add_node(**NODE) for _ in range(2)]

    def lost(self) -> int:
        """How many jobs were lost since the last call, all of which were started again."""
        lost = sum("gone, so it is started again" in text for text in self.said)
        self.said.clear()
        return lost


class Timed:
    """A pool that adds up how long the jobs of another one take, where they are done."""

    several = True

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.seconds = 0.0

    def run(self, jobs: Iterable[Job], store: Store, observer: Observer) -> Iterator[Ended]:
        measured = (job._replace(call=timed, arguments=(job.call, job.arguments)) for job in jobs)
        for ended in self.pool.run(measured, store, observer):
            call, arguments = ended.job.arguments
            answer, seconds = ended.result()
            self.seconds += seconds
            yield Ended(ended.job._replace(call=call, arguments=arguments), answer)


def timed(store: Store, observer: Observer, call: Any, arguments: tuple[Any, ...]) -> tuple[Any, float]:
    """What a job returns, and how long it took."""
    start = time.perf_counter()
    return call(store, observer, *arguments), time.perf_counter() - start


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose head trains nothing."""
    from ray._private import node, ray_constants
    from ray.cluster_utils import Cluster

    # Ray gives a machine 30 s to start, which a busy one may not keep.
    slow_clock = SimpleNamespace(**vars(time) | {"monotonic": lambda: time.monotonic() / 20})
    monkeypatch.setattr(node, "time", slow_clock)
    monkeypatch.setattr(Cluster, "_wait_for_node", partialmethod(Cluster._wait_for_node, timeout=SECONDS))
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # read once from the variable below
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.2)  # so that it sees short runs
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    settings = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
    started = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0} | settings)
    monkeypatch.setenv("RAY_ADDRESS", started.address)
    yield started
    started.shutdown()


@pytest.fixture
def record(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store whose record is a file or is on a team's server, and functions that restart parts of that server."""
    if request.param == "file":
        yield Store(tmp_path / "ray"), list
        return
    with postgres() as database:
        server = Server(tmp_path, database.uri)
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)

        def restart_database() -> None:
            database.kill()
            database.start()

        def restart_server() -> None:
            server.kill()
            server.start()

        yield Store(tmp_path / "ray", server=server.uri), lambda: [restart_database, restart_server]
        server.close()


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose runs are trained in one process, for all tests, which need the same ones."""
    return Store(tmp_path_factory.mktemp("serial"))


def figures(store: Store, plan: StudyPlan, name: str) -> list[list[Any]]:
    table = read_results(open_study(name, plan, store, "").record(), store).table
    return (
        table[["cell", "seed", "status", "knn_top1", "linear_top1"]].sort_values(["cell", "seed"]).to_numpy().tolist()
    )


def accuracies(search: Search) -> dict[float, float]:
    """Those of a search's trials, by their learning rates."""
    return {trial.params["optim.lr"]: trial.values[0] for trial in ranked(search.study)}


LONG = (50, ["loss.temperature=0.05,0.1,0.2,0.3,1"], 2, 20, 3, False, 3600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record", "epochs", "vary", "seeds", "trials", "every", "twice", "seconds"),
    [
        pytest.param("server", 12, ["loss.temperature=0.5"], 1, 3, 1, True, SECONDS, id="short"),
        pytest.param("file", *LONG, id="12 runs and 20 trials", marks=pytest.mark.long),
        pytest.param("server", *LONG, id="with a team's server", marks=pytest.mark.long),
    ],
    indirect=["record"],
)
def test_a_study_and_a_search_on_a_cluster_of_which_a_machine_dies(
    record: tuple[Store, Callable[[], list[Restart]]],
    epochs: int,
    vary: list[str],
    seeds: int,
    trials: int,
    every: int,
    twice: bool,
    seconds: float,
    cluster: Any,
    serial: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine dies in the study, and with `twice` those of the search die too.

    Without it, the time of the search is that of its trials and of the cluster.
    """
    config = tiny(train={"epochs": epochs, "knn_every": 0})
    (store, restarts), plan, numbers = record, plan_study(config, vary=vary), range(seeds)
    machines = Machines(cluster, seconds, every)
    with open_pool("ray") as pool:
        machines.restarts = restarts()
        assert execute("s", plan, store, numbers, "", machines, pool=pool).failures == []
        assert (machines.lost(), machines.restarts) == (1, [])
        machines.die, machines.restarts, machines.done = twice, restarts(), 0
        measured, start = Timed(pool), time.perf_counter()
        with open_search("t", config, SPACE, store, parallel=True) as search:
            run_trials(search, trials, observer=machines, pool=measured)
        wall = 2 * (time.perf_counter() - start)  # of both machines
        assert (machines.lost() > 0, machines.restarts) == (twice, [])
    trained = Counter(run.tags["config_key"] for run in store.records(kind="pretrain") if run.finished)
    assert set(trained.values()) == {1}
    assert not [run for run in store.records() if run.status == "RUNNING"]
    print(
        f"{trials} trials took {measured.seconds:.0f} s, and both machines {wall:.0f} s: {wall / measured.seconds:.3f}"
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert execute("s", plan, serial, numbers, "").failures == []
    assert figures(store, plan, "s") == figures(serial, plan, "s")
    with open_search("t-server" if restarts() else "t", config, SPACE, serial) as again:
        for trial in search.study.trials[len(again.study.trials) :]:
            again.study.enqueue_trial(trial.params)
        run_trials(again, trials)
    assert accuracies(again) == accuracies(search)
    assert len(accuracies(search)) == trials


@pytest.mark.long
def test_a_study_whose_driver_was_killed_is_run_again(cluster: Any, tmp_path: Path) -> None:
    """Its tasks die with it, in the middle of their training."""
    write_config(tmp_path)
    study = "ablate --config c.toml --drop color_jitter --drop flip --seeds 1 --name study"
    cluster.add_node(**NODE)
    home = tmp_path / "home"
    driver = start(home, f"{study} --cluster ray")
    end = time.monotonic() + SECONDS
    while not has_begun(home):
        assert driver.is_alive(), (tmp_path / "output.txt").read_text()
        assert time.monotonic() < end, "no run has begun"
        time.sleep(0.1)
    driver.kill()
    driver.join()
    finish(home, f"{study} --cluster ray")
    finish(tmp_path / "serial", study)
    serial = runs_of(tmp_path / "serial")
    assert serial.keys() == (runs := runs_of(home)).keys()
    for key, run in serial.items():
        assert runs[key].metrics["eval/val/linear_top1"] == run.metrics["eval/val/linear_top1"]
        assert runs[key].history("train/loss").equals(run.history("train/loss"))
