from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate import knn
from simclr.evaluate.subject import features
from tests.helpers import subject_of

Clusters = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("k", [1, 20, 200])
def test_predicts_what_scikit_learn_predicts_with_the_same_weights(k: int, clusters: Clusters) -> None:
    bank, labels, queries, _ = clusters
    peer = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1)
    ).fit(bank.numpy(), labels.numpy())
    mine = knn.knn_predict(bank, labels, queries, 5, [k], 0.1)[k]
    assert mine.tolist() == peer.predict(queries.numpy()).tolist()


@pytest.mark.parametrize(("queries_of", "bank_of"), [(7, 10**6), (10**6, 33), (50, 1)])
def test_several_k_in_one_pass_equal_each_alone_and_blocks_change_nothing(
    queries_of: int, bank_of: int, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, labels, queries, _ = clusters
    together = knn.knn_predict(bank, labels, queries, 5, [5, 50, 10**6], 0.1)
    monkeypatch.setattr(knn, "QUERIES", queries_of)
    monkeypatch.setattr(knn, "BANK", bank_of)
    for k, predicted in together.items():
        assert torch.equal(predicted, knn.knn_predict(bank, labels, queries, 5, [k], 0.1)[k])


def test_the_nearest_come_first_and_are_those_of_all_similarities(
    clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, _, queries, _ = clusters
    monkeypatch.setattr(knn, "BANK", 90)
    similarity, rows = knn.nearest(bank, queries, 10)
    every = torch.nn.functional.cosine_similarity(queries.unsqueeze(1), bank.unsqueeze(0), dim=2)
    assert torch.equal(rows, every.argsort(1, descending=True)[:, :10])
    torch.testing.assert_close(similarity, every.gather(1, rows))


def test_the_bank_is_train_and_validation_and_as_large_as_k(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(digits)
    predict, banks = knn.knn_predict, []
    monkeypatch.setattr(knn, "knn_predict", lambda bank, *rest: banks.append(bank) or predict(bank, *rest))
    assert set(knn.knn(subject).metrics) == {"knn_top1"}
    rows = np.concatenate([digits.parts["train"], digits.parts["val"]])
    assert not set(rows) & set(digits.parts["test"])
    torch.testing.assert_close(banks[0], features(subject.model, digits.images, rows, subject.dtype))
    assert set(knn.knn(subject_of(digits, ["knn.k=[1,200]"])).metrics) == {"knn_k1_top1", "knn_top1"}
    with pytest.raises(UserError, match=r"knn\.k = 5000 needs as many labelled images and there are 1438"):
        knn.knn(subject_of(digits, ["knn.k=[200,5000]"]))


@pytest.mark.slow
def test_memory_beyond_the_features_stays_under_a_gibibyte_at_200000_by_512() -> None:
    script = """
import resource, sys, torch
from simclr.knn import knn_predict
torch.set_num_threads(1)
bank, labels = torch.randn(200_000, 512), torch.zeros(200_000, dtype=torch.long)
queries = torch.randn(1100, 512)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
knn_predict(bank, labels, queries, 10, [200], 0.1)
print((peak() - before) / 2**20)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert float(run.stdout) < 1.0
