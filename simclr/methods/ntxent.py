"""NT-Xent, the contrastive loss of SimCLR (paper, Section 2.1 and Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from simclr.methods.base import single

BLOCK = 1024  # rows and columns of a block of similarities, which takes 4 MiB in float32
TIE = 16  # units of rounding within which products count as equal (up to 3 were seen for equal rows of 16 to 2,048)
PLAIN_ROWS = 1024  # up to this many rows the whole matrix is as fast on CPUs (docs/results/memory.md)


def chance_loss(batch_size: int, *, include_self: bool = False) -> float:
    """The loss of identical embeddings: one positive among 2N - 1 candidates, or 2N if rows compete with themselves."""
    return math.log(2 * batch_size - (not include_self))


def chance_accuracies(batch_size: int) -> dict[str, float]:
    """The contrastive top-1 and top-5 accuracies of guessing among the 2N - 1 candidates, by their names in the log."""
    return {f"train/contrastive_top{k}": min(1.0, k / (2 * batch_size - 1)) for k in (1, 5)}


def _join(z1: Tensor, z2: Tensor, normalize: bool) -> Tensor:
    """Both views' embeddings, one after the other (2N x D), scaled to length one if `normalize`.

    They are float32, or float64 if they were before.
    """
    z = single(torch.cat([z1, z2]))
    return F.normalize(z, dim=1) if normalize else z


def similarities(z1: Tensor, z2: Tensor, *, normalize: bool = True) -> Tensor:
    """The 2N x 2N similarities of two views' embeddings (each N x D), in float32 and outside autocast.

    They are cosine similarities, or dot products without `normalize` (paper, Table 5). View one has rows 0 .. N-1.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z = _join(z1, z2, normalize)
        return z @ z.T


def positives(n: int, device: torch.device) -> Tensor:
    """The index of each of the 2N rows' positive, which is the same image in the other view."""
    return torch.arange(2 * n, device=device).roll(n)


def nt_xent(similarity: Tensor, temperature: float, *, include_self: bool = False) -> Tensor:
    """The mean over all 2N rows of -log softmax(similarity / temperature) at the positive (a scalar).

    The diagonal is masked with -inf, because an image is not its own negative. `include_self` leaves it in: a mistake
    in published code, available here to reproduce it.
    """
    logits = similarity / temperature
    if not include_self:
        logits = logits.fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, positives(len(logits) // 2, logits.device))


def _tie_threshold(positive: Tensor, squares: Tensor) -> Tensor:
    """The similarity from which a candidate counts as at least as similar as each row's `positive`.

    It is a little lower than `positive`, because equal products differ by rounding when summed in a different order.
    `squares` are the rows' similarities to themselves.
    """
    return positive - TIE * torch.finfo(positive.dtype).eps * squares


@torch.no_grad()
def contrastive_accuracy(similarity: Tensor, topk: tuple[int, ...] = (1, 5)) -> Tensor:
    """For each k, the fraction of the 2N rows whose positive is among its k most similar of 2N - 1 candidates.

    Ties (equal up to rounding) count against the row, so collapsed embeddings score zero and not one.
    """
    positive = torch.gather(similarity, 1, positives(len(similarity) // 2, similarity.device).unsqueeze(1)).squeeze(1)
    threshold = _tie_threshold(positive, similarity.diagonal())
    # Candidates at least as similar, without the row itself and the positive itself.
    better = (similarity >= threshold.unsqueeze(1)).sum(1) - (similarity.diagonal() >= threshold).long() - 1
    return torch.stack([(better < k).float().mean() for k in topk])


def _blocks(z: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and similarities of each block on and above the diagonal of the symmetric matrix."""
    for top in range(0, len(z), BLOCK):
        for left in range(top, len(z), BLOCK):
            rows, columns = slice(top, top + BLOCK), slice(left, left + BLOCK)
            yield rows, columns, z[rows] @ z[columns].T


class _Blockwise(torch.autograd.Function):
    """`nt_xent` of z (2N x D), and for each row the number of candidates at least as similar as its positive.

    It holds one block of similarities at a time and the logsumexp of each row, from which backward computes the blocks
    again. Memory grows with N, not with its square.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, include_self: bool) -> tuple[Tensor, Tensor]:
        positive = positives(len(z) // 2, z.device)
        index = torch.arange(len(z), device=z.device)
        of_positive = (z * z[positive]).sum(1)
        threshold = _tie_threshold(of_positive, z.square().sum(1))
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
            better[rows] += (similarity >= threshold[rows].unsqueeze(1)).sum(1)
            if not on_diagonal:
                better[columns] += (similarity >= threshold[columns]).sum(0)
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
                # The softmax by rows plus that by columns: a similarity is in the losses of both its images.
                weight = (logits - total[rows].unsqueeze(1)).exp_() + (logits - total[columns]).exp_()
                gradient[rows] += weight @ z[columns]
                if rows != columns:
                    gradient[columns] += weight.T @ z[rows]
        gradient -= 2 * z[positives(len(z) // 2, z.device)]
        return gradient * (scale / (len(z) * ctx.temperature)), None, None


def contrast(
    z1: Tensor, z2: Tensor, temperature: float, *, normalize: bool = True, include_self: bool = False
) -> tuple[Tensor, Tensor]:
    """`nt_xent` of two views' embeddings (each N x D), and their contrastive top-1 and top-5 accuracies.

    Up to PLAIN_ROWS embeddings are compared in one matrix, more block by block. Both agree up to rounding.
    """
    if len(z1) + len(z2) <= PLAIN_ROWS:
        similarity = similarities(z1, z2, normalize=normalize)
        loss = nt_xent(similarity, temperature, include_self=include_self)
        return loss, contrastive_accuracy(similarity.detach())
    with torch.autocast(z1.device.type, enabled=False):
        loss, better = _Blockwise.apply(_join(z1, z2, normalize), temperature, include_self)
    return loss, torch.stack([(better < k).float().mean() for k in (1, 5)])
