"""A study that the previous version recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tracking.store import Record, Store
from tests.experiments.studies.helpers import write_previous_study


@pytest.fixture
def previous(store: Store) -> Record:
    """The study of the previous version, in an empty store of the test's own."""
    return write_previous_study(store)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store for the studies of one file."""
    folder: Path = tmp_path_factory.mktemp("studies")
    return Store(folder / "home")
