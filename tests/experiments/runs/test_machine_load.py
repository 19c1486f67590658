"""Tests of experiments/runs/machine_load.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.runs import machine_load as module
from experiments.runs.machine_load import STRETCHES, Load, Pace


@pytest.fixture(autouse=True)
def first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No earlier run of this process has warned."""
    monkeypatch.setattr(Pace, "warned", False)


def test_the_load_is_measured_at_most_every_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    load = Load(torch.device("cpu"), tmp_path)
    first = load.measure()
    assert first.keys() == {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/disk_available_megabytes",
    }
    assert 0 <= first["system/cpu_utilization_percentage"] <= 100
    clock[0] += 9.9
    assert load.measure() == {}
    clock[0] += 0.2
    assert load.measure().keys() == first.keys()


def test_the_memory_of_a_gpu_is_what_all_its_processes_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6_000_000_000, 8_000_000_000))
    assert Load(torch.device("cuda"), tmp_path).measure()["system/gpu_0_memory_usage_megabytes"] == 2000


def test_a_collapse_of_the_speed_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    pace = Pace(torch.device("cpu"))
    before = [300.0] * STRETCHES + [900.0] * STRETCHES + [100.0, 500.0]
    assert not any(map(pace.notice, before))
    said = [pace.notice(speed) for speed in [200.0] * 2 * STRETCHES]
    assert [number for number, text in enumerate(said, 1) if text] == [2]  # the third of five that are slow
    assert list(filter(None, said)) == [
        "training has become 4 times slower than at its best (from 900 to 200 images/s), probably because other "
        "programs keep this machine busy: close them, or wait, or press Ctrl-C and resume with --threads 1: threads "
        "wait for each other on a busy machine"
    ]


def test_a_busy_machine_is_told_when_training_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(module.psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(module.psutil, "getloadavg", lambda: (9.6, 1.0, 1.0))
    pace = Pace(torch.device("cpu"))
    said = [pace.notice(20.0) for _ in range(30)]
    assert [number for number, text in enumerate(said, 1) if text] == [STRETCHES]
    assert said[STRETCHES - 1] == (
        "other programs keep this machine busy (a load of 9.6 on 2 cores), so training is slow: close them, or wait, "
        "or press Ctrl-C and resume with --threads 1: threads wait for each other on a busy machine"
    )
    next_run = Pace(torch.device("cpu"))
    assert not any(next_run.notice(20.0) for _ in range(30))
    monkeypatch.setattr(Pace, "warned", False)
    gpu = Pace(torch.device("cuda"))
    assert not any(gpu.notice(20.0) for _ in range(30))


@pytest.mark.parametrize("speeds", [[900.0] * 30, [900.0] * 10 + [350.0] * 30, [100.0] * 5 + [900.0] * 20])
def test_a_speed_that_holds_is_no_collapse(speeds: list[float]) -> None:
    pace = Pace(torch.device("cpu"))
    assert not any(map(pace.notice, speeds))
