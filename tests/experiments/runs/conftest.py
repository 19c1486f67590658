"""A store with two trained runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.runs.prepare import prepare
from experiments.runs.train import train
from experiments.tracking.store import Store
from tests.experiments.studies.helpers import leave_out_pictures
from tests.helpers import tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Store:
    """Two runs, t0.2-s0 and t0.5-s0, that differ in their temperature."""
    store = Store(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        for temperature in (0.2, 0.5):
            config = tiny(name=f"t{temperature}", loss={"temperature": temperature}, train={"epochs": 1})
            train(prepare(config, home), store)
    return store
