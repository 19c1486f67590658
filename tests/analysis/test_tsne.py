from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from analysis import tsne as embedding

PIXELS, DIGITS = (part[:300] for part in load_digits(return_X_y=True))


def test_the_map_is_the_same_each_time_and_keeps_the_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "MANY", 200)
    monkeypatch.setitem(sys.modules, "openTSNE", None)  # not installed
    points, method = embedding.tsne(PIXELS, seed=3, perplexity=20)
    assert method.startswith("scikit-learn")
    assert points.shape == (300, 2)
    np.testing.assert_array_equal(points, embedding.tsne(PIXELS, seed=3, perplexity=20)[0])
    np.testing.assert_array_equal(points, embedding.tsne(2 * PIXELS, seed=3, perplexity=20)[0])  # directions alone
    found = embedding.neighbour_agreement(points, PIXELS, DIGITS)
    assert found.points > 0.9
    shuffled = embedding.neighbour_agreement(points[::-1], PIXELS, DIGITS)
    assert shuffled.points < 0.3
    assert shuffled.features == found.features


def test_many_points_go_to_opentsne_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openTSNE")
    monkeypatch.setattr(embedding, "MANY", 200)
    points, method = embedding.tsne(PIXELS, seed=3)
    assert method.startswith("openTSNE")
    np.testing.assert_array_equal(points, embedding.tsne(PIXELS, seed=3)[0])
    assert embedding.neighbour_agreement(points, PIXELS, DIGITS).points > 0.9


@pytest.mark.parametrize("perplexity", [0, 20, 30])
def test_a_perplexity_that_cannot_be_is_refused(perplexity: float) -> None:
    with pytest.raises(ValueError, match=f"perplexity {perplexity} with 20 images"):
        embedding.tsne(PIXELS[:20], 0, perplexity)


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_agreement_is_leaving_one_out_with_scikit_learn(k: int) -> None:
    x, y = PIXELS[:100], DIGITS[:100]
    flat = x @ np.random.default_rng(0).normal(size=(64, 2))
    found = embedding.neighbour_agreement(flat, x, y, k)
    for part, metric, score in ((flat, "euclidean", found.points), (x, "cosine", found.features)):
        peer = KNeighborsClassifier(min(k, 99), metric=metric)
        assert score == pytest.approx(cross_val_score(peer, part, y, cv=LeaveOneOut()).mean())
