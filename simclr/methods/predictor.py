"""What methods with a predictor or a target network share (BYOL, SimSiam, MoCo), and averaged weights (train.ema)."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr.model import Network


def predictor(width: int, hidden: int) -> nn.Sequential:
    """Two linear layers with batch norm and ReLU between them, from z to z (N x width)."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, width),
    )


def frozen_copy(network: Network) -> Network:
    """A copy of a network that is not trained."""
    return deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, momentum: float, *, statistics: bool = False) -> None:
    """Move a target's parameters towards those of its source: momentum x target + (1 - momentum) x source.

    With `statistics`, its buffers too, as for a target that sees no images. Whole numbers are copied.
    """
    targets, sources = list[Tensor](target.parameters()), list[Tensor](source.parameters())
    if statistics:
        pairs = list(zip(target.buffers(), source.buffers(), strict=True))
        targets += [own for own, _ in pairs if own.is_floating_point()]
        sources += [other for own, other in pairs if own.is_floating_point()]
        if counts := [pair for pair in pairs if not pair[0].is_floating_point()]:
            torch._foreach_copy_([own for own, _ in counts], [other for _, other in counts])
    torch._foreach_lerp_(targets, sources, 1 - momentum)


def predicted_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean cosine similarity (a scalar) of predictions to the other views' targets (both V x N x D)."""
    others = other_views(targets.detach())
    return torch.stack([F.cosine_similarity(predictions, other, dim=2).mean() for other in others]).mean()


def other_views(x: Tensor) -> list[Tensor]:
    """For each place of the V - 1 other views: that view of every image, beside each of its views (V x N x D)."""
    return [x.roll(-shift, 0) for shift in range(1, len(x))]
