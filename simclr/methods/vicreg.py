"""VICReg: views agree, features vary and don't covary (arXiv 2105.04906)."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method, single, spread
from simclr.settings import Section

EPSILON = 1e-4  # added to variances (there, Algorithm 1)


class VICRegConfig(Section):
    """Settings of VICReg: the weights of its three terms, which are 25, 25 and 1 in its paper."""

    invariance: float = Field(25.0, ge=0, le=1e6)  # weight of the distance between the views
    variance: float = Field(25.0, ge=0, le=1e6)  # weight of the hinge on standard deviations below 1
    covariance: float = Field(1.0, ge=0, le=1e6)  # weight of squared covariances


class VICReg(Method):
    """A weighted sum of the views' distance, of how far deviations are below 1, and of squared covariances.

    Both views' terms of deviations are averaged, as in the authors' code. Their Eq. 6 adds them.
    """

    section_name = "vicreg"
    section = VICRegConfig
    loss_label = "VICReg loss"
    figures = ("invariance", "variance", "covariance", "spread")
    head_batch_norm = "hidden"
    settings: VICRegConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The loss, its three terms without their weights, and the spread of the embeddings.

        With more than two views, the terms are means over all pairs of views.
        """
        z = single(embeddings)
        centred = z - z.mean(1, keepdim=True)
        invariance = torch.stack([F.mse_loss(z1, z2) for z1, z2 in combinations(z, 2)]).mean()
        variance = F.relu(1 - (centred.var(1) + EPSILON).sqrt()).mean()  # the mean of the views
        covariances = centred.mT @ centred / (z.shape[1] - 1)  # V x D x D
        squares = covariances.square().sum() - covariances.diagonal(dim1=1, dim2=2).square().sum()
        covariance = 2 / len(z) * squares / z.shape[2]  # the sum of both views of a pair
        settings = self.settings
        total = settings.invariance * invariance + settings.variance * variance + settings.covariance * covariance
        terms = [term.detach() for term in (invariance, variance, covariance)]
        return total, torch.stack([*terms, spread(z)])
