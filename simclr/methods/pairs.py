"""What losses over pairs of views share: positives, negatives, and semi-hard negatives."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from simclr.methods.ntxent import positives, similarities


class Pairs(NamedTuple):
    """The cosine similarities of V views of N images."""

    similarity: Tensor  # of all (VN x VN)
    positives: Tensor  # of each view to the other views of its image (V - 1 x VN)
    negatives: Tensor  # to all other images (VN x VN), with -inf at the image's own views


def compare(embeddings: Tensor) -> Pairs:
    """The pairs of views' embeddings (V x N x D)."""
    (views, n), similarity = embeddings.shape[:2], similarities(embeddings)
    image = torch.arange(len(similarity), device=similarity.device) % n
    own = similarity.gather(1, positives(n, similarity.device, views).T).T
    return Pairs(similarity, own, similarity.masked_fill(image == image.unsqueeze(1), -math.inf))


def semi_hard(positive: Tensor, negatives: Tensor) -> Tensor:
    """Each row's most similar negative (VN) that is less similar than its positive.

    Where all are more similar than the positive, it is the least similar one (FaceNet, arXiv 1503.03832, Section 3.2).
    """
    easier = negatives.masked_fill(negatives >= positive.unsqueeze(1), -math.inf).amax(1)
    easiest = negatives.masked_fill(negatives == -math.inf, math.inf).amin(1)
    return torch.where(easier == -math.inf, easiest, easier)


def mean_over_negatives(terms: Tensor, pairs: Pairs) -> Tensor:
    """The mean over each row's negatives (VN) of one term for each entry (VN x VN)."""
    terms = terms.masked_fill(pairs.negatives == -math.inf, 0.0)
    return terms.sum(1) / (len(terms) - 1 - len(pairs.positives))
