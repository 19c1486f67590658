"""A study and a search on a Ray cluster, of which a machine dies: they end as they would without a cluster."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from experiments.search.space import Parameter
from experiments.search.trial_table import ranked
from experiments.search.trials import open_search, run_trials
from experiments.studies.plan import StudyPlan, plan_study
from experiments.studies.results import read_results
from experiments.studies.run import open_study, run_study
from experiments.tracking.store import Store
from experiments.workers import remote
from experiments.workers.engines import open_pool
from simclr.progress import Elsewhere, Observer
from tests.helpers import ROOT, tiny

pytest.importorskip("ray")

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
CONFIG = tiny(train={"epochs": 12, "knn_every": 0})
SECONDS = 600  # after which all work is asked to stop, which fails the test
SPACE = [Parameter(setting="optim.lr", low=1e-4, high=1e-2, log=True)]


class Machines(Observer):
    """Kills the only machine that trains as soon as a run does, and then starts two others."""

    def __init__(self, cluster: Any) -> None:
        self.cluster, self.first = cluster, cluster.add_node(**NODE)
        self.said: list[str] = []
        self.end = monotonic() + SECONDS

    def stop(self) -> bool:
        return monotonic() > self.end

    def say(self, text: str) -> None:
        self.said.append(text)

    def elsewhere(self, runs: list[Elsewhere]) -> None:
        if self.first is not None and any(run.host for run in runs):
            self.cluster.remove_node(self.first, allow_graceful=False)
            self.first = None
            for _ in range(2):
                self.cluster.add_node(**NODE)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose head trains nothing."""
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setattr(remote, "LOOK_SECONDS", 0.2)  # so that it sees short runs
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    settings = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
    started = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0} | settings)
    monkeypatch.setenv("RAY_ADDRESS", started.address)
    yield started
    started.shutdown()


def figures(store: Store, plan: StudyPlan, name: str) -> list[list[Any]]:
    table = read_results(open_study(name, plan, store, "").record(), store).table
    return (
        table[["cell", "seed", "status", "knn_top1", "linear_top1"]].sort_values(["cell", "seed"]).to_numpy().tolist()
    )


@pytest.mark.long
def test_a_study_and_a_search_on_a_cluster_of_which_a_machine_dies(cluster: Any, tmp_path: Path) -> None:
    plan, store, serial = plan_study(CONFIG, drop=["color_jitter"]), Store(tmp_path / "ray"), Store(tmp_path / "one")
    machines = Machines(cluster)
    with open_pool("ray") as pool:
        assert run_study(open_study("s", plan, store, ""), plan, store, [0], machines, pool) == []
        assert machines.first is None  # it was killed
        assert any("gone, so it is started again" in text for text in machines.said)
        with open_search("t", CONFIG, SPACE, store, parallel=True) as search:
            run_trials(search, 3, observer=machines, pool=pool)
    trained = Counter(run.tags["config_key"] for run in store.records(kind="pretrain") if run.finished)
    assert set(trained.values()) == {1}
    assert not [run for run in store.records() if run.status == "RUNNING"]
    assert run_study(open_study("s", plan, serial, ""), plan, serial, [0]) == []
    assert figures(store, plan, "s") == figures(serial, plan, "s")
    with open_search("t", CONFIG, SPACE, serial) as again:
        run_trials(again, 3)
    of_trials = [
        {trial.params["optim.lr"]: trial.values[0] for trial in ranked(each.study)} for each in (search, again)
    ]
    assert of_trials[0] == of_trials[1]
    assert len(of_trials[0]) == 3
