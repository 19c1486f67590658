"""Tests of experiments/runs/estimate.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.runs import estimate as estimating
from experiments.runs.estimate import estimate
from experiments.runs.prepare import prepare
from simclr.errors import RunFailed, UserError
from simclr.train import cost
from tests.helpers import tiny


def test_an_estimate_has_the_time_of_all_steps(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "timed_steps", lambda *arguments, **options: 2.0)
    found = estimate(prepare(tiny(train={"epochs": 3}), home))
    assert found.seconds == 2.0 * found.prepared.steps.total == 2.0 * 3 * found.prepared.steps.per_epoch
    assert found.micro_batch == 256
    assert found.memory > 2**20
    assert found.parameters > 1000


def test_a_run_that_this_machine_cannot_hold_is_refused_before_a_step(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "timed_steps", lambda *arguments, **options: pytest.fail("a step was run"))
    monkeypatch.setattr("simclr.device.system_memory", lambda: 2.0**20)
    with pytest.raises(UserError, match=r"of memory and this machine has 1 MiB: add --memory"):
        estimate(prepare(tiny(), home))


def test_out_of_memory_while_timing_is_an_error_of_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 bytes")

    monkeypatch.setattr(cost, "train_step", fail)
    with pytest.raises(RunFailed, match=r"out of memory: lower train\.norm_batch"):
        estimate(prepare(tiny(), home))


def test_float32_is_timed_beside_bfloat16_on_request(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"bf16": 2.0, "fp32": 1.5}
    monkeypatch.setattr(estimating, "timed_steps", lambda config, *_, **options: seconds[config.train.precision])
    prepared = prepare(tiny(train={"precision": "bf16"}), home)
    assert estimate(prepared).seconds_in_fp32 is None
    found = estimate(prepared, in_fp32=True)
    assert (found.seconds_per_step, found.seconds_in_fp32) == (2.0, 1.5)
