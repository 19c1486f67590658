"""Weighted k nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate.protocol import Knn
from simclr.evaluate.subject import Outcome, Subject, features
from simclr.model import Network

K = Knn().k[0]  # the k of a figure that names none


QUERIES, BANK = 1024, 65536  # of a block of similarities: 256 MiB, whatever the numbers of images


@torch.no_grad()
def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and rows in `bank` (M x D) of the k nearest of each query (Q x D): both Q x min(k, M).

    Nearest first. Blocks of QUERIES x BANK bound the memory; a million by a million works.
    """
    found = []
    for block in queries.split(QUERIES):
        block = F.normalize(block, dim=1)
        best, index = block.new_empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.long, device=bank.device)
        for start in range(0, len(bank), BANK):
            similarity = block @ F.normalize(bank[start : start + BANK], dim=1).T
            values, rows = similarity.topk(min(k, similarity.shape[1]), dim=1)
            best, order = torch.cat([best, values], 1).topk(min(k, best.shape[1] + values.shape[1]), dim=1)
            index = torch.cat([index, rows + start], 1).gather(1, order)
        found.append((best, index))
    return torch.cat([best for best, _ in found]), torch.cat([index for _, index in found])


@torch.no_grad()
def knn_predict(
    bank: Tensor, labels: Tensor, queries: Tensor, classes: int, ks: Iterable[int], temperature: float
) -> dict[int, Tensor]:
    """Predicted class of each query for each k: votes of the k nearest (cosine) weighted by exp(similarity / t).

    The weighted kNN of Wu et al. 2018 (arXiv 1805.01978, Section 3.4). `bank` is M x D with M labels, `queries` Q x D.
    A k above M means M.
    """
    ks = list(ks)
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    for block in queries.split(QUERIES):
        similarity, index = nearest(bank, block, max(ks))
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: cannot overflow
        votes = labels[index]
        for k in ks:
            scores = weights.new_zeros(len(block), classes).scatter_add_(1, votes[:, :k], weights[:, :k])
            predictions[k].append(scores.argmax(1))
    return {k: torch.cat(chunks) for k, chunks in predictions.items()}


def check_k(subject: Subject) -> None:
    """Raises UserError when k is larger than the bank."""
    k, bank = max(subject.protocol.knn.k), len(subject.data.parts["train"]) + len(subject.data.parts["val"])
    if k > bank:
        raise UserError(
            f"knn.k = {k} needs as many labelled images and there are {bank}: "
            f"label more, or judge by simclr eval RUN --knn --set 'knn.k=[{max(1, bank // 10)}]'"
        )


def knn(subject: Subject) -> Outcome:
    """Test accuracy for each k, with train and validation as the bank: `knn_top1` for k = 200, else `knn_k20_top1`."""
    settings = subject.protocol.knn
    check_k(subject)
    (train, train_y), (val, val_y), (test, test_y) = subject.train, subject.val, subject.test
    bank, bank_y = torch.cat([train, val]), torch.cat([train_y, val_y])
    predicted = knn_predict(bank, bank_y, test, len(subject.data.classes), settings.k, settings.temperature)
    names = {k: "knn_top1" if k == K else f"knn_k{k}_top1" for k in settings.k}
    metrics = {names[k]: (predicted[k] == test_y).float().mean().item() for k in settings.k}
    return Outcome(metrics, {names[k]: predicted[k] for k in settings.k})


def knn_accuracy(model: Network, data: Dataset, dtype: torch.dtype) -> float:
    """Accuracy on validation with the training images as the bank, in [0, 1]: how training is watched."""
    bank, queries = (features(model, data.images, data.parts[part], dtype) for part in ("train", "val"))
    labels, truth = (torch.from_numpy(data.labels[data.parts[part]]).to(bank.device) for part in ("train", "val"))
    predicted = knn_predict(bank, labels, queries, len(data.classes), [K], Knn().temperature)[K]
    return (predicted == truth).float().mean().item()
