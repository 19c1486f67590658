"""Tests of experiments/runs/pictures.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis import plots
from experiments.runs.pictures import draw_neighbours, draw_tsne
from simclr.data.dataset import Dataset
from simclr.errors import BadSettings, UserError
from tests.helpers import subject_of


def test_a_map_has_a_point_for_each_image_and_is_reproducible(digits: Dataset, tmp_path: Path) -> None:
    subject = subject_of(digits)
    options = {"part": "test", "images": 60, "perplexity": 10.0, "seed": 0}
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


def test_a_collapsed_encoder_has_no_pictures(digits: Dataset, tmp_path: Path) -> None:
    subject, query = subject_of(digits), tmp_path / "query.png"
    for parameter in subject.model.parameters():
        parameter.data.zero_()
    Image.fromarray(digits.images[0].transpose(1, 2, 0)).save(query)
    with pytest.raises(BadSettings, match="the encoder has collapsed"):
        draw_tsne(subject, tmp_path / "a", part="test", images=60, perplexity=10.0, seed=0, thumbnails=False)
    with pytest.raises(BadSettings, match="the encoder has collapsed"):
        draw_neighbours(subject, [query], tmp_path / "out.png", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["query.png"]


def test_the_nearest_neighbour_of_a_training_image_is_itself(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = int(digits.parts["pretrain"][5])
    query = tmp_path / "query.png"
    Image.fromarray(digits.images[row].transpose(1, 2, 0)).save(query)
    drawn: list[tuple[np.ndarray, np.ndarray, list[float], list[str | None]]] = []
    monkeypatch.setattr(plots, "neighbours", lambda lines, out: (drawn.extend(lines), out.touch()))
    draw_neighbours(subject_of(digits), [query], tmp_path / "out.png", 3)
    ((_, pictures, similarities, labels),) = drawn
    np.testing.assert_array_equal(pictures[0], digits.images[row].transpose(1, 2, 0))
    assert similarities[0] == pytest.approx(1, abs=1e-4)
    assert labels[0] == digits.classes[digits.labels[row]]
    assert sorted(similarities, reverse=True) == similarities


def test_a_query_that_is_not_an_image_is_named(digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("text")
    with pytest.raises(UserError, match=r"note\.png"):
        draw_neighbours(subject_of(digits), [tmp_path / "note.png"], tmp_path / "out.png", 3)
