"""What a pre-training method is: how it embeds views, its loss on a whole batch, and what it does after a step."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from simclr.model import Network
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

    network: Network

    def __init__(self, settings: Any, network: Network, *, fused: bool) -> None:
        """`settings` is an instance of `section`. `fused` sends both views through the network in one forward pass."""
        super().__init__()
        self.settings, self.network, self.fused = settings, network, fused

    def embed(self, views: Tensor) -> Tensor:
        """Embeddings (k x n x D) of both views (2 x n x 3 x S x S) of a group of images that share batch norm.

        The k embeddings of an image are whatever `loss` needs: one for each view, and for some methods targets, which
        carry no gradient. With gradient caching this runs twice for each group, so it must not change anything but
        buffers.
        """
        raise NotImplementedError

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (a scalar) of a whole batch's embeddings (k x N x D), and one value for each of `figures`.

        `labels` (int64, N) are the images' classes, UNLABELLED where unknown, for supervised methods.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each optimizer step, to update moving averages and queues. Its memory is not planned."""

    def own_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the method in addition to the network. Empty if nothing."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("network.")}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore what `own_state` returned."""
        self.load_state_dict(self.network.state_dict(prefix="network.") | state)

    @classmethod
    def chance(cls, settings: Any, batch_size: int) -> dict[str, float]:  # noqa: ARG003 (subclasses need them)
        """The values of train/... metrics for a network that has learned nothing, where they are known."""
        return {}
