"""What is wrong with a Ray cluster is said in one line."""

from __future__ import annotations

import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from experiments.workers.ray import Ray
from experiments.workers.task import Lost
from simclr.errors import UserError


def refused(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as error, Ray():
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused(monkeypatch, "") == "--cluster ray needs Ray: pip install 'simclr-suite[cluster]'"


def test_an_address_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        message = refused(monkeypatch, address)
    assert message.startswith(f"no Ray cluster answers at RAY_ADDRESS = {address}: start one with `ray start --head`")
    with socket.create_server(("127.0.0.1", 0)) as other, ThreadPoolExecutor() as threads:  # and something else listens
        address = f"127.0.0.1:{other.getsockname()[1]}"
        answer = threads.submit(lambda: other.accept()[0].sendall(b"HTTP/1.1 505 "))
        assert refused(monkeypatch, address).startswith(f"no Ray cluster answers at RAY_ADDRESS = {address}")
        answer.result(60)
        monkeypatch.setattr("experiments.workers.ray.CONNECT_SECONDS", 0.1)
        assert refused(monkeypatch, address).startswith("no Ray cluster")  # it connects, and hears nothing
    assert refused(monkeypatch, "somewhere") == (
        "RAY_ADDRESS is 'somewhere': expected HOST:PORT, or auto for the cluster on this machine"
    )


def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(*arguments: object, **options: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1")

    monkeypatch.setattr(ray, "init", init)
    message = refused(monkeypatch, "auto")
    assert "The cluster was started with: Ray: 2.50.0 Python: 3.12.1. Install the same versions" in message


def test_a_signal_still_asks_runs_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: signal.signal(signal.SIGTERM, signal.SIG_IGN))  # Ray's does this
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    with Ray():
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("share", "cores", "slots"), [(None, 1, 3), (1, 1, 3), (0.5, 1, 6), (0.25, 2, 6)])
def test_runs_share_gpus_as_far_as_there_are_cores(
    share: float | None, cores: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    machines = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 16.0}]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": each} for each in machines])
    with Ray(share, cores) as engine:
        assert engine.slots == slots


def test_a_task_that_is_cancelled_while_it_runs_is_lost() -> None:
    """Ray then raises an error of the task, which has the cancellation as its cause."""
    ray = pytest.importorskip("ray")

    def get(handle: object) -> None:
        raise ray.exceptions.RayTaskError("run", "Traceback ...", ray.exceptions.TaskCancelledError())

    engine = Ray()
    engine.ray = SimpleNamespace(exceptions=ray.exceptions, get=get)
    assert engine._outcome("handle") == Lost("it was cancelled")
