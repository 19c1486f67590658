"""Fixtures of the data tests: an empty home folder, and a generator of random pixels."""

import numpy as np
import pytest


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def rng():
    return np.random.default_rng(0)
