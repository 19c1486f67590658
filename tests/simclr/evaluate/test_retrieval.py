"""Retrieval against scikit-learn's average precision, with ties too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from simclr.data.dataset import Dataset
from simclr.evaluate import retrieval
from simclr.evaluate.retrieval import Retrieval, average_precisions, expected_precision
from simclr.randomness import permutation
from tests.helpers import subject_of

Clusters = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("pairs", [1, 1000, 2**22])
def test_average_precision_is_scikit_learns_for_any_block_size(
    pairs: int, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, labels, queries, truth = (part[:60] for part in clusters)
    monkeypatch.setattr(retrieval, "PAIRS", pairs)
    found = average_precisions(gallery, labels, queries, truth)
    similar = cosine_similarity(queries, gallery)
    for row in range(len(queries)):
        peer = average_precision_score(labels == truth[row], similar[row])
        assert found[row].item() == pytest.approx(peer, abs=1e-5)


def test_images_that_are_equally_similar_share_the_last_place() -> None:
    gallery = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3], [0, 1], [-1, 0]])
    labels, query = torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([[1.0, 0.0]])
    similar = np.array([1, 1, 0, 0, 0, -1.0])
    for truth in (0, 1):
        found = average_precisions(gallery, labels, query, torch.tensor([truth])).item()
        assert found == pytest.approx(average_precision_score(labels == truth, similar))
    assert average_precisions(gallery, labels, query, torch.tensor([7])).isnan().all()


def test_chance_is_the_average_precision_of_random_rankings() -> None:
    draw = np.random.default_rng(0)
    for relevant, total in ((1, 4), (3, 20), (20, 20)):
        y = np.arange(total) < relevant
        found = [average_precision_score(y, draw.permutation(total)) for _ in range(200)]
        error = np.std(found) / len(found) ** 0.5
        assert expected_precision(torch.tensor([relevant]), total).item() == pytest.approx(
            np.mean(found), abs=4 * error + 1e-9
        )


def test_test_images_search_training_and_validation_images(digits: Dataset) -> None:
    subject = subject_of(digits)
    (train, train_y), (val, val_y) = subject.train, subject.val
    rows = permutation(len(subject.test[0]), 0, "retrieval")[:100]
    test, test_y = (part[rows] for part in subject.test)
    outcome = Retrieval(queries=100).run(subject)
    similar = cosine_similarity(test, torch.cat([train, val]))
    labels = torch.cat([train_y, val_y])
    peer = [average_precision_score(labels == y, row) for y, row in zip(test_y, similar, strict=True)]
    assert outcome.metrics["retrieval_map"] == pytest.approx(np.mean(peer), abs=1e-4)
    assert outcome.samples["retrieval_map"] == pytest.approx(peer, abs=1e-4)
    chance, queries = Retrieval(queries=100).chance(subject)
    assert queries == 100
    assert 0.09 < chance["map"] < 0.12 < outcome.metrics["retrieval_map"]
