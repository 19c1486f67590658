"""Margin triplet loss: a positive must be more similar than a negative by a margin (paper, Tables 2 and 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method
from simclr.methods.ntxent import chance_accuracies, contrastive_accuracy
from simclr.methods.pairs import Pairs, compare, mean_over_negatives, semi_hard
from simclr.settings import Section


class MarginConfig(Section):
    """Settings of the margin triplet loss."""

    margin: float = Field(0.5, gt=0, le=2)  # margin between cosine similarities, which differ by 2 at most
    semi_hard: bool = False  # use one negative instead of all: the most similar that is less similar than the positive


class Margin(Method):
    """max(negative - positive + margin, 0) of cosine similarities.

    The paper gives the term of one negative. Without `semi_hard`, this is the mean of the terms of all negatives.
    """

    section_name = "margin"
    section = MarginConfig
    loss_label = "margin loss"
    figures = ("contrastive_top1", "contrastive_top5")
    settings: MarginConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The loss, and the contrastive top-1 and top-5 accuracies."""
        pairs = compare(embeddings)
        terms = torch.stack([self._terms(positive, pairs) for positive in pairs.positives])
        return terms.mean(), contrastive_accuracy(pairs.similarity.detach(), views=len(embeddings))

    def _terms(self, positive: Tensor, pairs: Pairs) -> Tensor:
        """The term of each row (VN) with its positive in one of the other views."""
        if self.settings.semi_hard:
            return F.relu(semi_hard(positive, pairs.negatives) - positive + self.settings.margin)
        violation = F.relu(pairs.similarity - positive.unsqueeze(1) + self.settings.margin)
        return mean_over_negatives(violation, pairs)

    @classmethod
    def chance(cls, settings: MarginConfig, batch_size: int, views: int = 2) -> dict[str, float]:
        """Identical embeddings violate every triplet by the margin, and candidates are guessed."""
        return {"train/loss": settings.margin} | chance_accuracies(batch_size, views)
