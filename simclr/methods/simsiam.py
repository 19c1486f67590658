"""SimSiam: predict the network's own embedding of the other view, behind a stop-gradient (arXiv 2011.10566)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simclr.methods.base import Method, single, spread
from simclr.methods.predictor import predicted_cosine, predictor
from simclr.model import Network, Width
from simclr.settings import Section


class SimSiamConfig(Section):
    """Settings of SimSiam."""

    # Width of the predictor's hidden layer: a quarter of z's default width, as in the SimSiam paper (512 of 2,048).
    hidden_dim: Width = 32


class SimSiam(Method):
    """Predictions approach the other views' projections, which get no gradient (Algorithm 1 there)."""

    section_name = "simsiam"
    section = SimSiamConfig
    loss_label = "SimSiam loss"
    figures = ("spread",)
    head_batch_norm = True
    takes_local = False
    settings: SimSiamConfig

    def __init__(self, settings: Any, network: Network, *, fused: bool) -> None:
        super().__init__(settings, network, fused=fused)
        self.predictor = predictor(network.z_width, self.settings.hidden_dim)

    def embed(self, views: Tensor) -> Tensor:
        """Predictions of all views, and their projections without gradient (2V x n x D)."""
        z = self.project(self.network, views)
        return torch.cat([self.on_views(self.predictor, z), z.detach()])

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The mean negative cosine of all pairs of views, and the spread of the projections."""
        predictions, z = single(embeddings).chunk(2)
        return -predicted_cosine(predictions, z), spread(z).view(1)
