"""BYOL: predict a moving average's embedding of another view, without negatives (arXiv 2006.07733)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from simclr.methods.average import follow, frozen_copy
from simclr.methods.base import Method, single, spread
from simclr.methods.predictor import predicted_cosine, predictor
from simclr.model import Network, Width
from simclr.settings import Section


class BYOLConfig(Section):
    """Settings of BYOL."""

    hidden_dim: Width = 1024  # width of the predictor's hidden layer (4,096 in the BYOL paper, for ResNet-50)
    # Momentum of the target network: the share of its weights kept at each step (0.996 rising to 1 in the BYOL paper).
    momentum: float = Field(0.99, ge=0, lt=1)


class BYOL(Method):
    """The online network and a predictor approach the target network's embedding of every other view (Eq. 2 there)."""

    section_name = "byol"
    section = BYOLConfig
    loss_label = "BYOL loss"
    figures = ("spread",)
    head_batch_norm = "hidden"
    takes_local = False
    settings: BYOLConfig

    def __init__(self, settings: Any, network: Network, *, fused: bool) -> None:
        super().__init__(settings, network, fused=fused)
        self.predictor = predictor(network.z_width, self.settings.hidden_dim)
        self.target = frozen_copy(network)

    def embed(self, views: Tensor) -> Tensor:
        """Predictions of all views, and the target network's projections of all (2V x n x D)."""
        z = self.project(self.network, views)
        with torch.no_grad():
            targets = self.project(self.target, views)
        return torch.cat([self.on_views(self.predictor, z), targets])

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """Twice the mean of 2 - 2 cosine (the sum of both, for two views), and the spread of the targets."""
        predictions, targets = single(embeddings).chunk(2)
        return 4 - 4 * predicted_cosine(predictions, targets), spread(targets).view(1)

    def after_step(self) -> None:
        """Move the target network towards the online network."""
        follow(self.target, self.network, self.settings.momentum)
