"""Margin triplet loss: a positive must be more similar than a negative by a margin (paper, Tables 2 and 4)."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method
from simclr.methods.ntxent import chance_accuracies, contrastive_accuracy
from simclr.methods.pairs import compare, mean_over_negatives, semi_hard
from simclr.settings import Section


class MarginConfig(Section):
    """Settings of the margin triplet loss."""

    margin: float = Field(0.5, gt=0, le=2)  # of cosine similarities, which differ by 2 at most
    semi_hard: bool = False  # only the most similar negative that is less similar than the positive, instead of all


class Margin(Method):
    """max(negative - positive + margin, 0) of cosine similarities.

    The paper gives the term of one negative. Without `semi_hard`, this is the mean of the terms of all 2N - 2.
    """

    section_name = "margin"
    section = MarginConfig
    loss_label = "margin loss"
    figures = ("contrastive_top1", "contrastive_top5")
    settings: MarginConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The loss, and the contrastive top-1 and top-5 accuracies."""
        similarity, positive, negatives = compare(embeddings)
        if self.settings.semi_hard:
            terms = F.relu(semi_hard(positive, negatives) - positive + self.settings.margin)
        else:
            violation = F.relu(similarity - positive.unsqueeze(1) + self.settings.margin)
            terms = mean_over_negatives(violation, negatives)
        return terms.mean(), contrastive_accuracy(similarity.detach())

    @classmethod
    def chance(cls, settings: MarginConfig, batch_size: int) -> dict[str, float]:
        """Identical embeddings violate every triplet by the margin, and candidates are guessed among 2N - 1."""
        return {"train/loss": settings.margin} | chance_accuracies(batch_size)
