"""A tracking store of a test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tracking.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of the test's own."""
    return Store(tmp_path / "home")
