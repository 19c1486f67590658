"""Commands run in this process, on a record that holds one trained run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from experiments.tracking.store import Store
from simclr.config import to_toml
from tests.experiments.commands.helpers import Run, invoke
from tests.experiments.studies.helpers import leave_out_pictures
from tests.helpers import tiny


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Result]:
    """A store with the run tiny-s0, and what the command that trained it printed. Its folder holds tiny.toml."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(to_toml(tiny(train={"knn_every": 1})))
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        patch.setenv("SIMCLR_HOME", str(folder))
        done = invoke("pretrain", "--config", folder / "tiny.toml")
    assert done.exit_code == 0, done.output
    return Store(folder), done


@pytest.fixture
def trained(training: tuple[Store, Result]) -> Store:
    """The store with the run tiny-s0. Tests may add runs with other names and evaluations to it."""
    return training[0]


@pytest.fixture
def run(trained: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on that store, in an empty folder that holds the config file tiny.toml."""
    monkeypatch.setenv("SIMCLR_HOME", str(trained.folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text((trained.folder / "tiny.toml").read_text())
    return invoke


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images: `flat` has no classes, `one` has one class, and `two` has two classes."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for name, count in {"flat": 40, "one/a": 8, "two/a": 20, "two/b": 20}.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 255, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder
