"""Runs without pictures, and a study that the previous version recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.tracking.store import Record, Store
from tests.experiments.studies.helpers import leave_out_pictures, write_previous_study


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        yield


@pytest.fixture
def previous(store: Store) -> Record:
    """The study of the previous version, in an empty store of the test's own."""
    return write_previous_study(store)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store for the studies of one file."""
    folder: Path = tmp_path_factory.mktemp("studies")
    return Store(folder / "home")
