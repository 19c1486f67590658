"""Tests of experiments/runs/pictures.py."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from experiments.runs.pictures import draw_tsne
from simclr.data.dataset import Dataset
from simclr.errors import BadSettings, UserError
from tests.helpers import subject_of


def test_a_map_has_a_point_for_each_image_and_is_reproducible(digits: Dataset, tmp_path: Path) -> None:
    subject = subject_of(digits)
    options = {"name": "a run", "part": "test", "images": 60, "perplexity": 10.0, "seed": 0}
    note, _ = draw_tsne(subject, tmp_path / "a", thumbnails=True, **options)  # type: ignore[arg-type]
    assert "60 test images of digits, h" in note
    assert "on the map" in note
    table = pd.read_csv(tmp_path / "a.csv")
    assert len(table) == 60
    assert set(table["row"]) <= set(digits.parts["test"])
    assert table["class"].nunique() == 10
    draw_tsne(subject, tmp_path / "b", thumbnails=True, **options)  # type: ignore[arg-type]
    for suffix in (".csv", ".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with pytest.raises(UserError, match="perplexity"):
        draw_tsne(subject, tmp_path / "a", thumbnails=False, **(options | {"perplexity": 500.0}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown part 'tests'"):
        draw_tsne(subject, tmp_path / "a", thumbnails=False, **(options | {"part": "tests"}))  # type: ignore[arg-type]


def test_a_collapsed_encoder_has_no_map(digits: Dataset, tmp_path: Path) -> None:
    subject = subject_of(digits)
    for parameter in subject.model.parameters():
        parameter.data.zero_()
    with pytest.raises(BadSettings, match="the encoder has collapsed"):
        draw_tsne(
            subject, tmp_path / "a", name="a run", part="test", images=60, perplexity=10.0, seed=0, thumbnails=False
        )
    assert list(tmp_path.iterdir()) == []
