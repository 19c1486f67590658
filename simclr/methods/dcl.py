"""Decoupled contrastive learning: NT-Xent without the positive in its denominator (arXiv 2110.06848)."""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method
from simclr.methods.ntxent import chance_accuracies, contrastive_accuracy
from simclr.methods.pairs import compare
from simclr.settings import Section


class DCLConfig(Section):
    """Settings of the decoupled contrastive loss."""

    temperature: float = Field(0.5, ge=0.01, le=1000)  # the lower it is, the more the hardest negatives count


class DCL(Method):
    """-positive / temperature + logsumexp(negatives / temperature), with cosine similarities (Eq. 4 there)."""

    section_name = "dcl"
    section = DCLConfig
    loss_label = "DCL loss"
    figures = ("contrastive_top1", "contrastive_top5")
    settings: DCLConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The loss, and the contrastive top-1 and top-5 accuracies."""
        pairs, temperature = compare(embeddings), self.settings.temperature
        terms = (pairs.negatives / temperature).logsumexp(1) - pairs.positives / temperature
        return terms.mean(), contrastive_accuracy(pairs.similarity.detach(), views=len(embeddings))

    @classmethod
    def chance(cls, settings: DCLConfig, batch_size: int, views: int = 2) -> dict[str, float]:  # noqa: ARG003
        """The loss of identical embeddings, and the accuracies of guessing among all candidates."""
        return {"train/loss": math.log(views * (batch_size - 1))} | chance_accuracies(batch_size, views)
