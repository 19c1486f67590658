"""Figures without labels against their formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate import label_free
from simclr.evaluate.label_free import LabelFree, alignment, effective_rank, uniformity
from simclr.methods.ntxent import contrast, contrastive_entropy
from tests.helpers import subject_of


def points(n: int = 40, width: int = 6) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)


def test_alignment_is_the_mean_squared_distance_on_the_sphere() -> None:
    a, b = points(), points()[::-1].copy()
    total = 0.0
    for one, other in zip(a, b, strict=True):
        total += ((one / np.linalg.norm(one) - other / np.linalg.norm(other)) ** 2).sum()
    assert alignment(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(total / len(a), rel=1e-5)
    assert alignment(torch.from_numpy(a), 3 * torch.from_numpy(a)) == pytest.approx(0, abs=1e-6)


def test_uniformity_is_the_formula_over_pairs_for_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [math.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(unit) for b in unit[i + 1 :]]
    expected = math.log(sum(pairs) / len(pairs))
    assert uniformity(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(label_free, "BLOCK", 7)
    assert uniformity(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-5)


def test_collapsed_features_have_low_rank_and_no_uniformity() -> None:
    same, dead = torch.ones(50, 8), torch.zeros(50, 8)
    spread = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
    assert uniformity(same) == pytest.approx(0, abs=1e-6)
    assert uniformity(dead) == 0
    assert uniformity(spread) < -2
    assert effective_rank(same) == pytest.approx(1, abs=0.01)
    assert effective_rank(dead) == pytest.approx(1, abs=0.01)
    assert effective_rank(spread) == pytest.approx(8, abs=0.1)


def test_effective_rank_is_the_exponential_of_the_entropy() -> None:
    x = points() * np.array([1, 0.5, 0.25, 0.1, 0.01, 0.001], dtype=np.float32)
    values = np.sqrt(np.linalg.eigvalsh(x.T.astype(np.float64) @ x.astype(np.float64)))
    shares = values / values.sum()
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-3)  # the paper's epsilon of 1e-7


def test_figures_are_reproducible_and_need_no_labels(digits: Dataset) -> None:
    bare = replace(
        digits,
        classes=(),
        parts={"pretrain": digits.parts["pretrain"][:300]} | {p: digits.parts[p][:0] for p in ("train", "val", "test")},
    )
    subject = subject_of(bare)
    metrics = LabelFree().run(subject).metrics
    assert metrics == LabelFree().run(subject).metrics
    assert {name.rpartition("_")[2] for name in metrics} == {"top1", "top5", "h", "z", "entropy"}
    assert 0 <= metrics["contrastive_z_top1"] <= metrics["contrastive_z_top5"] <= 1
    assert 1 <= metrics["effective_rank_h"] <= subject.model.features
    assert LabelFree(seed=1).run(subject).metrics != metrics
    with pytest.raises(UserError, match="at least two images, but there are 1"):
        LabelFree().run(replace(subject, data=replace(bare, parts=bare.parts | {"val": bare.parts["pretrain"][:1]})))


def test_a_network_without_a_head_has_figures_of_h_alone(digits: Dataset) -> None:
    metrics = LabelFree(images=64).run(subject_of(digits, model={"head": "none"})).metrics
    assert {name.split("_")[-1] for name in metrics if not name.startswith(("contrastive", "softmax"))} == {"h"}


def test_contrastive_accuracy_is_measured_in_batches_of_pre_training(digits: Dataset) -> None:
    small = subject_of(digits, train={"batch_size": 8})
    large = subject_of(digits, train={"batch_size": 128})
    top1 = "contrastive_z_top1"
    assert LabelFree().run(small).metrics[top1] > LabelFree().run(large).metrics[top1]


def test_metrics_do_not_depend_on_how_many_images_go_forward_at_once(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, sizes = subject_of(digits, train={"batch_size": 50}), list[int]()
    expected = LabelFree(images=100).run(subject).metrics
    encode = subject.model.encode

    def with_little_memory(images: torch.Tensor, *, resize: bool) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(images, resize=resize)

    monkeypatch.setattr(label_free, "batch_of", lambda model: 32)
    monkeypatch.setattr(subject.model, "encode", with_little_memory)
    assert LabelFree(images=100).run(subject).metrics == pytest.approx(expected, rel=1e-4)
    assert set(sizes) == {32, 16, 8, 2}  # each batch of 50 in six pieces of 8 and one of 2


def test_only_whole_batches_of_the_images_are_used(digits: Dataset) -> None:
    images = len(digits.parts["val"])
    assert LabelFree().run(subject_of(digits, train={"batch_size": images - 1})).used == (images - 1, images)
    assert LabelFree().run(subject_of(digits, train={"batch_size": 2 * images})).used == (images, images)


def test_chance_is_the_contrastive_accuracy_of_random_vectors(digits: Dataset) -> None:
    odds, images = LabelFree().chance(subject_of(digits, train={"batch_size": 8}))
    assert images == len(digits.parts["val"]) // 8 * 8
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 1000, 8, 16, generator=generator)
    found = torch.stack([contrast(torch.stack([a, b]), temperature=1.0)[1] for a, b in zip(*vectors, strict=True)])
    for column, top in enumerate(("top1", "top5")):
        error = (found[:, column].std() / len(found) ** 0.5).item()
        assert found[:, column].mean().item() == pytest.approx(odds[top], abs=4 * error)
    assert LabelFree().chance(subject_of(digits, train={"batch_size": 2}))[0]["top5"] == 1


def test_a_loss_without_normalisation_is_judged_by_its_own_similarity(digits: Dataset) -> None:
    cosine, product = (
        LabelFree(images=200).run(subject_of(digits, loss={"normalize": normalize})).metrics
        for normalize in (True, False)
    )
    assert cosine["contrastive_own_top1"] == pytest.approx(cosine["contrastive_z_top1"])
    assert product["contrastive_own_top1"] != product["contrastive_z_top1"]
    assert product["contrastive_z_top1"] == cosine["contrastive_z_top1"]
    assert "contrastive_own_top1" not in LabelFree(images=64).run(subject_of(digits, method="byol")).metrics


def test_entropy_is_that_of_the_softmax_over_the_candidates() -> None:
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    similarity, expected = z @ z.T, []
    for row in range(6):
        weights = [math.exp(similarity[row, other].item() / 0.5) for other in range(6) if other != row]
        expected.append(-sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights))
    assert contrastive_entropy(similarity, 0.5) == pytest.approx(sum(expected) / 6, rel=1e-5)
    assert contrastive_entropy(torch.zeros(6, 6), 0.1) == pytest.approx(math.log(5))
    assert contrastive_entropy(1000 * torch.eye(6).roll(3, 1), 0.01) == pytest.approx(0)
