"""A run within a memory budget records its plan, and stays the run that it would have been without one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from experiments.runs.prepare import prepare
from experiments.runs.train import train
from experiments.tracking.store import Store
from simclr.train import budget
from simclr.train.memory import MIB, predict
from tests.helpers import tiny


def test_a_memory_budget_changes_the_micro_batch_and_not_the_run(
    home: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(model={"backbone": "resnet10"}, train={"batch_size": 256, "norm_batch": 32, "epochs": 1})
    room = sum(predict(config, 64).values())
    total = round(room / (1 - budget.FRAGMENTATION)) + 1
    monkeypatch.setattr(budget, "memory_budget", lambda *_: budget.MemoryBudget(total, {}))
    limited = config.model_copy(update={"memory": "1GiB"})  # without it, nothing is planned on a CPU
    record = train(prepare(limited, home), store)
    assert tomllib.loads(record.artifact("config.toml").read_text())["train"]["micro_batch"] == 64
    assert record.metrics["perf/predicted_memory_mib"] == pytest.approx(room / MIB)
    assert train(prepare(config, home), store).id == record.id


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_on_a_gpu_records_its_predicted_and_its_measured_peak(home: Path, store: Store) -> None:
    metrics = train(prepare(tiny(device="auto", train={"epochs": 1}), home), store).metrics
    predicted = metrics["perf/predicted_memory_mib"]
    assert 0 < metrics["perf/peak_memory_mib"] <= predicted + budget.WORKSPACES / MIB
    assert torch.cuda.get_per_process_memory_fraction(0) == 1.0
