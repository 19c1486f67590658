"""Runs without pictures, and a study that the previous version recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis import plots
from experiments.runs import train
from experiments.tracking import Record, Store
from tests.experiments.studies.helpers import write_previous_study


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """The pictures of a run take longer than its training."""
    patch = pytest.MonkeyPatch()
    patch.setattr(train, "view_grid", lambda config, data, path: path.touch())
    patch.setattr(plots, "confusion_matrix", lambda matrix, classes, path: path.touch())
    yield
    patch.undo()


@pytest.fixture
def previous(store: Store) -> Record:
    """The study of the previous version, in an empty store of the test's own."""
    return write_previous_study(store)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store for the studies of one file."""
    folder: Path = tmp_path_factory.mktemp("studies")
    return Store(folder / "home")
