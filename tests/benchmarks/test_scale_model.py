"""The model of several machines, and the page that shows it."""

from __future__ import annotations

import pytest

from benchmarks.scale_model import SETUPS, predict, table
from tests.helpers import ROOT


def test_the_page_shows_what_the_model_predicts() -> None:
    assert table() in (ROOT / "docs/guides/scale.md").read_text(encoding="utf-8")


def test_the_sum_of_gradients_takes_what_a_ring_takes() -> None:
    one, *_, slow = SETUPS
    assert (predict(one).gather, predict(one).sum) == (0, 0)
    each_way = 63 / 64 * 112e6 / 1.1e9  # each process sends all but its own part, to reduce and to spread the sum
    assert predict(slow).sum == pytest.approx(2 * each_way + 126 * 10e-6, rel=0.01)
