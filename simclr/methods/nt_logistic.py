"""NT-Logistic: each pair is classified as positive or negative by itself (paper, Tables 2 and 4)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method
from simclr.methods.ntxent import chance_accuracies, contrastive_accuracy
from simclr.methods.pairs import compare, mean_over_negatives, semi_hard
from simclr.settings import Section


class NTLogisticConfig(Section):
    """Settings of the NT-Logistic loss."""

    temperature: float = Field(0.5, ge=0.01, le=1000)  # small: the hardest negatives count most
    semi_hard: bool = False  # only the most similar negative that is less similar than the positive, instead of all


class NTLogistic(Method):
    """-log sigmoid(positive / temperature) - log sigmoid(-negative / temperature), with cosine similarities.

    The paper gives the term of one negative. Without `semi_hard`, this is the mean of the terms of all 2N - 2.
    """

    section_name = "nt_logistic"
    section = NTLogisticConfig
    loss_label = "NT-Logistic loss"
    figures = ("contrastive_top1", "contrastive_top5")
    settings: NTLogisticConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The loss, and the contrastive top-1 and top-5 accuracies."""
        similarity, positive, negatives = compare(embeddings)
        temperature = self.settings.temperature
        if self.settings.semi_hard:
            repulsion = F.softplus(semi_hard(positive, negatives) / temperature)
        else:
            repulsion = mean_over_negatives(F.softplus(similarity / temperature), negatives)
        return (F.softplus(-positive / temperature) + repulsion).mean(), contrastive_accuracy(similarity.detach())

    @classmethod
    def chance(cls, settings: NTLogisticConfig, batch_size: int) -> dict[str, float]:
        """The loss of identical embeddings, and the accuracies of guessing among the 2N - 1 candidates."""
        logit = 1 / settings.temperature
        loss = math.log1p(math.exp(-logit)) + logit + math.log1p(math.exp(-logit))  # softplus of -logit and of logit
        return {"train/loss": loss} | chance_accuracies(batch_size)
