"""Moving averages of weights: the target networks of BYOL and MoCo, and averaged weights (train.ema)."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from simclr.model import Network


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
