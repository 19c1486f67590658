"""Barlow Twins: the views' features correlate with themselves and not with each other (arXiv 2103.03230)."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method, single, spread
from simclr.settings import Section


class BarlowConfig(Section):
    """Settings of Barlow Twins."""

    redundancy: float = Field(0.005, ge=0, le=1e3)  # weight of the correlations between features: lambda there


class Barlow(Method):
    """The cross-correlation matrix of both views' embeddings, over the whole batch, approaches the identity (Eq. 1)."""

    section_name = "barlow"
    section = BarlowConfig
    loss_label = "Barlow Twins loss"
    figures = ("spread",)
    settings: BarlowConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The sum of squared differences of the correlations from the identity, and the spread of the embeddings."""
        z1, z2 = (F.batch_norm(z, None, None, training=True) for z in single(embeddings))  # mean 0, variance 1
        correlation = z1.T @ z2 / len(z1)
        on_diagonal = (correlation.diagonal() - 1).square().sum()
        off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
        return on_diagonal + self.settings.redundancy * off_diagonal, spread(single(embeddings)).view(1)
