"""A tracking store that is quick to create."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from experiments.tracking.store import EXPERIMENT, Store


@pytest.fixture(scope="session", autouse=True)
def _quick_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Creating MLflow's database takes over a second of migrations, so new stores start as a copy of an empty one.

    tests/experiments/tracking/test_store.py creates real ones in processes of their own.
    """
    template = tmp_path_factory.mktemp("template") / "mlflow.db"
    create = Store.__init__

    def create_from_copy(self: Store, folder: Path) -> None:
        path = folder / "mlflow.db"
        if not path.exists() and template.exists() and folder.parent.is_dir():
            folder.mkdir(exist_ok=True)
            shutil.copy(template, path)
            with closing(sqlite3.connect(path)) as database:
                where = ((folder / "artifacts").as_uri(), EXPERIMENT)
                database.execute("UPDATE experiments SET artifact_location = ? WHERE name = ?", where)
                database.commit()
        create(self, folder)

    create(Store.__new__(Store), template.parent)
    with closing(sqlite3.connect(template)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    patch = pytest.MonkeyPatch()
    patch.setattr(Store, "__init__", create_from_copy)
    yield
    patch.undo()


@pytest.fixture
def store(tmp_path: Path, _quick_stores: Any) -> Store:
    """An empty store of the test's own."""
    return Store(tmp_path / "home")
