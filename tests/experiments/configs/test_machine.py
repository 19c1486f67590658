"""experiments/configs/machine.py."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import pytest

from experiments.configs import machine
from experiments.configs.machine import describe_machine, slow
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr import device as devices
from simclr.config import Config
from tests.helpers import tiny

FAST: dict[str, Any] = {
    "torch": "2.10.0",
    "memory": {"total": 2**35, "free": 2**34},
    "threads": 8,
    "cores": 8,
    "load": 1.0,
    "precision": "bf16",
    "fast_bf16": True,
    "thread_limits": [],
    "unused_gpu": False,
    "disk": {"free": 2**36, "total": 2**38},
    "store": {"writable": True, "folder": "simclr-runs"},
}
SLOW = {
    "float32": ({"fast_bf16": False}, "bfloat16"),
    "few threads": (
        {"threads": 1, "thread_limits": ["OMP_NUM_THREADS"]},
        "torch uses 1 of 8 CPU cores: unset OMP_NUM_THREADS",
    ),
    "busy": ({"load": 13.0, "threads": 1, "thread_limits": ["OMP_NUM_THREADS"]}, "a load of 13.0 on 8 cores"),
    "memory": ({"memory": {"total": 2**35, "free": 2**30}}, "Little memory is free (1.0 GiB)"),
    "disk": ({"disk": {"free": 2**29, "total": 2**38}}, "Little disk space is free (0.5 GiB)"),
    "read-only": ({"store": {"writable": False, "folder": "simclr-runs"}}, "nothing can be trained"),
}


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)


def test_on_a_gpu_with_enough_of_everything_nothing_is_slow() -> None:
    assert slow(FAST, "cuda") == []
    assert slow(FAST | {"load": None, "memory": {"total": None, "free": None}}, "cuda") == []


def test_what_is_so_by_choice_is_not_blamed_on_the_machine() -> None:
    (only,) = slow(FAST | {"precision": "fp32", "threads": 4, "unused_gpu": True}, "cpu")
    assert only == "Training runs on the CPU although there is a GPU: leave out --device."


@pytest.mark.parametrize("case", SLOW)
def test_what_slows_runs_down_is_named(case: str) -> None:
    changes, expected = SLOW[case]
    without_gpu, reason = slow(FAST | changes, "cpu")
    assert without_gpu.startswith("There is no GPU that torch can use")
    assert expected in reason


def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (only,) = slow(FAST, "cpu")
    assert only.startswith("There is an NVIDIA GPU that this torch (2.10.0) can't use")


def test_the_facts_are_those_of_this_machine(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    timed: list[Config] = []
    monkeypatch.setattr(machine, "seconds_per_image", lambda config: timed.append(config) or 0.01)
    monkeypatch.setattr(
        metadata, "requires", lambda _: ["numpy>=1", "torch>2 ; extra == 'heic'", 'nosuch; extra == "hf"']
    )
    for name, device, status in (
        ("fast", "cpu", "FINISHED"),
        ("other", "tpu", "FINISHED"),
        ("failed", "cpu", "FAILED"),
    ):
        here = devices.describe(devices.resolve("cpu"))
        tracker = start_run(store, name, "pretrain", {}, {"device": here if device == "cpu" else device})
        tracker.log({"perf/images_per_second": 321.0})
        tracker.finish(status)
    facts = describe_machine(config, store)
    assert timed == [config]
    assert facts["images_per_second"] == pytest.approx(100)
    assert facts["finished"] == [{"run": "fast", "images_per_second": 321.0}]
    assert facts["extras"] == {"export": [], "tsne": [], "heic": [], "hf": ["nosuch"]}
    assert facts["store"]["runs"] == 3
    assert 0 < facts["memory"]["free"] <= facts["memory"]["total"] <= devices.system_memory()
    assert 1 <= facts["cores"] <= os.cpu_count()  # type: ignore[operator]
    assert 0 < facts["disk"]["free"] <= facts["disk"]["total"]
