"""Shared pieces: a tiny config on the embedded digits, and one home folder with their decoded images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simclr.config import Config, make, merge
from simclr.data import Dataset, open_dataset
from simclr.model import build_model
from simclr.protocol import Subject, make_protocol

ROOT = Path(__file__).parent.parent
TINY = {
    "name": "tiny",
    "device": "cpu",
    "data": {"dataset": "digits"},
    "model": {"stem": "stride2", "width": 0.125, "out_dim": 16},
    "loss": {"temperature": 0.2},
    "optim": {"name": "adamw", "lr": 1e-3, "lr_scaling": "none", "warmup_epochs": 0},
    "train": {"epochs": 2, "batch_size": 256, "precision": "fp32", "knn_every": 0},
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def digits(home: Path) -> Dataset:
    return open_dataset(tiny().data, home)


def tiny(**sections: object) -> Config:
    """The tiny config with some sections' settings changed."""
    return make(merge(TINY, sections))


def subject_of(data: Dataset, settings: list[str] | None = None, layer: str = "h", **sections: object) -> Subject:
    """The untrained tiny network on a data set, under a protocol with some settings changed."""
    config = tiny(**sections)
    model = build_model(config, data, torch.device("cpu"))
    return Subject(model, config, data, make_protocol(settings or [], layer=layer))


@pytest.fixture(scope="session")
def clusters() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Overlapping classes: train features and labels, test features and labels."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 16, generator=draw)
    y = torch.arange(600) % 5
    x = centres[y] + 1.2 * torch.randn(600, 16, generator=draw)
    return x[:400], y[:400], x[400:], y[400:]


def simclr(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        env=os.environ | {"SIMCLR_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )
