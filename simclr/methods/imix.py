"""i-Mix: images are mixed, and so are their positives (arXiv 2010.08887, N-pair form)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.device import send
from simclr.methods.base import Method, single, spread
from simclr.settings import Section


class IMixConfig(Section):
    """Settings of i-Mix. The share of the first image is uniform from a half to 1 (alpha = 1 in its paper)."""

    temperature: float = Field(0.2, ge=0.01, le=1000)  # temperature of the softmax (0.2 in the i-Mix paper)
    # How two images are mixed: mixup averages their pixels, cutmix replaces a box.
    kind: Literal["mixup", "cutmix"] = "mixup"


def mixup(images: Tensor, others: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means of images and others (n x 3 x S x S), and the images' shares (n). `u` (n x 3) is uniform."""
    share = 1 - u[:, 0] / 2
    return torch.lerp(others, images, share.view(-1, 1, 1, 1)), share


def cutmix(images: Tensor, others: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Images with a box of others, and the share of pixels (n) that they keep (CutMix, arXiv 1905.04899).

    The box has up to half of the area, before the part of it that lies outside of the image is cut off.
    """
    side = images.shape[-1]
    half = side * (u[:, :1] / 2).sqrt() / 2
    place = torch.arange(side, device=images.device) + 0.5
    rows, columns = ((place - side * u[:, axis : axis + 1]).abs() < half for axis in (1, 2))
    box = rows.unsqueeze(2) & columns.unsqueeze(1)
    return torch.where(box.unsqueeze(1), others, images), 1 - box.float().mean((1, 2))


KINDS = {"mixup": mixup, "cutmix": cutmix}


class IMix(Method):
    """The mixed first view is as similar to the other views of both its images as their shares say.

    The candidates are the other views, which are not mixed. Images are mixed with others that share batch norm with
    them, at random.
    """

    section_name = "imix"
    section = IMixConfig
    loss_label = "i-Mix loss"
    figures = ("spread",)
    takes_local = False
    mixes = True
    settings: IMixConfig

    def embed(self, views: Tensor) -> Tensor:
        """z of all views, the first one mixed; of the others for the second image; and the share of the first image.

        They are 2V x n x D; the last has the share in every place. The random numbers are those of the group of images.
        """
        n, device = views.shape[1], views.device
        partner, u = send(torch.randperm(n), device), send(torch.rand(n, 3), device)
        mixed, share = KINDS[self.settings.kind](views[0], views[0, partner], u)
        z = self.project(self.network, torch.cat([mixed.unsqueeze(0), views[1:]]))
        return torch.cat([z, z[1:, partner], share.view(1, n, 1).expand_as(z[:1])])

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """The loss, and the spread of the views that are not mixed."""
        share = embeddings[-1, :, 0]
        anchor, *others = F.normalize(single(embeddings[:-1]), dim=2)
        firsts, seconds = others[: len(others) // 2], others[len(others) // 2 :]
        losses = []
        for first, second in zip(firsts, seconds, strict=True):
            positive = share * (anchor * first).sum(1) + (1 - share) * (anchor * second).sum(1)
            total = (anchor @ first.T / self.settings.temperature).logsumexp(1)
            losses.append((total - positive / self.settings.temperature).mean())
        return torch.stack(losses).mean(), spread(torch.stack(firsts)).view(1)

    @classmethod
    def chance(cls, settings: IMixConfig, batch_size: int, views: int = 2) -> dict[str, float]:  # noqa: ARG003
        """The loss of identical embeddings."""
        return {"train/loss": math.log(batch_size)}
