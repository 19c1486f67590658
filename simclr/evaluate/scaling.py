"""What is done to features before they are classified: nothing, standardisation or whitening."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 4096  # rows that are in memory in double precision at once
Transform = Callable[[Tensor], Tensor]  # features to features, both N x D


def covariance(x: Tensor) -> Tensor:
    """The covariance of the columns of x (N x D): float64 D x D, on the CPU. It needs a block of rows at a time."""
    mean, total = x.mean(0), torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for block in x.split(BLOCK):
        centred = (block - mean).cpu().double()
        total += centred.T @ centred
    return total / len(x)


def unchanged(train: Tensor) -> Transform:  # noqa: ARG001 (the others need it)
    """Leaves features as they are."""
    return lambda x: x


def standardising(train: Tensor) -> Transform:
    """Shifts and scales features by the mean and standard deviation of each column of some (N x D)."""
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.max(), std, 1.0)  # a constant column carries no information
    return lambda x: (x - mean) / std


def whitening(train: Tensor) -> Transform:
    """Shifts and rotates features so that, of some (N x D), the columns are uncorrelated and have variance one.

    Directions with less than a millionth of the largest variance are left out: they carry little but rounding errors.
    """
    values, axes = torch.linalg.eigh(covariance(train))
    kept = values > 1e-6 * values.max()
    mean, matrix = train.mean(0), (axes[:, kept] * values[kept].rsqrt()).to(train.dtype).to(train.device)
    return lambda x: (x - mean) @ matrix


# The values of the setting `features`, each fitted on the features of the training images.
SCALINGS: dict[str, Callable[[Tensor], Transform]] = {
    "raw": unchanged,
    "standardised": standardising,
    "whitened": whitening,
}
