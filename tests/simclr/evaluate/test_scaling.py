"""Scaled features against scikit-learn, and what of an evaluation they change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from simclr.data.dataset import Dataset
from simclr.evaluate import scaling
from simclr.evaluate.scaling import covariance, whitening
from tests.helpers import subject_of


def test_covariance_is_numpys_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = 100 + torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(scaling, "BLOCK", 7)
    np.testing.assert_allclose(covariance(x).numpy(), np.cov(x.double().numpy().T, bias=True), atol=1e-5)


def test_whitened_features_are_scikit_learns_up_to_signs() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=draw) @ torch.randn(5, 5, generator=draw) + 3
    new = torch.randn(10, 5, generator=draw)
    mine = whitening(x)(new).flip(1).abs()  # eigenvalues are in ascending order here
    peer = np.abs(PCA(whiten=True).fit(x.numpy()).transform(new.numpy()))
    np.testing.assert_allclose(mine.numpy(), peer * np.sqrt(400 / 399), rtol=1e-3, atol=1e-3)


def test_directions_without_variance_are_left_out() -> None:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    flat = torch.cat([x, x[:, :1], torch.ones(100, 1)], 1)  # a copy, and a constant
    white = whitening(flat)(flat)
    assert white.shape == (100, 3)
    torch.testing.assert_close(covariance(white).float(), torch.eye(3), atol=1e-4, rtol=0)


def test_all_parts_are_scaled_by_the_statistics_of_the_training_images(digits: Dataset) -> None:
    raw, standard, white = (subject_of(digits, [f"features={name}"]) for name in ("raw", "standardised", "whitened"))
    x, queries = raw.train[0], raw.test[0]
    torch.testing.assert_close(standard.test[0], scaling.standardising(x)(queries))
    torch.testing.assert_close(white.test[0], whitening(x)(queries))
    torch.testing.assert_close(white.train[0].mean(0), torch.zeros(white.train[0].shape[1]), atol=1e-3, rtol=0)
    assert torch.equal(white.train[1], raw.train[1])
