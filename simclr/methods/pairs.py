"""What losses over pairs of views share: positives, negatives, and semi-hard negatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simclr.methods.ntxent import positives, similarities


def compare(embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cosine similarities of two views' embeddings (2 x N x D): all (2N x 2N), of positives (2N), of negatives.

    The negatives (2N x 2N) are the similarities to all other images; -inf stands at the image's own two views.
    """
    similarity = similarities(embeddings[0], embeddings[1])
    index = torch.arange(len(similarity), device=similarity.device)
    positive = positives(len(similarity) // 2, similarity.device)
    own = (index == index.unsqueeze(1)) | (index == positive.unsqueeze(1))
    return similarity, similarity.gather(1, positive.unsqueeze(1)).squeeze(1), similarity.masked_fill(own, -math.inf)


def semi_hard(positive: Tensor, negatives: Tensor) -> Tensor:
    """Each row's most similar negative (2N) that is less similar than its positive.

    Where all are more similar than the positive, it is the least similar one (FaceNet, arXiv 1503.03832, Section 3.2).
    """
    easier = negatives.masked_fill(negatives >= positive.unsqueeze(1), -math.inf).amax(1)
    easiest = negatives.masked_fill(negatives == -math.inf, math.inf).amin(1)
    return torch.where(easier == -math.inf, easiest, easier)


def mean_over_negatives(terms: Tensor, negatives: Tensor) -> Tensor:
    """The mean over each row's negatives (2N) of one term for each entry (2N x 2N)."""
    terms = terms.masked_fill(negatives == -math.inf, 0.0)
    return terms.sum(1) / (len(terms) - 2)
