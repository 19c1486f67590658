"""Tests of experiments/runs/prepare.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.runs.prepare import prepare
from simclr.errors import UserError
from tests.helpers import tiny


def test_memory_is_planned_when_it_is_first_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(tiny(memory="2GiB"), home)
    assert prepared.config.train.micro_batch == "auto"
    assert prepared.plan is not None
    assert prepared.fitted.train.micro_batch == prepared.plan.micro_batch
    assert prepared.peak == prepared.plan.peak
    assert prepare(tiny(), home).plan is None  # a CPU's memory is the whole system's


def test_a_seed_shares_the_open_data(home: Path) -> None:
    prepared = prepare(tiny(), home)
    other = prepared.with_config(tiny(seed=7))
    assert other.data is prepared.data
    assert other.config.seed == 7


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"train": {"batch_size": 4096}}, r"train.batch_size = 4096"),
        ({"model": {"backbone": "vit_b_32", "stem": "imagenet", "width": 1.0}}, "vit_b_32"),
    ],
)
def test_what_cannot_run_is_refused(sections: dict[str, object], message: str, home: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tiny(**sections), home)
