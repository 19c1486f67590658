"""What a pre-training method is: how it embeds views, its loss on a whole batch, and what it does after a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr.errors import UserError
from simclr.model import HeadNorm, ModelConfig, Network
from simclr.settings import Section


class Method(nn.Module):
    """A pre-training method. To add one to the suite, write a subclass in its own file and a line in METHODS.

    The training loop, gradient caching, the memory planner, the progress display and the reports ask the method for
    everything that differs between methods. Layers and buffers that a subclass registers (a predictor, a moving average
    of the network, a queue) are moved to the device, trained if they require a gradient, counted by the memory planner,
    and saved in checkpoints.
    """

    section_name: ClassVar[str]  # the TOML table of the method's settings
    section: ClassVar[type[Section]]  # the class of these settings
    loss_label: ClassVar[str]  # what figures call the loss
    figures: ClassVar[tuple[str, ...]] = ()  # what `loss` reports in addition to the loss, logged as train/NAME
    reads_labels: ClassVar[bool] = False  # whether it trains on the images' classes, which reports then state

    head_batch_norm: ClassVar[HeadNorm] = False  # batch norm in the head of the published method
    takes_local: ClassVar[bool] = True  # whether local crops are embedded and compared like views
    takes_teacher: ClassVar[bool] = False  # whether it learns from the fine-tuned network that its `teacher` names
    mixes: ClassVar[bool] = False  # whether an image's embeddings depend on others of its group even without batch norm

    network: Network
    ema: Network | None  # the average of the network over the steps, if `train.ema` asks for it

    def __init__(self, settings: Any, network: Network, *, fused: bool) -> None:
        """`settings` is an instance of `section`. `fused` sends all views through the network in one forward pass."""
        super().__init__()
        self.settings, self.network, self.fused = settings, network, fused
        self.ema = None

    def set_teacher(self, teacher: nn.Module, classes: Sequence[str]) -> None:
        """Set the network (images -> N x classes) that the method learns from, if it `takes_teacher`."""
        raise NotImplementedError

    def embed(self, views: Tensor) -> Tensor:
        """Embeddings (k x n x D) of all views (V x n x 3 x S x S) of a group of images that share batch norm.

        Local crops are embedded by a call of their own, and their embeddings follow those of the views.
        The k embeddings of an image are whatever `loss` needs: one for each view (the default), and for some methods
        targets, which carry no gradient. With gradient caching this runs twice for each group, so it must not change
        anything but buffers.
        """
        return self.project(self.network, views)

    def project(self, network: Network, views: Tensor) -> Tensor:
        """z of all views (V x n x D) by a network."""
        return self.on_views(lambda images: network(images, resize=False)[1], views)

    def on_views(self, function: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
        """Apply a function to all views (V x n x ...). Batch norm sees Vn images if views are fused, otherwise n."""
        if self.fused:
            return function(views.flatten(0, 1)).unflatten(0, (len(views), -1))  # type: ignore[no-any-return]
        return torch.stack([function(view) for view in views])

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (a scalar) of a whole batch's embeddings (k x N x D), and one value for each of `figures`.

        `labels` (int64, N) are the images' classes, -1 where unknown, for supervised methods. The embeddings
        may be in 16 bits: compute with `single(embeddings)`.
        """
        raise NotImplementedError

    def check_labels(self, labels: Tensor, classes: Sequence[str]) -> None:  # noqa: ARG002 (for subclasses)
        """Raise UserError if the method can't train on images with these labels: numbers of classes, -1 where unknown.

        `classes` are their names, empty for synthetic images.
        """
        if self.reads_labels and (unknown := int((labels < 0).sum())):
            raise UserError(
                f"the method trains on labels, but {unknown} of the {len(labels)} training images have none: label "
                f"them, or choose a method that learns without labels, such as --method simclr"
            )

    def after_step(self) -> None:
        """Called after each optimizer step, to update moving averages and queues. Its memory is not planned."""

    def own_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the method in addition to the network. Empty if nothing."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("network.")}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore what `own_state` returned."""
        self.load_state_dict(self.network.state_dict(prefix="network.") | state)

    @classmethod
    def remark(cls, model: ModelConfig) -> str:
        """A sentence about what this network lacks of the published method, with the setting to add, or empty."""
        own, other = cls.head_batch_norm, model.effective_settings().get("head_batch_norm", cls.head_batch_norm)
        if not own or own == other or (own == "hidden" and model.head == "linear"):
            return ""
        where = "only after the head's hidden layers" if own == "hidden" else "after each layer of the head"
        return f"the method is published with batch norm {where}: add --set model.head_batch_norm={str(own).lower()}"

    @classmethod
    def chance(cls, settings: Any, batch_size: int, views: int = 2) -> dict[str, float]:  # noqa: ARG003 (for subclasses)
        """The values of train/... metrics for a network that has learned nothing, where they are known.

        `views` is the number of views of an image.
        """
        return {}


def single(embeddings: Tensor) -> Tensor:
    """Embeddings in float32, or in float64 if they were before. Losses are not computed in 16 bits."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """The standard deviation of the directions of embeddings (... x N x D) times the square root of D (a scalar).

    It is near 1 if they point everywhere, and 0 if they have collapsed to one (SimSiam, arXiv 2011.10566, Fig. 2).
    """
    return F.normalize(z, dim=-1).std(-2, correction=0).mean() * math.sqrt(z.shape[-1])
