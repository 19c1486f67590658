"""Fixtures that many tests share."""

from __future__ import annotations

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
