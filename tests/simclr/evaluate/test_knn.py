"""k nearest neighbours against scikit-learn, in blocks that bound the memory."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simclr.data.dataset import Dataset
from simclr.evaluate import knn
from simclr.evaluate.knn import Knn
from simclr.evaluate.subject import features
from tests.helpers import subject_of

Clusters = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("k", [1, 20, 200])
def test_predictions_are_scikit_learns_with_the_same_weights(k: int, clusters: Clusters) -> None:
    bank, labels, queries, _ = clusters
    peer = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1)
    ).fit(bank.numpy(), labels.numpy())
    mine = knn.knn_predict(bank, labels, queries, 5, [k], 0.1)[k]
    assert mine.tolist() == peer.predict(queries.numpy()).tolist()


@pytest.mark.parametrize(("query_block", "bank_block"), [(7, 10**6), (10**6, 33), (50, 9)])
def test_predictions_do_not_depend_on_blocks_or_on_the_other_k(
    query_block: int, bank_block: int, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, labels, queries, _ = clusters
    together = knn.knn_predict(bank, labels, queries, 5, [5, 50, 10**6], 0.1)
    monkeypatch.setattr(knn, "QUERY_BLOCK", query_block)
    monkeypatch.setattr(knn, "BANK_BLOCK", bank_block)
    for k, predicted in together.items():
        assert torch.equal(predicted, knn.knn_predict(bank, labels, queries, 5, [k], 0.1)[k])


def test_nearest_come_first_and_are_those_of_all_similarities(
    clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, _, queries, _ = clusters
    monkeypatch.setattr(knn, "BANK_BLOCK", 90)
    similarity, rows = knn.nearest(bank, queries, 10)
    every = torch.nn.functional.cosine_similarity(queries.unsqueeze(1), bank.unsqueeze(0), dim=2)
    assert torch.equal(rows, every.argsort(1, descending=True)[:, :10])
    torch.testing.assert_close(similarity, every.gather(1, rows))


def test_blocks_are_halved_where_memory_runs_out(clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels, queries, _ = clusters
    before, normalize = knn.knn_predict(bank, labels, queries, 5, [20], 0.1)[20], knn.F.normalize

    def within(x: torch.Tensor, **options: Any) -> torch.Tensor:
        if len(x) > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return normalize(x, **options)

    monkeypatch.setattr(knn, "BANK_BLOCK", 128)
    monkeypatch.setattr(knn, "QUERY_BLOCK", 16)
    monkeypatch.setattr(knn.F, "normalize", within)
    assert torch.equal(knn.knn_predict(bank, labels, queries, 5, [20], 0.1)[20], before)


def test_the_bank_holds_train_and_validation_images(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(digits)
    predict, banks = knn.knn_predict, []
    monkeypatch.setattr(knn, "knn_predict", lambda bank, *rest: banks.append(bank) or predict(bank, *rest))
    assert set(Knn().run(subject).metrics) == {"knn_top1"}
    rows = np.concatenate([digits.parts["train"], digits.parts["val"]])
    assert not set(rows) & set(digits.parts["test"])
    torch.testing.assert_close(banks[0], features(subject.model, digits.images, rows, subject.dtype))
    assert set(Knn(k=(1, 200)).run(subject).metrics) == {"knn_k1_top1", "knn_top1"}


def test_k_is_capped_at_the_bank_and_named(digits: Dataset) -> None:
    parts = digits.parts | {"train": digits.parts["train"][:40], "val": digits.parts["val"][:10]}
    subject = subject_of(replace(digits, parts=parts))
    found = Knn(k=(1, 200, 5000)).run(subject)
    assert set(found.metrics) == {"knn_k1_top1", "knn_k50_top1"}
    assert torch.equal(found.predictions["knn_k50_top1"], Knn(k=(50,)).run(subject).predictions["knn_k50_top1"])
    assert Knn().metric_names(digits) == {200: "knn_top1"}


@pytest.mark.parametrize(("size", "name"), [(40, "val/knn_k40_top1"), (300, "val/knn_top1")])
def test_the_accuracy_that_monitors_training_is_named_after_a_smaller_k(size: int, name: str, digits: Dataset) -> None:
    subject = subject_of(replace(digits, parts=digits.parts | {"train": digits.parts["train"][:size]}))
    found = knn.knn_accuracy(subject.model, subject.data, subject.dtype)
    assert list(found) == [name]
    (queries, truth), (bank, labels) = subject.val, subject.train
    predicted = knn.knn_predict(bank, labels, queries, 10, [min(size, 200)], 0.1)[min(size, 200)]
    assert found[name] == pytest.approx((predicted == truth).float().mean().item())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors created inside it while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in (x for x in tree_leaves(out) if isinstance(x, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.live:
                self.live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.live.values()))
        return out


def test_memory_is_bounded_at_200000_images() -> None:
    with torch.device("meta"):  # tensors with shapes, but without numbers
        bank, labels, queries = (
            torch.empty(200_000, 512),
            torch.empty(200_000, dtype=torch.long),
            torch.empty(1100, 512),
        )
    with LiveBytes() as memory:
        knn.knn_predict(bank, labels, queries, 10, [200], 0.1)
    block = 4 * knn.QUERY_BLOCK * knn.BANK_BLOCK
    assert block < memory.peak < 2**30
