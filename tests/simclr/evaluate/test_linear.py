from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simclr.data.dataset import Dataset
from simclr.evaluate import linear
from simclr.evaluate.protocol import Linear

Clusters = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_finds_scikit_learns_optimum(l2: float, clusters: Clusters) -> None:
    x, y, test, _ = clusters
    weights = linear.fit_logistic(x, y, x.new_zeros(17, 5), l2)
    peer = LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-8).fit(x.numpy(), y.numpy())
    theirs = torch.from_numpy(np.vstack([peer.coef_.T, peer.intercept_]))

    def objective(w: torch.Tensor) -> float:
        scores = linear.logits(x.double(), w.double())
        return (torch.nn.functional.cross_entropy(scores, y, reduction="sum") + l2 / 2 * w[:-1].square().sum()).item()

    assert objective(weights) == pytest.approx(objective(theirs), rel=1e-3)  # float32 against float64
    assert (linear.logits(test, weights).argmax(1).numpy() == peer.predict(test.numpy())).mean() > 0.99


@pytest.mark.parametrize("l2", [0.1, 10.0])
def test_accuracy_is_scikit_learns_to_a_tenth_of_a_point(l2: float) -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(8000) % 10
    scales = torch.logspace(-1, 1, 32)  # of very different spread, as features are
    x = (torch.randn(10, 32, generator=draw)[y] + 1.5 * torch.randn(8000, 32, generator=draw)) * scales
    for standardised in (False, True):
        train, test = linear.standardise(x[:3000], x[3000:]) if standardised else (x[:3000], x[3000:])
        mine = linear.accuracy(
            linear.logits(test, linear.fit_logistic(train, y[:3000], x.new_zeros(33, 10), l2)), y[3000:]
        )
        peer = LogisticRegression(C=1 / l2, max_iter=10000, tol=1e-6).fit(train.numpy(), y[:3000].numpy())
        assert mine == pytest.approx(peer.score(test.numpy(), y[3000:].numpy()), abs=0.001)
        assert 0.5 < mine < 0.95


def test_the_l2_value_is_chosen_on_validation_and_noise_asks_for_a_strong_one(clusters: Clusters) -> None:
    x, y, test, test_y = clusters
    noise = torch.randn(600, 300, generator=torch.Generator().manual_seed(1))
    wide, held = torch.cat([x, 5 * noise[:400]], 1), torch.cat([test, 5 * noise[400:]], 1)
    train, val, queries = linear.standardise(wide[:300], wide[300:], held)
    weights, l2 = linear.linear_classifier(train, y[:300], val, y[300:], 5, Linear())
    assert l2 > 10
    unregularised = linear.fit_logistic(train, y[:300], wide.new_zeros(317, 5), 1e-6)
    assert linear.accuracy(linear.logits(queries, weights), test_y) > linear.accuracy(
        linear.logits(queries, unregularised), test_y
    )


def test_the_grid_is_the_papers() -> None:
    grid = Linear().grid()
    assert len(grid) == 45
    np.testing.assert_allclose(sorted(grid), np.logspace(-6, 5, 45))  # paper, B.8.1
    assert grid == sorted(grid, reverse=True)


def test_a_path_of_warm_starts_is_as_good_as_scikit_learn_started_anew(digits: Dataset) -> None:
    flat = torch.from_numpy(digits.images[:, 0].reshape(len(digits.images), -1).astype(np.float32))
    parts = {name: torch.from_numpy(rows) for name, rows in digits.parts.items()}
    y = torch.from_numpy(digits.labels)
    train, val, test = linear.standardise(*(flat[parts[p]] for p in ("train", "val", "test")))
    train_y, val_y, test_y = (y[parts[p]] for p in ("train", "val", "test"))
    weights, l2 = linear.linear_classifier(train, train_y, val, val_y, 10, Linear())
    mine = linear.accuracy(linear.logits(test, weights), test_y)
    peer = LogisticRegression(C=1 / l2, max_iter=2000).fit(torch.cat([train, val]), torch.cat([train_y, val_y]))
    assert mine == pytest.approx(peer.score(test, test_y), abs=0.006)  # two images of 359


def test_standardise_uses_the_first_ones_statistics_and_leaves_constant_columns(clusters: Clusters) -> None:
    x = torch.cat([clusters[0], torch.full((400, 1), 3.0)], 1)
    train, other = linear.standardise(x, x * 2)
    torch.testing.assert_close(train[:, :-1].std(0, correction=0), torch.ones(16))
    assert train[:, -1].abs().max() == 0
    torch.testing.assert_close(other[:, 0], (2 * x[:, 0] - x[:, 0].mean()) / x[:, 0].std(correction=0))


def test_accuracy_counts_the_k_highest() -> None:
    scores = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1]])
    assert linear.accuracy(scores, torch.tensor([0, 0, 0])) == pytest.approx(1 / 3)
    assert linear.accuracy(scores, torch.tensor([0, 0, 0]), 2) == pytest.approx(2 / 3)
    assert linear.accuracy(scores, torch.tensor([0, 0, 0]), 5) == 1


def test_top_5_is_given_where_there_are_more_than_five_classes() -> None:
    y = torch.tensor([0, 1])
    assert set(linear.accuracies(torch.eye(2), y, "x").metrics) == {"x_top1"}
    assert set(linear.accuracies(torch.eye(2, 6), y, "x").metrics) == {"x_top1", "x_top5"}
