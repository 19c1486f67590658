"""Tests of experiments/runs/view_grid.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import image_grids
from experiments.runs.view_grid import draw_view_grid
from simclr.data.dataset import Dataset
from tests.helpers import tiny


def test_the_grid_has_a_row_for_each_view_and_each_augmentation(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[str, np.ndarray] = {}
    monkeypatch.setattr(image_grids, "image_rows", lambda images, path: (rows.update(images), path.touch()))
    config = tiny(augment2={"grayscale": {"p": 0.0}, "noise": {"p": 0.5}})
    draw_view_grid(config, digits, tmp_path / "grid.png")
    first, second = config.pipelines()
    assert list(rows) == ["original", "view 1", "view 2", *first, "noise (view 2)"]
    assert "noise" not in first
    assert "grayscale" not in second
    shown = digits.parts["pretrain"][:: len(digits.parts["pretrain"]) // 12][:12]
    originals = digits.images[shown].transpose(0, 2, 3, 1) / np.float32(255)
    np.testing.assert_array_equal(rows["original"], originals)
    np.testing.assert_array_equal(rows["flip"], originals[:, :, ::-1])  # every image is flipped, as p is 1 there
