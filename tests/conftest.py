"""Fixtures that many tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from simclr.data.dataset import Dataset, open_dataset
from tests.helpers import tiny

# Examples of a property. `pytest --hypothesis-profile=full` takes more, and different ones each time.
settings.register_profile(
    "short",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("full", settings.get_profile("short"), max_examples=600, derandomize=False)
settings.load_profile("short")
os.environ["COLUMNS"] = "80"  # of the terminal that tests read tables from


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests first, so that no process is left with them when the others have finished."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def digits(home: Path) -> Dataset:
    return open_dataset(tiny().data, home)


@pytest.fixture(scope="session")
def clusters() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Overlapping classes: train features and labels, test features and labels."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 16, generator=draw)
    y = torch.arange(600) % 5
    x = centres[y] + 1.2 * torch.randn(600, 16, generator=draw)
    return x[:400], y[:400], x[400:], y[400:]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system in memory, of so many bytes, and returns its folder."""
    with ExitStack() as mounted:

        def mount(size: int) -> Path:
            folder = tmp_path / "disk"
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
            if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("mounting a small file system needs Linux and the rights to do so")
            # Lazily, as this process may keep a database on it open.
            mounted.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
            return folder

        yield mount
