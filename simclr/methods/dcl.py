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

    temperature: float = Field(0.5, ge=0.01, le=1000)  # small: the hardest negatives count most


class DCL(Method):
    """-positive / temperature + logsumexp(negatives / temperature), with cosine similarities (Eq. 4 there)."""

    section_name = "dcl"
    section = DCLConfig
    loss_label = "DCL loss"
    figures = ("contrastive_top1", "contrastive_top5")
    settings: DCLConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The loss, and the contrastive top-1 and top-5 accuracies."""
        similarity, positive, negatives = compare(embeddings)
        terms = (negatives / self.settings.temperature).logsumexp(1) - positive / self.settings.temperature
        return terms.mean(), contrastive_accuracy(similarity.detach())

    @classmethod
    def chance(cls, settings: DCLConfig, batch_size: int) -> dict[str, float]:  # noqa: ARG003 (any temperature)
        """The loss of identical embeddings, and the accuracies of guessing among the 2N - 1 candidates."""
        return {"train/loss": math.log(2 * batch_size - 2)} | chance_accuracies(batch_size)
