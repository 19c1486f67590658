"""What methods with a predictor or a target network share: BYOL, SimSiam and MoCo."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def predictor(width: int, hidden: int) -> nn.Sequential:
    """Two linear layers with batch norm and ReLU between them, from z to z (N x width)."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, width),
    )


def predicted_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean cosine similarity (a scalar) of predictions to the other views' targets (both V x N x D)."""
    others = other_views(targets.detach())
    return torch.stack([F.cosine_similarity(predictions, other, dim=2).mean() for other in others]).mean()


def other_views(x: Tensor) -> list[Tensor]:
    """For each place of the V - 1 other views: that view of every image, beside each of its views (V x N x D)."""
    return [x.roll(-shift, 0) for shift in range(1, len(x))]
