"""Fewer images, for evaluations that train or take many forms of an image."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simclr.data.dataset import Dataset


@pytest.fixture(scope="session")
def few(digits: Dataset) -> Dataset:
    """The digits with 256 training images, and 60 to validate and to test on."""
    sizes = {"train": 256, "val": 60, "test": 60}
    return replace(digits, parts=digits.parts | {part: digits.parts[part][:size] for part, size in sizes.items()})
