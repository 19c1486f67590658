"""A tracking store of a test's own, and runs without pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.tracking.store import Store
from tests.experiments.studies.helpers import leave_out_pictures


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """Leaves out the pictures of runs. The tests that look at them, in `runs`, have another fixture of this name."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        yield


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run says that other tests keep this machine busy."""
    monkeypatch.setattr("psutil.getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of the test's own."""
    return Store(tmp_path / "home")
