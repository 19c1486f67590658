"""Supervised contrastive learning: all images of a class are positives of each other (arXiv 2004.11362)."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method
from simclr.methods.ntxent import chance_accuracies, chance_loss, contrastive_accuracy, similarities
from simclr.settings import Section


class SupConConfig(Section):
    """Settings of the supervised contrastive loss."""

    # Temperature of the softmax (0.1 in Section 4.4 of the SupCon paper).
    temperature: float = Field(0.1, ge=0.01, le=1000)


class SupCon(Method):
    """NT-Xent with the mean over an image's positives outside the logarithm (L_out, Eq. 2 there). It reads labels."""

    section_name = "supcon"
    section = SupConConfig
    loss_label = "SupCon loss"
    figures = ("contrastive_top1", "contrastive_top5")
    reads_labels = True
    settings: SupConConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and how often another view of the same image is among the nearest."""
        similarity = similarities(embeddings)
        itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        logits = (similarity / self.settings.temperature).masked_fill(itself, -math.inf)
        classes = labels.repeat(len(embeddings))
        same = (classes == classes.unsqueeze(1)) & ~itself
        log_likelihood = logits.log_softmax(1).masked_fill(~same, 0.0)
        return -(log_likelihood.sum(1) / same.sum(1)).mean(), contrastive_accuracy(
            similarity.detach(), views=len(embeddings)
        )

    @classmethod
    def chance(cls, settings: SupConConfig, batch_size: int, views: int = 2) -> dict[str, float]:  # noqa: ARG003
        """The loss of identical embeddings, and the accuracies of guessing among all candidates."""
        return {"train/loss": chance_loss(batch_size, views)} | chance_accuracies(batch_size, views)
