"""MoCo: negatives from a queue of a momentum encoder's keys (arXiv 1911.05722)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.methods.average import follow, frozen_copy
from simclr.methods.base import Method, single
from simclr.methods.predictor import other_views
from simclr.model import Network
from simclr.settings import LARGEST_BATCH, Section


class MoCoConfig(Section):
    """Settings of MoCo."""

    temperature: float = Field(0.2, ge=0.01, le=1000)  # temperature of the softmax (0.2 in MoCo v2, arXiv 2003.04297)
    # Momentum of the key encoder: the share of its weights kept at each step (0.999 in the MoCo paper's longer runs).
    momentum: float = Field(0.99, ge=0, lt=1)
    # Number of keys in the queue (65,536 in the MoCo paper, for ImageNet).
    queue: int = Field(4096, ge=1, le=LARGEST_BATCH)


class MoCo(Method):
    """Each view is contrasted with the other views' keys, against the keys of earlier batches (Algorithm 1 there).

    All views serve as queries, and the keys of all enter the queue. Batch norm is not shuffled: it is per group of
    images, as for the other methods here.
    """

    section_name = "moco"
    section = MoCoConfig
    loss_label = "MoCo loss"
    figures = ("queue_top1",)
    takes_local = False
    settings: MoCoConfig
    queue: Tensor

    def __init__(self, settings: Any, network: Network, *, fused: bool) -> None:
        super().__init__(settings, network, fused=fused)
        self.key_network = frozen_copy(network)
        self.register_buffer("queue", F.normalize(torch.randn(self.settings.queue, network.z_width), dim=1))

    def embed(self, views: Tensor) -> Tensor:
        """Queries of all views, and their keys by the momentum encoder (2V x n x D)."""
        with torch.no_grad():
            keys = self.project(self.key_network, views)
        return torch.cat([self.project(self.network, views), keys])

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """InfoNCE, and how often the positive is more similar than the whole queue."""
        queries, keys = F.normalize(single(embeddings), dim=2).chunk(2)
        self.keys = keys.detach().flatten(0, 1)
        negatives = queries.flatten(0, 1) @ self.queue.T.to(queries.dtype)
        first = torch.zeros(len(negatives), dtype=torch.long, device=negatives.device)
        losses, hits = [], []
        for other in other_views(keys.detach()):
            positive = (queries * other).sum(2).flatten().unsqueeze(1)
            logits = torch.cat([positive, negatives], 1) / self.settings.temperature
            losses.append(F.cross_entropy(logits, first))
            hits.append((positive.detach() > negatives.detach().amax(1, keepdim=True)).to(logits.dtype).mean())
        return torch.stack(losses).mean(), torch.stack(hits).mean().view(1)

    def after_step(self) -> None:
        """Move the key encoder towards the network, and replace the oldest keys of the queue."""
        follow(self.key_network, self.network, self.settings.momentum)
        queue = torch.cat([self.keys.to(self.queue.dtype), self.queue])[: len(self.queue)]
        # After an overflow in float16, which the optimizer's step skips, the keys would spoil the queue.
        self.queue.copy_(torch.where(queue.isfinite().all(), queue, self.queue))
