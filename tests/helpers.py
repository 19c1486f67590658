"""Shared by many tests: a tiny config on the embedded digits."""

from __future__ import annotations

from pathlib import Path

import torch

from simclr.build import build_model
from simclr.config import Config, make
from simclr.data.dataset import Dataset
from simclr.evaluate.protocol import make_protocol
from simclr.evaluate.subject import Subject
from simclr.settings import merge

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


def tiny(**sections: object) -> Config:
    """The tiny config with some sections' settings changed."""
    return make(merge(TINY, sections))


def subject_of(data: Dataset, settings: list[str] | None = None, layer: str = "h", **sections: object) -> Subject:
    """The untrained tiny network on a data set, under a protocol with some settings changed."""
    config = tiny(**sections)
    model = build_model(config, data, torch.device("cpu"))
    return Subject(model, config, data, make_protocol(settings or [], layer=layer))
