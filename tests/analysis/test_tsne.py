"""Tests of t-SNE maps and their agreement with the features."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from analysis import tsne as embedding

PIXELS, DIGITS = (part[:150] for part in load_digits(return_X_y=True))


def test_map_is_reproducible_ignores_scale_and_keeps_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "OPENTSNE_ABOVE", 100)
    monkeypatch.setitem(sys.modules, "openTSNE", None)  # as if it were not installed
    points, library = embedding.tsne(PIXELS, seed=3, perplexity=15)
    assert library.startswith("scikit-learn")
    assert points.shape == (150, 2)
    np.testing.assert_array_equal(points, embedding.tsne(2 * PIXELS, seed=3, perplexity=15)[0])
    found = embedding.neighbour_agreement(points, PIXELS, DIGITS)
    assert found.points > 0.9
    shuffled = embedding.neighbour_agreement(points[::-1], PIXELS, DIGITS)
    assert shuffled.points < 0.3
    assert shuffled.features == found.features


def test_many_points_use_opentsne_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openTSNE")
    monkeypatch.setattr(embedding, "OPENTSNE_ABOVE", 100)
    points, library = embedding.tsne(PIXELS, seed=3, perplexity=15)
    assert library.startswith("openTSNE")
    np.testing.assert_array_equal(points, embedding.tsne(PIXELS, seed=3, perplexity=15)[0])
    assert embedding.neighbour_agreement(points, PIXELS, DIGITS).points > 0.9


@pytest.mark.parametrize("perplexity", [0, 20, 30])
def test_perplexity_must_be_positive_and_below_the_number_of_images(perplexity: float) -> None:
    with pytest.raises(
        ValueError, match=f"perplexity {perplexity} with 20 images: expected more than 0 and less than 20, such as 5"
    ):
        embedding.tsne(PIXELS[:20], 0, perplexity)


@pytest.mark.parametrize("features", [np.zeros((80, 5)), np.ones((80, 5)), np.arange(1, 81)[:, None] * np.ones(5)])
def test_features_of_one_direction_have_no_map(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the features of all 80 images are the same"):
        embedding.tsne(features, 0, 20)


def test_two_directions_have_a_map() -> None:
    points, _ = embedding.tsne(np.repeat(np.eye(2), 40, axis=0), 0, 20)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_agreement_equals_scikit_learns_leave_one_out(k: int) -> None:
    x, y = PIXELS[:40], DIGITS[:40]
    flat = x @ np.random.default_rng(0).normal(size=(64, 2))
    found = embedding.neighbour_agreement(flat, x, y, k)
    for part, metric, score in ((flat, "euclidean", found.points), (x, "cosine", found.features)):
        peer = KNeighborsClassifier(min(k, 39), metric=metric)
        assert score == pytest.approx(cross_val_score(peer, part, y, cv=LeaveOneOut()).mean())


def test_a_large_map_puts_others_among_their_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = 4 * np.eye(8)[labels] + draw.normal(size=(300, 8)) * 0.3
    whole, how = embedding.large_map(features, 0, 10)
    assert np.array_equal(whole, embedding.tsne(features, 0, 10)[0])
    monkeypatch.setattr(embedding, "LARGEST_MAP", 90)
    points, how = embedding.large_map(features, 0, 10)
    assert how.endswith("of 90 images; the others are at the median of their 10 nearest")
    assert np.isfinite(points).all()
    centres = np.stack([points[labels == label].mean(0) for label in range(3)])
    distances = np.linalg.norm(points[:, None] - centres, axis=2)
    assert (distances.argmin(1) == labels).all()
    assert np.array_equal(points, embedding.large_map(features, 0, 10)[0])
