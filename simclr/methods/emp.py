"""EMP-SSL: many patches of an image agree with their mean, and their coding rate is large (arXiv 2304.03977)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method, single, spread
from simclr.settings import Section


class EMPConfig(Section):
    """Settings of EMP-SSL. Its patches are the views (`augment.views`, 20 to 200 in its paper)."""

    invariance: float = Field(200.0, ge=0, le=1e6)  # weight of the similarity to the mean patch (200 in the EMP paper)
    distortion: float = Field(0.2, ge=1e-6, le=1e6)  # squared epsilon of the coding rate (0.2 in the EMP paper)


class EMP(Method):
    """Each view is similar to the mean of its image's views, and views of different images fill the space."""

    section_name = "emp"
    section = EMPConfig
    loss_label = "EMP-SSL loss"
    figures = ("invariance", "coding_rate", "spread")
    head_batch_norm = "hidden"  # as in its authors' code
    settings: EMPConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The loss, the mean cosine similarity to the mean, the mean coding rate of the views, and the spread."""
        z = F.normalize(single(embeddings), dim=2)  # V x N x D
        width, scale = z.shape[2], z.shape[2] / (z.shape[1] * self.settings.distortion)
        gram = torch.eye(width, dtype=z.dtype, device=z.device) + scale * z.mT @ z
        rate = torch.linalg.cholesky_ex(gram).L.diagonal(dim1=1, dim2=2).log().sum(1).mean()  # logdet(gram) / 2
        invariance = F.cosine_similarity(z, z.mean(0, keepdim=True), dim=2).mean()
        loss = -rate - self.settings.invariance * invariance
        return loss, torch.stack([invariance.detach(), rate.detach(), spread(z)])
