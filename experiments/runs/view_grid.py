"""Pictures of the views that training sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis import image_grids
from analysis.strip import save_strip
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.files import written_whole
from simclr.views import Pipeline, apply, draw

STRIP = "example-views.webp"  # the file of a run with its view strip
STRIP_SHOWS = "Six images, and below each the views that training makes of it in the first step."


def draw_view_grid(config: Config, data: Dataset, path: Path, images: int = 12) -> None:
    """Draw some originals, all of their views, and each augmentation alone (view two's where the views differ)."""
    originals = _originals(data, images)
    grid = _views(config, originals)
    first, second = config.pipelines()[:2]
    alone = {name: (name, params, 0) for name, params in first.items()}
    alone |= {f"{name} (view 2)": (name, params, 1) for name, params in second.items() if params != first.get(name)}
    for label, (name, params, view) in alone.items():
        grid[label] = _view(originals, {name: params.model_copy(update={"p": 1.0})}, config, view)
    with written_whole(path) as scratch:
        image_grids.image_rows({label: _channels_last(batch) for label, batch in grid.items()}, scratch)


def draw_view_strip(config: Config, data: Dataset, path: Path, images: int = 6) -> None:
    """Draw some originals, and all of their views in the first step, without any text."""
    save_strip([_channels_last(batch) for batch in _views(config, _originals(data, images)).values()], path)


def _originals(data: Dataset, images: int) -> Tensor:
    rows = data.parts["pretrain"][:: max(1, len(data.parts["pretrain"]) // images)][:images]
    return torch.from_numpy(data.images[rows])


def _views(config: Config, originals: Tensor) -> dict[str, Tensor]:
    """Originals, and all of their views."""
    whole, local = config.pipelines(), config.local_pipelines()
    names = [f"view {n}" for n in range(1, len(whole) + 1)] + [f"local crop {n}" for n in range(1, len(local) + 1)]
    made = zip(names, whole + local, strict=True)
    views = {name: _view(originals, each, config, number) for number, (name, each) in enumerate(made)}
    return {"original": originals.float() / 255, **views}


def _view(originals: Tensor, pipeline: Pipeline, config: Config, view: int) -> Tensor:
    return apply(originals, pipeline, draw(pipeline, len(originals), config.seed, 0, view))


def _channels_last(batch: Tensor) -> NDArray[np.float32]:
    return batch.permute(0, 2, 3, 1).numpy()
