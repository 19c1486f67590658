"""Logistic regression against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simclr.data.dataset import Dataset
from simclr.evaluate.base import accuracy
from simclr.evaluate.linear import Linear, fit_linear, fit_logistic, logits, preprocessing
from simclr.evaluate.scaling import standardising, unchanged
from tests.helpers import subject_of

Clusters = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_the_optimum_is_scikit_learns(l2: float, clusters: Clusters) -> None:
    x, y, test, _ = clusters
    weights = fit_logistic(x, y, x.new_zeros(17, 5), l2)
    peer = LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-8).fit(x.numpy(), y.numpy())
    theirs = torch.from_numpy(np.vstack([peer.coef_.T, peer.intercept_]))

    def objective(w: torch.Tensor) -> float:
        scores = logits(x.double(), w.double())
        return (torch.nn.functional.cross_entropy(scores, y, reduction="sum") + l2 / 2 * w[:-1].square().sum()).item()

    assert objective(weights) == pytest.approx(objective(theirs), rel=1e-3)  # float32 against float64
    assert (logits(test, weights).argmax(1).numpy() == peer.predict(test.numpy())).mean() > 0.99


@pytest.mark.parametrize("l2", [0.1, 10.0])
def test_accuracy_is_scikit_learns_to_a_tenth_of_a_percent(l2: float) -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(8000) % 10
    scales = torch.logspace(-1, 1, 32)  # columns of very different scale, like features
    x = (torch.randn(10, 32, generator=draw)[y] + 1.5 * torch.randn(8000, 32, generator=draw)) * scales
    for standardised in (False, True):
        scale = standardising(x[:3000]) if standardised else unchanged(x)
        train, test = scale(x[:3000]), scale(x[3000:])
        mine = accuracy(logits(test, fit_logistic(train, y[:3000], x.new_zeros(33, 10), l2)), y[3000:])
        peer = LogisticRegression(C=1 / l2, max_iter=10000, tol=1e-6).fit(train.numpy(), y[:3000].numpy())
        assert mine == pytest.approx(peer.score(test.numpy(), y[3000:].numpy()), abs=0.001)
        assert 0.5 < mine < 0.95


def test_l2_is_chosen_on_validation_and_is_strong_for_noise(clusters: Clusters) -> None:
    x, y, test, test_y = clusters
    noise = torch.randn(600, 300, generator=torch.Generator().manual_seed(1))
    wide, held_out = torch.cat([x, 5 * noise[:400]], 1), torch.cat([test, 5 * noise[400:]], 1)
    train, val, queries = map(standardising(wide[:300]), (wide[:300], wide[300:], held_out))
    weights, l2 = fit_linear(train, y[:300], val, y[300:], 5, Linear())
    assert l2 > 10
    unregularised = fit_logistic(train, y[:300], wide.new_zeros(317, 5), 1e-6)
    assert accuracy(logits(queries, weights), test_y) > accuracy(logits(queries, unregularised), test_y)


def test_the_grid_is_the_papers() -> None:
    grid = Linear().grid()
    assert len(grid) == 45
    np.testing.assert_allclose(sorted(grid), np.logspace(-6, 5, 45))  # paper, B.8.1
    assert grid == sorted(grid, reverse=True)


def test_warm_starts_reach_the_accuracy_of_scikit_learns_cold_start(digits: Dataset) -> None:
    flat = torch.from_numpy(digits.images[:, 0].reshape(len(digits.images), -1).astype(np.float32))
    parts = {name: torch.from_numpy(rows) for name, rows in digits.parts.items()}
    y = torch.from_numpy(digits.labels)
    scale = standardising(flat[parts["train"]])
    train, val, test = (scale(flat[parts[part]]) for part in ("train", "val", "test"))
    train_y, val_y, test_y = (y[parts[part]] for part in ("train", "val", "test"))
    weights, l2 = fit_linear(train, train_y, val, val_y, 10, Linear())
    mine = accuracy(logits(test, weights), test_y)
    peer = LogisticRegression(C=1 / l2, max_iter=2000).fit(torch.cat([train, val]), torch.cat([train_y, val_y]))
    assert mine == pytest.approx(peer.score(test, test_y), abs=0.006)  # two images of 359


def test_validation_accuracy_is_the_best_of_the_grid_and_uses_no_test_image(digits: Dataset) -> None:
    subject, settings = subject_of(digits), Linear(l2_values=2, l2_max=1, l2_min=1e-3)
    (train, train_y), (val, val_y) = subject.train, subject.val
    x, held_out = map(preprocessing(settings, train), (train, val))
    start = x.new_zeros(x.shape[1] + 1, 10)
    found = [accuracy(logits(held_out, fit_logistic(x, train_y, start, l2)), val_y) for l2 in settings.grid()]
    assert settings.validation_accuracy(subject) == pytest.approx(max(found), abs=0.02)
    assert "test" not in vars(subject)


def test_standardise_uses_the_statistics_of_the_first_tensor(clusters: Clusters) -> None:
    x = torch.cat([clusters[0], torch.full((400, 1), 3.0)], 1)
    train, other = map(standardising(x), (x, x * 2))
    torch.testing.assert_close(train[:, :-1].std(0, correction=0), torch.ones(16))
    assert train[:, -1].abs().max() == 0  # a constant column stays finite
    torch.testing.assert_close(other[:, 0], (2 * x[:, 0] - x[:, 0].mean()) / x[:, 0].std(correction=0))
