from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr.data.dataset import Dataset
from simclr.evaluate import label_free as g
from simclr.methods.ntxent import contrast
from tests.helpers import subject_of


def points(n: int = 40, width: int = 6) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)


def test_alignment_is_the_mean_squared_distance_on_the_sphere() -> None:
    a, b = points(), points()[::-1].copy()
    total = 0.0
    for one, other in zip(a, b, strict=True):
        total += sum(
            (x - y) ** 2 for x, y in zip(one / np.linalg.norm(one), other / np.linalg.norm(other), strict=True)
        )
    assert g.alignment(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(total / len(a), rel=1e-5)
    assert g.alignment(torch.from_numpy(a), 3 * torch.from_numpy(a)) == pytest.approx(0, abs=1e-6)


def test_uniformity_is_the_formula_over_pairs_in_whatever_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [math.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(unit) for b in unit[i + 1 :]]
    expected = math.log(sum(pairs) / len(pairs))
    assert g.uniformity(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(g, "BLOCK", 7)
    assert g.uniformity(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-5)


def test_collapse_is_seen() -> None:
    same, dead = torch.ones(50, 8), torch.zeros(50, 8)
    spread = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
    assert g.uniformity(same) == pytest.approx(0, abs=1e-6)
    assert g.uniformity(dead) == 0
    assert g.uniformity(spread) < -2
    assert g.effective_rank(same) == pytest.approx(1, abs=0.01)
    assert g.effective_rank(dead) == pytest.approx(1, abs=0.01)
    assert g.effective_rank(spread) == pytest.approx(8, abs=0.1)


def test_effective_rank_is_the_exponential_of_the_entropy() -> None:
    x = points() * np.array([1, 0.5, 0.25, 0.1, 0.01, 0.001], dtype=np.float32)
    values = np.sqrt(np.linalg.eigvalsh(x.T.astype(np.float64) @ x.astype(np.float64)))
    shares = values / values.sum()
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert g.effective_rank(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-3)  # the paper's epsilon of 1e-7


def test_figures_without_labels_on_images_without_labels_are_the_same_twice(digits: Dataset) -> None:
    bare = replace(
        digits,
        classes=(),
        parts={"pretrain": digits.parts["pretrain"][:300]} | {p: digits.parts[p][:0] for p in ("train", "val", "test")},
    )
    subject = subject_of(bare)
    metrics = g.geometry(subject).metrics
    assert metrics == g.geometry(subject).metrics
    assert {name.rpartition("_")[2] for name in metrics} == {"top1", "top5", "h", "z"}
    assert 0 <= metrics["contrastive_z_top1"] <= metrics["contrastive_z_top5"] <= 1
    assert 1 <= metrics["effective_rank_h"] <= subject.model.features
    assert g.geometry(subject_of(bare, ["views.seed=1"])).metrics != metrics


def test_contrastive_accuracy_is_of_batches_of_pre_trainings_size(digits: Dataset) -> None:
    small = subject_of(digits, train={"batch_size": 8})
    large = subject_of(digits, train={"batch_size": 128})
    assert g.geometry(small).metrics["contrastive_z_top1"] > g.geometry(large).metrics["contrastive_z_top1"]
    assert small.identity(("views",)) != large.identity(("views",))


def test_the_chance_of_contrastive_accuracy_is_what_random_vectors_reach(digits: Dataset) -> None:
    subject = subject_of(digits, train={"batch_size": 8})
    odds, images = g.random_matches(subject)
    assert images == len(digits.parts["val"]) // 8 * 8
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 1000, 8, 16, generator=generator)
    found = torch.stack([contrast(a, b, temperature=1.0)[1] for a, b in zip(*vectors, strict=True)])
    for column, top in enumerate(("top1", "top5")):
        error = (found[:, column].std() / len(found) ** 0.5).item()
        assert found[:, column].mean().item() == pytest.approx(odds[top], abs=4 * error)
    assert g.random_matches(subject_of(digits, train={"batch_size": 2}))[0]["top5"] == 1
