"""Spectra and LiDAR against their formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr.data.dataset import Dataset
from simclr.evaluate import lidar as module
from simclr.evaluate.label_free import effective_rank
from simclr.evaluate.lidar import Lidar, lidar
from simclr.evaluate.protocol import identity
from simclr.evaluate.spectrum import Spectrum, spectral_decay
from simclr.evaluate.subject import features
from simclr.views import apply, draw
from tests.helpers import subject_of


def with_spectrum(values: np.ndarray, n: int = 400) -> torch.Tensor:
    """Centred points whose covariance has these eigenvalues."""
    x = np.random.default_rng(0).normal(size=(n, len(values)))
    directions = np.linalg.qr(x - x.mean(0))[0]
    return torch.from_numpy(directions * np.sqrt(n * values))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_the_decay_of_a_power_law_is_its_exponent(alpha: float) -> None:
    values = np.arange(1, 61.0) ** -alpha
    values[:5] *= 7  # before the first rank
    assert spectral_decay(with_spectrum(values) + 3, (6, 60)) == pytest.approx(alpha, abs=1e-4)


def test_the_decay_is_a_weighted_least_squares_fit_of_what_is_above_rounding() -> None:
    values = np.sort(np.random.default_rng(1).gamma(1, size=30))[::-1].copy()
    rank = np.arange(6, 31.0)
    x, y, weight = np.log(rank), np.log(values[5:]), 1 / rank
    mean_x, mean_y = (np.average(each, weights=weight) for each in (x, y))
    slope = (weight * (x - mean_x) * (y - mean_y)).sum() / (weight * (x - mean_x) ** 2).sum()
    assert spectral_decay(with_spectrum(values), (6, 100)) == pytest.approx(-slope, rel=1e-4)
    dead = torch.cat([with_spectrum(values), torch.zeros(400, 50, dtype=torch.float64)], 1)
    assert spectral_decay(dead, (6, 100)) == pytest.approx(-slope, rel=1e-4)
    assert math.isnan(spectral_decay(with_spectrum(values)[:, :6], (6, 100)))


def test_spectrum_is_of_whole_images_and_independent_of_the_views(digits: Dataset) -> None:
    subject, other = subject_of(digits), subject_of(digits, augment={"color_jitter": {"p": 0.0}})
    metrics = Spectrum().run(subject).metrics
    assert metrics == Spectrum().run(other).metrics
    x = features(subject.model, digits.images, digits.parts["val"], torch.float32)
    assert metrics["spectrum_rank_h"] == pytest.approx(effective_rank(x), rel=1e-5)
    assert metrics["spectrum_alpha_h"] == pytest.approx(spectral_decay(x, (6, 100)), rel=1e-5)
    ids = [identity("spectrum", each.protocol, each.config, digits, each.device) for each in (subject, other)]
    assert ids[0] == ids[1]
    ids = [identity("lidar", each.protocol, each.config, digits, each.device) for each in (subject, other)]
    assert ids[0] != ids[1]


def naive_lidar(x: np.ndarray, delta: float) -> float:
    """The definition, with the matrix square root: x is images x views x D."""
    mean = x.mean(1)
    between = (mean - mean.mean(0)).T @ (mean - mean.mean(0)) / len(x)
    apart = (x - mean[:, None]).reshape(-1, x.shape[2])
    values, axes = np.linalg.eigh(apart.T @ apart / len(apart) + delta * np.eye(x.shape[2]))
    root = axes @ np.diag(values**-0.5) @ axes.T
    found = np.linalg.eigvalsh(root @ between @ root).clip(0)
    shares = found / found.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def test_lidar_is_its_definition_and_counts_the_directions_that_tell_images_apart() -> None:
    draw_ = np.random.default_rng(0)
    images = draw_.normal(size=(300, 1, 12)) * (np.arange(12) < 4)
    x = images + 0.1 * draw_.normal(size=(300, 5, 12))
    mean = torch.from_numpy(x.mean(1))
    apart = torch.from_numpy((x - x.mean(1, keepdims=True)).reshape(-1, 12))
    found = lidar(mean, apart.T @ apart / len(apart), 1e-4)
    assert found == pytest.approx(naive_lidar(x, 1e-4), rel=1e-6)
    assert 4 <= found < 5


def test_lidar_of_an_encoder_is_the_definition_on_its_views_in_any_parts(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, settings = subject_of(digits, augment2={"blur": {"p": 1.0}}), Lidar(images=20, views=3)
    metrics = settings.run(subject).metrics
    assert set(metrics) == {"lidar_h", "lidar_z"}
    rows = module.chosen_rows(subject, 20, 0)
    first, second = subject.config.pipelines()
    images = torch.from_numpy(digits.images[rows])
    with torch.no_grad():
        subject.model.eval()
        views = [
            subject.model(apply(images, ops, draw(ops, 20, 0, 0, view)))[0]
            for view, ops in enumerate((first, second, first))
        ]
    assert metrics["lidar_h"] == pytest.approx(naive_lidar(torch.stack(views, 1).double().numpy(), 1e-4), rel=1e-3)
    monkeypatch.setattr(module, "PIXELS_PER_BATCH", 3 * 7 * subject.model.side**2)
    assert settings.run(subject).metrics == pytest.approx(metrics, rel=1e-4)
    headless = subject_of(digits, model={"head": "none"})
    assert set(Lidar(images=8, views=2).run(headless).metrics) == {"lidar_h"}
    bare = replace(digits, parts={part: rows[:0] for part, rows in digits.parts.items()} | {"pretrain": rows})
    assert set(Lidar(images=8, views=2).run(subject_of(bare)).metrics) == {"lidar_h", "lidar_z"}
