"""Weighted k nearest neighbours on frozen features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr import processes
from simclr.data.dataset import Dataset
from simclr.data.images import Array
from simclr.device import within_memory
from simclr.evaluate.base import Evaluation, Outcome, balanced, share_of_true
from simclr.evaluate.subject import Subject, features
from simclr.model import Network
from simclr.settings import Count, Values

DEFAULT_K = 200  # its accuracy is named knn_top1, and those of others after their k
QUERY_BLOCK, BANK_BLOCK = 1024, 65536  # a block of similarities takes 256 MiB, however many images there are
KEPT = 2**28  # bytes of features that stay on an accelerator during training; with more, the bank stays on the host


@torch.no_grad()
def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k rows of `bank` (M x D) nearest to each query (Q x D) by cosine similarity.

    Returns the similarities and the row numbers, nearest first, both Q x min(k, M), on the device of the queries. The
    bank may be on the host. Working in blocks of QUERY_BLOCK x BANK_BLOCK, or smaller ones where these don't fit,
    bounds the memory, so a million queries against a bank of a million work.
    """
    device, blocks = queries.device, queries.split(QUERY_BLOCK)

    def in_blocks(size: int) -> tuple[Tensor, Tensor]:
        found = [(queries.new_empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.long)) for block in blocks]
        for start in range(0, len(bank), size):
            part = F.normalize(bank[start : start + size].to(device), dim=1).T
            for i, (block, (best, index)) in enumerate(zip(blocks, found, strict=True)):
                similarity = F.normalize(block, dim=1) @ part
                values, rows = similarity.topk(min(k, similarity.shape[1]), dim=1)
                best, order = torch.cat([best, values], 1).topk(min(k, best.shape[1] + values.shape[1]), dim=1)
                found[i] = best, torch.cat([index.to(device), rows + start], 1).gather(1, order)
        return torch.cat([best for best, _ in found]), torch.cat([index for _, index in found])

    return within_memory(in_blocks, BANK_BLOCK)


def vote(similarities: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """The scores of the classes (Q x classes) by the k nearest of each query, given their similarities and labels.

    Both are Q x k, nearest first. Each has the weight exp(similarity / temperature), and 0 if its label is negative.
    """
    weights = ((similarities - similarities[:, :1]) / temperature).exp()  # relative to the nearest: cannot overflow
    weights = weights.masked_fill(labels < 0, 0.0)
    return weights.new_zeros(len(labels), classes).scatter_add_(1, labels.clamp(min=0), weights)


@torch.no_grad()
def knn_predict(
    bank: Tensor, labels: Tensor, queries: Tensor, classes: int, ks: Iterable[int], temperature: float
) -> dict[int, Tensor]:
    """Predict the class of each query (Q x D) for each k, from a bank (M x D) with M labels.

    The k nearest by cosine similarity vote with weight exp(similarity / temperature), as in Wu et al. 2018 (arXiv
    1805.01978, Section 3.4). A k above M means M.
    """
    ks = list(ks)
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    # A bank on the host is sent to the device once for each block of queries, so these blocks are larger.
    for block in queries.split(QUERY_BLOCK if bank.device == queries.device else 16 * QUERY_BLOCK):
        similarity, index = nearest(bank, block, max(ks))
        votes = labels[index]
        for k in ks:
            predictions[k].append(vote(similarity[:, :k], votes[:, :k], classes, temperature).argmax(1))
    return {k: torch.cat(chunks) for k, chunks in predictions.items()}


def accuracy_name(k: int) -> str:
    """The name of the accuracy with k neighbours."""
    return "knn_top1" if k == DEFAULT_K else f"knn_k{k}_top1"


class Knn(Evaluation):
    """The k nearest neighbours by cosine similarity vote, each with weight exp(similarity / temperature).

    The neighbours come from the training and the validation images. If these are fewer than k, all of them vote, and
    the metric is named after their number.
    """

    section_name = "knn"
    takes_crops = True
    fixed: ClassVar[Mapping[str, str]] = {"distance": "cosine"}
    in_metric_names = frozenset({"k"})
    scales_features = True

    k: Values[Count] = (DEFAULT_K,)  # numbers of neighbours that vote; each gives an accuracy
    # The lower it is, the more the nearest neighbours count: a vote has the weight exp(similarity / temperature).
    temperature: float = Field(0.1, ge=0.001, le=1000)

    def metric_names(self, data: Dataset) -> dict[int, str]:
        """The name of the accuracy of each k, or of the number of images in the bank where that is smaller."""
        bank = len(data.parts["train"]) + len(data.parts["val"])
        return {k: accuracy_name(k) for k in (min(k, bank) for k in self.k)}

    def run(self, subject: Subject) -> Outcome:
        """Test accuracy for each k."""
        names = self.metric_names(subject.data)
        (train, train_y), (val, val_y), (test, test_y) = subject.train, subject.val, subject.test
        bank, bank_y = torch.cat([train, val]), torch.cat([train_y, val_y])
        predicted = knn_predict(bank, bank_y, test, len(subject.data.classes), names, self.temperature)
        metrics: dict[str, float] = {}
        for k, name in names.items():
            metrics[name] = share_of_true(predicted[k] == test_y)
            metrics |= balanced(predicted[k], test_y, name.removesuffix("_top1"))
        return Outcome(metrics, {name: predicted[k] for k, name in names.items()})


def knn_accuracy(model: Network, data: Dataset, dtype: torch.dtype) -> dict[str, float]:
    """Accuracy on validation with the training images as the bank, in [0, 1], by its name. It monitors training.

    With fewer training images than DEFAULT_K, all of them vote, and the name says how many, as in `Knn`. Several
    processes share both the features and the queries, and keep the bank on their devices, where they exchange it.
    """
    device, most = model.mean.device, max(1, KEPT // (4 * model.features))
    fits = len(data.parts["train"]) <= most or processes.count() > 1

    def encode(rows: Array) -> Tensor:
        return features(model, data.images, rows, dtype, keep=device if fits else torch.device("cpu"))

    bank = processes.map_rows(encode, data.parts["train"])
    labels, truth = (torch.from_numpy(data.labels[data.parts[part]]).to(device) for part in ("train", "val"))
    k, temperature = min(DEFAULT_K, len(bank)), Knn().temperature

    def predict(rows: Array) -> Tensor:
        parts = [rows[start : start + most] for start in range(0, len(rows), most)]
        queries = (features(model, data.images, part, dtype) for part in parts)
        return torch.cat([knn_predict(bank, labels, x, len(data.classes), [k], temperature)[k] for x in queries])

    predicted = processes.map_rows(predict, data.parts["val"])
    return {f"val/{accuracy_name(k)}": share_of_true(predicted == truth)}
