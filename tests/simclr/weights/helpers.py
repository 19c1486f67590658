"""Make networks, images and dangerous files, and catch the one-line errors about them."""

import os

import numpy as np
import pytest
import torch
from torchvision.models import convnext

from simclr.errors import UserError
from simclr.model import Network

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def error_of(function, *arguments):
    """The message of the UserError that a call raises, which has one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def trained(config, side):
    """A network whose batch norms have seen images."""
    model = Network(config.model, side, 0, MEAN, STD)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        model(torch.rand(16, 3, side, side, generator=generator))
    return model.eval()


def noise(height, width, *channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


class Bomb:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def shrink_convnext(monkeypatch):
    """Give torchvision's ConvNeXts two blocks of few channels."""
    build, blocks = convnext._convnext, [convnext.CNBlockConfig(32, 64, 1), convnext.CNBlockConfig(64, None, 1)]
    monkeypatch.setattr(convnext, "_convnext", lambda _, *args, **options: build(blocks, *args, **options))
