"""Barlow Twins: the views' features correlate with themselves and not with each other (arXiv 2103.03230)."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method, single, spread
from simclr.model import Network
from simclr.settings import Section

PUBLISHED = 0.005 * 8192  # lambda times the number of features (Barlow Twins paper, Section 2.2)


class BarlowConfig(Section):
    """Settings of Barlow Twins."""

    # Weight of the correlations between features: lambda in the Barlow Twins paper, which has 0.005 for 8,192 features
    # (default: scaled to the width of z, so that the two terms of the loss are balanced as in that paper).
    redundancy: float | None = Field(None, ge=0, le=1e3)


class Barlow(Method):
    """The cross-correlations of two views' embeddings, over the whole batch, approach the identity (Eq. 1)."""

    section_name = "barlow"
    section = BarlowConfig
    loss_label = "Barlow Twins loss"
    figures = ("spread",)
    head_batch_norm = "hidden"
    settings: BarlowConfig

    def __init__(self, settings: Any, network: Network, *, fused: bool) -> None:
        super().__init__(settings, network, fused=fused)
        own = self.settings.redundancy
        self.redundancy = PUBLISHED / network.z_width if own is None else own

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The sum of squared differences of the correlations from the identity, and the spread of the embeddings.

        It is the mean over all pairs of views, if there are more than two.
        """
        standardised = [F.batch_norm(z, None, None, training=True) for z in single(embeddings)]  # mean 0, variance 1
        losses = [self._of_pair(z1, z2) for z1, z2 in combinations(standardised, 2)]
        return torch.stack(losses).mean(), spread(single(embeddings)).view(1)

    def _of_pair(self, z1: Tensor, z2: Tensor) -> Tensor:
        correlation = z1.T @ z2 / len(z1)
        on_diagonal = (correlation.diagonal() - 1).square().sum()
        off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
        return on_diagonal + self.redundancy * off_diagonal
