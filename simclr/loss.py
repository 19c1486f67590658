"""NT-Xent, the contrastive loss of SimCLR (paper, Section 2.1 and Algorithm 1)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def chance_loss(batch_size: int) -> float:
    """ln(2N - 1): the loss of embeddings that tell nothing, one positive among 2N - 1 candidates."""
    return math.log(2 * batch_size - 1)


def similarities(z1: Tensor, z2: Tensor, *, normalize: bool = True) -> Tensor:
    """The 2N x 2N similarities of two views' embeddings (each N x D), in float32 and outside autocast.

    Cosine similarities, or plain dot products without `normalize` (paper, Table 5). Rows 0 .. N-1 are view one.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.cat([z1, z2])
        z = z if z.dtype == torch.float64 else z.float()
        if normalize:
            z = F.normalize(z, dim=1)
        return z @ z.T


def positives(n: int, device: torch.device) -> Tensor:
    """For each of the 2N rows the index of its positive: the same image in the other view."""
    return torch.arange(2 * n, device=device).roll(n)


def nt_xent(similarity: Tensor, temperature: float, *, include_self: bool = False) -> Tensor:
    """Mean over all 2N rows of -log softmax(similarity / temperature) at the positive; a scalar.

    The diagonal is masked with -inf: no image is its own negative. `include_self` leaves it in, which is a mistake
    that published code makes and that exists here to reproduce it.
    """
    logits = similarity / temperature
    if not include_self:
        logits = logits.fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, positives(len(logits) // 2, logits.device))


@torch.no_grad()
def contrastive_accuracy(similarity: Tensor, topk: tuple[int, ...] = (1, 5)) -> Tensor:
    """For each k, the fraction of the 2N rows whose positive is among its k most similar of 2N - 1 candidates.

    Ties count against the row, so that collapsed embeddings score zero, not one.
    """
    rank = torch.gather(similarity, 1, positives(len(similarity) // 2, similarity.device).unsqueeze(1))
    # Candidates at least as similar, less the row itself and the positive itself.
    better = (similarity >= rank).sum(1) - (similarity.diagonal() >= rank.squeeze(1)).long() - 1
    return torch.stack([(better < k).float().mean() for k in topk])
