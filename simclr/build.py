"""Build the network of a config, and check that it can process the images."""

from __future__ import annotations

from functools import lru_cache

import torch

from simclr.config import Config
from simclr.data.dataset import NORMALIZATIONS, Dataset, stored_side
from simclr.device import system_memory
from simclr.errors import UserError
from simclr.model import ModelConfig, Network, whiten
from simclr.randomness import permutation

WHITENED = 2000  # images whose patches a whitening stem is made from


def build_model(config: Config, data: Dataset, device: torch.device) -> Network:
    """The network of a config for the images of a data set, with random weights."""
    mean, std = NORMALIZATIONS[config.data.normalize](data)
    model = Network(config.model, config.view_size() or data.side, config.seed, mean, std)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def whiten_stem(model: Network, data: Dataset) -> None:
    """Make the filters of a network's whitening stem from images to train on."""
    rows = data.parts["pretrain"]
    sample = torch.from_numpy(data.images[rows[permutation(len(rows), 0, "whitening")[:WHITENED]]])
    blocks = (block.to(model.mean.device) for block in sample.split(64))
    whiten(model.encoder.conv1, (model.normalize(block / 255) for block in blocks))  # type: ignore[arg-type]


def check_size(config: Config) -> None:
    """Raise UserError if this machine can't hold the weights of a network and their gradients. Allocates nothing."""
    need = 2 * _weight_bytes(config.model, config.view_size() or stored_side(config.data))
    if need > system_memory():
        raise UserError(
            f"the weights of the network and their gradients take {need / 2**30:.0f} GiB, but this machine has "
            f"{system_memory() / 2**30:.0f} GiB: lower model.width, model.hidden_dim or model.out_dim, or change "
            f"--backbone"
        )


def check_images(config: Config) -> None:
    """Raise UserError if the network of a config can't process views of their size. Allocates no weights."""
    sides = [side for _, side in config.view_sides()]
    for side, remedy in zip(sides, ("set data.side", "raise augment.local.size or leave it out"), strict=False):
        try:
            _process(config.model, sides[0], side)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"backbone '{config.model.backbone}' can't process {side} px images ({reason}): {remedy}, or choose "
                f"another --backbone"
            ) from None


# Both are cached, because the cells and seeds of a study share few networks.


@lru_cache(maxsize=256)
def _weight_bytes(settings: ModelConfig, side: int) -> int:
    """Bytes of the weights of a network for images of this side."""
    with torch.device("meta"):
        network = Network(settings, side, 0, (0.5,) * 3, (0.5,) * 3)
    return sum(weights.nbytes for weights in network.parameters())


@lru_cache(maxsize=256)
def _process(settings: ModelConfig, built_for: int, side: int) -> None:
    """Pass two images of a side through a network for images of another side. Raises what the network raises."""
    with torch.no_grad(), torch.device("meta"):
        network = Network(settings, built_for, 0, (0.5,) * 3, (0.5,) * 3).eval()
        network(torch.zeros(2, 3, side, side), resize=False)
