"""NT-Xent, the contrastive loss of SimCLR (paper, Section 2.1 and Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from simclr import processes
from simclr.methods.base import single

BLOCK = 1024  # rows and columns of a block of similarities, which takes 4 MiB in float32
TIE = 16  # units of rounding within which products count as equal (up to 3 were seen for equal rows of 16 to 2,048)
PLAIN_ROWS = 1024  # up to this many rows the whole matrix is as fast on CPUs (docs/results/memory.md)


def chance_loss(batch_size: int, views: int = 2, *, include_self: bool = False) -> float:
    """The loss of identical embeddings: VN - 1 candidates are equal, or VN if rows compete with themselves."""
    return math.log(views * batch_size - (not include_self))


def chance_accuracies(batch_size: int, views: int = 2) -> dict[str, float]:
    """The contrastive top-1 and top-5 accuracies of guessing among the VN - 1 candidates, by their names in the log."""
    candidates, negatives = views * batch_size - 1, views * (batch_size - 1)
    draws = {k: min(k, candidates) for k in (1, 5)}
    ways = {k: (math.comb(candidates, n), math.comb(negatives, n)) for k, n in draws.items()}
    return {f"train/contrastive_top{k}": (every - wrong) / every for k, (every, wrong) in ways.items()}


def _join(z: Tensor, normalize: bool) -> Tensor:
    """All views' embeddings, one after the other (VN x D), scaled to length one if `normalize`.

    They are float32, or float64 if they were before.
    """
    z = single(z.flatten(0, 1))
    return F.normalize(z, dim=1) if normalize else z


def similarities(z: Tensor, *, normalize: bool = True) -> Tensor:
    """The VN x VN similarities of V views' embeddings (V x N x D), in float32 and outside autocast.

    They are cosine similarities, or dot products without `normalize` (paper, Table 5). View one has rows 0 .. N-1.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = _join(z, normalize)
        return z @ z.T


def positives(n: int, device: torch.device, views: int = 2) -> Tensor:
    """The index of each of the VN rows' positives (V - 1 x VN), which are the same image in the other views."""
    index = torch.arange(views * n, device=device)
    return torch.stack([index.roll(-view * n) for view in range(1, views)])


def nt_xent(similarity: Tensor, temperature: float, views: int = 2, *, include_self: bool = False) -> Tensor:
    """The mean over all VN rows of -log softmax(similarity / temperature) at the positive (a scalar).

    With more than two views, a row has several positives, and the mean is over them too (SupCon, arXiv 2004.11362,
    Eq. 2, with every image as a class). The diagonal is masked with -inf, because an image is not its own negative.
    `include_self` leaves it in: a mistake in published code, available here to reproduce it.
    """
    logits = similarity / temperature
    if not include_self:
        logits = logits.fill_diagonal_(-math.inf)
    log_likelihood = logits.log_softmax(1)
    own = positives(len(logits) // views, logits.device, views)
    return torch.stack([F.nll_loss(log_likelihood, positive) for positive in own]).mean()


@torch.no_grad()
def contrastive_entropy(similarity: Tensor, temperature: float) -> float:
    """The mean entropy, in nats, of the softmax over the 2N - 1 candidates of each of the 2N rows (paper, Table 5).

    It is 0 if one candidate has all the weight, and log(2N - 1) if all have the same.
    """
    logits = (similarity / temperature).fill_diagonal_(-math.inf)
    return float(torch.special.entr(logits.softmax(1)).sum(1).mean())


def _tie_threshold(positive: Tensor, squares: Tensor) -> Tensor:
    """The similarity from which a candidate counts as at least as similar as each row's `positive`.

    It is a little lower than `positive`, because equal products differ by rounding when summed in a different order.
    `squares` are the rows' similarities to themselves.
    """
    return positive - TIE * torch.finfo(positive.dtype).eps * squares


@torch.no_grad()
def contrastive_accuracy(similarity: Tensor, topk: tuple[int, ...] = (1, 5), views: int = 2) -> Tensor:
    """For each k, the fraction of the VN rows that have a positive among their k most similar of VN - 1 candidates.

    Ties (equal up to rounding) count against the row, so collapsed embeddings score zero and not one.
    """
    own = similarity.gather(1, positives(len(similarity) // views, similarity.device, views).T)
    threshold = _tie_threshold(own.amax(1), similarity.diagonal()).unsqueeze(1)
    # Candidates at least as similar as the best positive, without the row itself and all of its positives.
    itself = similarity.diagonal().unsqueeze(1) >= threshold
    better = (similarity >= threshold).sum(1) - itself.sum(1) - (own >= threshold).sum(1)
    return torch.stack([(better < k).float().mean() for k in topk])


def _blocks(z: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and similarities of this process's blocks on and above the diagonal of the symmetric matrix."""
    starts = range(0, len(z), BLOCK)
    for top, left in processes.deal([(top, left) for top in starts for left in starts if left >= top]):
        rows, columns = slice(top, top + BLOCK), slice(left, left + BLOCK)
        yield rows, columns, z[rows] @ z[columns].T


class _Blockwise(torch.autograd.Function):
    """`nt_xent` of z (VN x D), and for each row the number of negatives at least as similar as its best positive.

    It holds one block of similarities at a time and the logsumexp of each row, from which backward computes the blocks
    again. Memory grows with N, not with its square. Several processes share the blocks.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, views: int, include_self: bool) -> tuple[Tensor, Tensor]:
        n = len(z) // views
        image = torch.arange(len(z), device=z.device) % n
        of_positives = torch.stack([(z * z[positive]).sum(1) for positive in positives(n, z.device, views)])
        threshold = _tie_threshold(of_positives.amax(0), z.square().sum(1))
        total, better = z.new_full((len(z),), -math.inf), torch.zeros_like(image)
        for rows, columns, similarity in _blocks(z):
            on_diagonal = rows == columns
            if on_diagonal and not include_self:
                similarity.fill_diagonal_(-math.inf)
            logits = similarity / temperature
            total[rows] = torch.logaddexp(total[rows], logits.logsumexp(1))
            if not on_diagonal:
                total[columns] = torch.logaddexp(total[columns], logits.logsumexp(0))
            similarity.masked_fill_(image[rows].unsqueeze(1) == image[columns], -math.inf)
            better[rows] += (similarity >= threshold[rows].unsqueeze(1)).sum(1)
            if not on_diagonal:
                better[columns] += (similarity >= threshold[columns]).sum(0)
        total = processes.gather(total.unsqueeze(0)).logsumexp(0)
        processes.add_up([better])
        ctx.save_for_backward(z, total)
        ctx.temperature, ctx.views, ctx.include_self = temperature, views, include_self
        ctx.mark_non_differentiable(better)
        return (total - of_positives.mean(0) / temperature).mean(), better

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
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
        processes.add_up([gradient])
        for positive in positives(len(z) // ctx.views, z.device, ctx.views):
            gradient -= 2 / (ctx.views - 1) * z[positive]
        return gradient * (scale / (len(z) * ctx.temperature)), None, None, None


def contrast(
    z: Tensor, temperature: float, *, normalize: bool = True, include_self: bool = False
) -> tuple[Tensor, Tensor]:
    """`nt_xent` of V views' embeddings (V x N x D), and their contrastive top-1 and top-5 accuracies.

    Up to PLAIN_ROWS embeddings are compared in one matrix, more block by block. Both agree up to rounding.
    """
    views = len(z)
    if views * z.shape[1] <= PLAIN_ROWS:
        similarity = similarities(z, normalize=normalize)
        loss = nt_xent(similarity, temperature, views, include_self=include_self)
        return loss, contrastive_accuracy(similarity.detach(), views=views)
    with torch.autocast(z.device.type, enabled=False):
        loss, better = _Blockwise.apply(_join(z, normalize), temperature, views, include_self)
    return loss, torch.stack([(better < k).float().mean() for k in (1, 5)])
