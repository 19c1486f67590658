"""How good an encoder is: features of the frozen encoder, weighted kNN, and a linear classifier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Config
from .data import Array, Dataset, Progress, silent
from .device import autocast
from .errors import UserError
from .model import SimCLR, build_model

# What the figures mean; a change in anything that it states gives it a new number. Choices are made on validation
# (train as bank or training set), the test set is used once (train and validation together as bank or training set).
PROTOCOL = (
    "1: h in float32, whole images; kNN k=200 t=0.1 cosine; logistic regression on standardised h, L2 of 45 values"
)
K, TEMPERATURE = 200, 0.1
L2_GRID = np.logspace(5, -6, 45)  # paper, B.8.1; on the sum of the cross-entropies, strongest first
BLOCK = 1024  # images of a forward pass, queries of a kNN block


@torch.no_grad()
def features(model: SimCLR, images: Array, rows: Array, dtype: torch.dtype) -> Tensor:
    """h of the images in `rows` (whole images, no augmentation), float32 N x D on the model's device."""
    device, training, out = model.mean.device, model.training, []
    model.eval()
    for start in range(0, len(rows), BLOCK):
        batch = torch.from_numpy(images[rows[start : start + BLOCK]]).to(device).float().div_(255)
        with autocast(device, dtype):
            out.append(model(batch)[0].float())
    model.train(training)
    return torch.cat(out)


@torch.no_grad()
def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    ks: Iterable[int] = (K,),
    temperature: float = TEMPERATURE,
) -> dict[int, Tensor]:
    """Predicted class of each query for each k: votes of the k nearest (cosine) weighted by exp(similarity / t).

    The weighted kNN of Wu et al. 2018 (arXiv 1805.01978, Section 3.4). `bank` is M x D with M labels, `queries` Q x D;
    blocks of queries bound the memory to BLOCK x M. A k above M means M.
    """
    ks = sorted(set(ks))
    bank = F.normalize(bank, dim=1)
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    for block in F.normalize(queries, dim=1).split(BLOCK):
        similarity, index = (block @ bank.T).topk(min(ks[-1], len(bank)), dim=1)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: cannot overflow
        votes = labels[index]
        for k in ks:
            scores = weights.new_zeros(len(block), classes).scatter_add_(1, votes[:, :k], weights[:, :k])
            predictions[k].append(scores.argmax(1))
    return {k: torch.cat(chunks) for k, chunks in predictions.items()}


def labels_of(data: Dataset, part: str, device: torch.device) -> Tensor:
    return torch.from_numpy(data.labels[data.parts[part]]).to(device)


def knn_accuracy(model: SimCLR, data: Dataset, dtype: torch.dtype, k: int = K) -> float:
    """Weighted kNN accuracy on validation, with the training images as the bank; in [0, 1]."""
    device = model.mean.device
    bank, queries = (features(model, data.images, data.parts[part], dtype) for part in ("train", "val"))
    predicted = knn_predict(bank, labels_of(data, "train", device), queries, len(data.classes), [k])[k]
    return (predicted == labels_of(data, "val", device)).float().mean().item()


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """All of them shifted and scaled by the mean and standard deviation of each column of the first."""
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.max(), std, 1.0)  # a constant column carries nothing
    return [(x - mean) / std for x in (train, *others)]


def logits(x: Tensor, weights: Tensor) -> Tensor:
    """Scores of a linear classifier whose last row of `weights` ((D + 1) x classes) is the bias."""
    return torch.addmm(weights[-1], x, weights[:-1])


def fit_logistic(x: Tensor, y: Tensor, start: Tensor, l2: float, iterations: int = 200) -> Tensor:
    """Multinomial logistic regression by L-BFGS: the weights ((D + 1) x classes) that minimise
    sum of cross-entropies + l2 / 2 * |weights without bias|^2 (scikit-learn's C is 1 / l2), from `start`.
    """
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=iterations, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(x, weights), y) + l2 / (2 * len(x)) * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def accuracy(scores: Tensor, y: Tensor, k: int = 1) -> float:
    """Fraction of rows whose label is among the k highest scores."""
    return (scores.topk(min(k, scores.shape[1]), dim=1).indices == y.unsqueeze(1)).any(1).float().mean().item()


def linear_classifier(
    train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor, classes: int, progress: Progress = silent
) -> tuple[Tensor, float]:
    """Weights fitted on train and validation together, with the L2 value that was best on validation, and that value.

    Walks L2_GRID from strong to weak, each fit started from the one before; of equal accuracies the strongest L2 wins.
    """
    x, held = standardise(train, val)
    weights = x.new_zeros(x.shape[1] + 1, classes)
    best, chosen, best_weights = -1.0, float(L2_GRID[0]), weights
    for done, l2 in enumerate(L2_GRID.tolist(), 1):
        weights = fit_logistic(x, train_labels, weights, l2)
        score = accuracy(logits(held, weights), val_labels)
        if score > best:
            best, chosen, best_weights = score, l2, weights
        progress("linear classifier", done, len(L2_GRID))
    both, labels = torch.cat([x, held]), torch.cat([train_labels, val_labels])
    return fit_logistic(both, labels, best_weights, chosen), chosen


class Score(NamedTuple):
    """Accuracies on the test set, in [0, 1]; chance is the share of its most frequent class."""

    metrics: dict[str, float]
    chance: float


def evaluate(model: SimCLR, data: Dataset, *, knn: bool, linear: bool, progress: Progress = silent) -> Score:
    """Test accuracies of a frozen encoder, by PROTOCOL. Raises UserError where the data has no labels to test on."""
    if not data.has_labels or not len(data.parts["test"]):
        raise UserError(
            f"the data set has {len(data.classes)} classes and {len(data.parts['test'])} labelled test images: "
            f"accuracies need at least two folders of images, one for each class"
        )
    device, classes = model.mean.device, len(data.classes)
    train, val, test = (
        features(model, data.images, data.parts[part], torch.float32) for part in ("train", "val", "test")
    )
    train_y, val_y, test_y = (labels_of(data, part, device) for part in ("train", "val", "test"))
    metrics = {}
    if knn:
        bank, bank_y = torch.cat([train, val]), torch.cat([train_y, val_y])
        predicted = knn_predict(bank, bank_y, test, classes)[K]
        metrics["knn_top1"] = (predicted == test_y).float().mean().item()
    if linear:
        weights, l2 = linear_classifier(train, train_y, val, val_y, classes, progress)
        scores = logits(standardise(train, test)[1], weights)
        metrics |= {"linear_top1": accuracy(scores, test_y), "linear_l2": l2}
        if classes > 5:
            metrics["linear_top5"] = accuracy(scores, test_y, 5)
    return Score(metrics, (test_y.bincount().max() / len(test_y)).item())


@torch.no_grad()
def random_encoder(config: Config, data: Dataset, device: torch.device) -> SimCLR:
    """The untrained network of a config, its batch norms with the statistics of the training images.

    Without those, activations of a deep untrained network leave all range, and the comparison would flatter training.
    """
    model = build_model(config, data, device).eval()
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = None  # a plain average over the batches
    rows = data.parts["pretrain"][:: max(1, len(data.parts["pretrain"]) // (4 * BLOCK))]
    for batch in np.array_split(rows, max(1, len(rows) // BLOCK)):
        model(torch.from_numpy(data.images[batch]).to(device).float().div_(255))
    return model.eval()
