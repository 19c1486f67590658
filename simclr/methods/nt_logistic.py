"""NT-Logistic: each pair is classified as positive or negative by itself (paper, Tables 2 and 4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method
from simclr.methods.ntxent import chance_accuracies, contrastive_accuracy
from simclr.methods.pairs import compare, mean_over_negatives, semi_hard
from simclr.settings import Section


class NTLogisticConfig(Section):
    """Settings of the NT-Logistic loss."""

    temperature: float = Field(0.5, ge=0.01, le=1000)  # the lower it is, the more the hardest negatives count
    semi_hard: bool = False  # use one negative instead of all: the most similar that is less similar than the positive


class NTLogistic(Method):
    """-log sigmoid(positive / temperature) - log sigmoid(-negative / temperature), with cosine similarities.

    The paper gives the term of one negative. Without `semi_hard`, this is the mean of the terms of all negatives.
    """

    section_name = "nt_logistic"
    section = NTLogisticConfig
    loss_label = "NT-Logistic loss"
    figures = ("contrastive_top1", "contrastive_top5")
    settings: NTLogisticConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The loss, and the contrastive top-1 and top-5 accuracies."""
        pairs, temperature = compare(embeddings), self.settings.temperature
        if self.settings.semi_hard:
            negatives = torch.stack([semi_hard(positive, pairs.negatives) for positive in pairs.positives])
            repulsion = F.softplus(negatives / temperature)
        else:
            repulsion = mean_over_negatives(F.softplus(pairs.similarity / temperature), pairs)
        terms = F.softplus(-pairs.positives / temperature) + repulsion
        return terms.mean(), contrastive_accuracy(pairs.similarity.detach(), views=len(embeddings))

    @classmethod
    def chance(cls, settings: NTLogisticConfig, batch_size: int, views: int = 2) -> dict[str, float]:
        """The loss of identical embeddings, and the accuracies of guessing among all candidates."""
        logit = 1 / settings.temperature
        loss = math.log1p(math.exp(-logit)) + logit + math.log1p(math.exp(-logit))  # softplus of -logit and of logit
        return {"train/loss": loss} | chance_accuracies(batch_size, views)
