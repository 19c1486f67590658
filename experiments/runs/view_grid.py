"""A picture of the views that training sees."""

from __future__ import annotations

from pathlib import Path

import torch

from analysis import plots
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.files import written_whole
from simclr.views import Pipeline, apply, draw


def draw_view_grid(config: Config, data: Dataset, path: Path, images: int = 12) -> None:
    """Draw some originals, both of their views, and each augmentation alone (view two's where the views differ)."""
    rows = data.parts["pretrain"][:: max(1, len(data.parts["pretrain"]) // images)][:images]
    originals = torch.from_numpy(data.images[rows])
    grid = {"original": originals.float() / 255}

    def add(label: str, pipeline: Pipeline, view: int) -> None:
        grid[label] = apply(originals, pipeline, draw(pipeline, len(rows), config.seed, 0, view))

    first, second = config.pipelines()
    add("view 1", first, 0)
    add("view 2", second, 1)
    for name, params in first.items():
        add(name, {name: params.model_copy(update={"p": 1.0})}, 0)
    for name, params in second.items():
        if params != first.get(name):
            add(f"{name} (view 2)", {name: params.model_copy(update={"p": 1.0})}, 1)
    with written_whole(path) as scratch:
        plots.image_rows({label: batch.permute(0, 2, 3, 1).numpy() for label, batch in grid.items()}, scratch)
