"""Plain supervised training: the head's outputs are logits of the classes. A reference for methods without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.errors import UserError
from simclr.methods.base import Method, single
from simclr.model import Network
from simclr.settings import Section


class SupervisedConfig(Section):
    """Settings of the supervised loss."""

    # Label smoothing: the share of the target that is spread over all classes.
    smoothing: float = Field(0.0, ge=0, lt=1)

    def effective_settings(self) -> dict[str, Any]:
        # In the key, because earlier versions had all numbers of z in the softmax.
        return super().effective_settings() | {"logits": "classes"}


class Supervised(Method):
    """Cross-entropy of the classes, on all views. The first numbers of z are the logits; the rest isn't used."""

    section_name = "supervised"
    section = SupervisedConfig
    loss_label = "cross-entropy"
    figures = ("top1",)
    reads_labels = True
    settings: SupervisedConfig

    def __init__(self, settings: Any, network: Network, *, fused: bool) -> None:
        super().__init__(settings, network, fused=fused)
        self.classes = network.z_width  # until the images are known

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the accuracy on the augmented training images."""
        logits, targets = single(embeddings).flatten(0, 1)[:, : self.classes], labels.repeat(len(embeddings))
        correct = (logits.detach().argmax(1) == targets).to(logits.dtype).mean()
        return F.cross_entropy(logits, targets, label_smoothing=self.settings.smoothing), correct.view(1)

    def check_labels(self, labels: Tensor, classes: Sequence[str]) -> None:
        """Raise UserError if an image has no label, or if z has fewer numbers than there are classes."""
        super().check_labels(labels, classes)
        if (count := int(labels.max()) + 1) > (outputs := self.network.z_width):
            raise UserError(
                f"the images have {count} classes, but the network has only {outputs} outputs: set model.out_dim to "
                f"{count} or more, and model.head to linear, mlp or mlp3"
            )
        self.classes = max(count, len(classes))
