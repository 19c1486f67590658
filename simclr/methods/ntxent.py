"""NT-Xent, the contrastive loss of SimCLR (paper, Section 2.1 and Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1024  # rows and columns of a block of similarities: 4 MiB in float32


TIE = 16  # units of rounding: between equal rows of 16 to 2,048 numbers up to 3 were seen


PLAIN_ROWS = 1024  # up to here the whole matrix is no slower on CPUs, and above it blocks are not (docs/memory.md)


def chance_loss(batch_size: int, *, include_self: bool = False) -> float:
    """Loss of embeddings that are all the same: one positive among 2N - 1 candidates; among 2N with each row itself."""
    return math.log(2 * batch_size - (not include_self))


def _embeddings(z1: Tensor, z2: Tensor, normalize: bool) -> Tensor:
    """Both views' embeddings, one after the other, in float32 (float64 stays); each of length one if `normalize`."""
    z = torch.cat([z1, z2])
    z = z if z.dtype == torch.float64 else z.float()
    return F.normalize(z, dim=1) if normalize else z


def similarities(z1: Tensor, z2: Tensor, *, normalize: bool = True) -> Tensor:
    """The 2N x 2N similarities of two views' embeddings (each N x D), in float32 and outside autocast.

    Cosine similarities, or plain dot products without `normalize` (paper, Table 5). Rows 0 .. N-1 are view one.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z = _embeddings(z1, z2, normalize)
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


def _as_similar(positive: Tensor, squares: Tensor) -> Tensor:
    """The similarity above which a candidate counts as at least as similar as each row's positive; `squares` are the
    rows' similarities to themselves. The slack is for products that were summed in another order.
    """
    return positive - TIE * torch.finfo(positive.dtype).eps * squares


@torch.no_grad()
def contrastive_accuracy(similarity: Tensor, topk: tuple[int, ...] = (1, 5)) -> Tensor:
    """For each k, the fraction of the 2N rows whose positive is among its k most similar of 2N - 1 candidates.

    Ties, which are alike to rounding, count against the row, so that collapsed embeddings score zero, not one.
    """
    positive = torch.gather(similarity, 1, positives(len(similarity) // 2, similarity.device).unsqueeze(1)).squeeze(1)
    lowest = _as_similar(positive, similarity.diagonal())
    # Candidates at least as similar, less the row itself and the positive itself.
    better = (similarity >= lowest.unsqueeze(1)).sum(1) - (similarity.diagonal() >= lowest).long() - 1
    return torch.stack([(better < k).float().mean() for k in topk])


def _blocks(z: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and similarities of each block on and above the diagonal; the matrix is symmetric."""
    for top in range(0, len(z), BLOCK):
        for left in range(top, len(z), BLOCK):
            rows, columns = slice(top, top + BLOCK), slice(left, left + BLOCK)
            yield rows, columns, z[rows] @ z[columns].T


class _Blockwise(torch.autograd.Function):
    """`nt_xent` of z (2N x D), and for each row how many candidates are at least as similar as its positive.

    Holds one block of similarities at a time and the logsumexp of each row, from which backward makes them anew:
    memory grows with N, not with its square.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, include_self: bool) -> tuple[Tensor, Tensor]:
        positive = positives(len(z) // 2, z.device)
        index = torch.arange(len(z), device=z.device)
        of_positive = (z * z[positive]).sum(1)
        lowest = _as_similar(of_positive, z.square().sum(1))
        total, better = z.new_full((len(z),), -math.inf), torch.zeros_like(index)
        for rows, columns, similarity in _blocks(z):
            on_diagonal = rows == columns
            if on_diagonal and not include_self:
                similarity.fill_diagonal_(-math.inf)
            logits = similarity / temperature
            total[rows] = torch.logaddexp(total[rows], logits.logsumexp(1))
            if not on_diagonal:
                total[columns] = torch.logaddexp(total[columns], logits.logsumexp(0))
            if on_diagonal:
                similarity.fill_diagonal_(-math.inf)
            similarity.masked_fill_(positive[rows].unsqueeze(1) == index[columns], -math.inf)
            better[rows] += (similarity >= lowest[rows].unsqueeze(1)).sum(1)
            if not on_diagonal:
                better[columns] += (similarity >= lowest[columns]).sum(0)
        ctx.save_for_backward(z, total)
        ctx.temperature, ctx.include_self = temperature, include_self
        ctx.mark_non_differentiable(better)
        return (total - of_positive / temperature).mean(), better

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        z, total = ctx.saved_tensors
        gradient = torch.zeros_like(z)
        with torch.autocast(z.device.type, enabled=False):
            for rows, columns, similarity in _blocks(z):
                logits = similarity / ctx.temperature
                if rows == columns and not ctx.include_self:
                    logits.fill_diagonal_(-math.inf)
                # Softmax by rows and by columns: a similarity stands in the loss of both of its images.
                weight = (logits - total[rows].unsqueeze(1)).exp_() + (logits - total[columns]).exp_()
                gradient[rows] += weight @ z[columns]
                if rows != columns:
                    gradient[columns] += weight.T @ z[rows]
        gradient -= 2 * z[positives(len(z) // 2, z.device)]
        return gradient * (scale / (len(z) * ctx.temperature)), None, None


def contrast(
    z1: Tensor, z2: Tensor, temperature: float, *, normalize: bool = True, include_self: bool = False
) -> tuple[Tensor, Tensor]:
    """NT-Xent of two views' embeddings (each N x D), and contrastive top-1 and top-5: see the functions above.

    From whole similarities for up to PLAIN_ROWS embeddings, else block by block: the same to rounding.
    """
    if len(z1) + len(z2) <= PLAIN_ROWS:
        similarity = similarities(z1, z2, normalize=normalize)
        loss = nt_xent(similarity, temperature, include_self=include_self)
        return loss, contrastive_accuracy(similarity.detach())
    with torch.autocast(z1.device.type, enabled=False):
        loss, better = _Blockwise.apply(_embeddings(z1, z2, normalize), temperature, include_self)
    return loss, torch.stack([(better < k).float().mean() for k in (1, 5)])
