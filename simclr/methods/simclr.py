"""SimCLR: views of each image, contrasted by NT-Xent (arXiv 2002.05709)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from simclr.methods.base import Method
from simclr.methods.ntxent import chance_accuracies, chance_loss, contrast
from simclr.settings import Section


class LossConfig(Section):
    """Settings of the NT-Xent loss."""

    temperature: float = Field(0.5, ge=0.01, le=1000)  # the lower it is, the more the hardest negatives count
    normalize: bool = True  # compare embeddings by cosine similarity, or by the plain dot product (paper, Table 5)
    # Keep each row's similarity to itself in the denominator, to reproduce a known mistake in published code.
    include_self: bool = False


class SimCLR(Method):
    """An image's views attract each other and repel those of all other images in the batch."""

    section_name = "loss"
    section = LossConfig
    loss_label = "NT-Xent loss"
    figures = ("contrastive_top1", "contrastive_top5")
    settings: LossConfig

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 (unsupervised)
        """NT-Xent, and the contrastive top-1 and top-5 accuracies."""
        settings = self.settings
        return contrast(
            embeddings,
            settings.temperature,
            normalize=settings.normalize,
            include_self=settings.include_self,
        )

    @classmethod
    def chance(cls, settings: LossConfig, batch_size: int, views: int = 2) -> dict[str, float]:
        """The loss of identical embeddings, and the accuracies of guessing among all candidates."""
        loss = chance_loss(batch_size, views, include_self=settings.include_self)
        return {"train/loss": loss} | chance_accuracies(batch_size, views)
