"""Views and training steps of other programs, on the images, batch and network of this suite.

Those of `pip install '.[peers]'` may be missing, which raises ImportError.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from simclr.data.workers import cores
from simclr.device import autocast

SIDE = 32
# The paper's views on CIFAR-10: colour distortion of half the strength, and no blur.
JITTER = (0.4, 0.4, 0.4, 0.1)
Run = Callable[[], None]


def torchvision_views(images: Tensor) -> Run:
    """Two views by torchvision's transforms, one image after the other, as a loader's worker makes them."""
    view = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def run() -> None:
        for _ in range(2):
            torch.stack([view(image) for image in images])

    return run


def kornia_views(images: Tensor) -> Run:
    """Two views by kornia's augmentations, which process a batch at once."""
    import kornia.augmentation as K

    view = nn.Sequential(
        K.RandomResizedCrop((SIDE, SIDE)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*JITTER, p=0.8),
        K.RandomGrayscale(p=0.2),
    )

    def run() -> None:
        for _ in range(2):
            view(images.float().div_(255))

    return run


def resnet18(stem: str) -> nn.Module:
    """torchvision's ResNet-18 without its classifier, with the CIFAR stem or its own."""
    network: nn.Module = torchvision.models.resnet18(weights=None)
    network.fc = nn.Identity()
    if stem == "cifar":
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network


class Views(torch.utils.data.Dataset[Any]):
    """Images, each with lightly's views of it."""

    def __init__(self, images: Tensor) -> None:
        from lightly.transforms import SimCLRTransform

        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = SimCLRTransform(input_size=SIDE, cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.images[i])


def lightly_recipe(images: Tensor, batch: int, stem: str, *, best: bool) -> Callable[[], float]:
    """lightly's SimCLR loop. A call returns its images per second over all images.

    As published it is float32, with a worker for each core. At its best it is bfloat16 and channels-last too.
    """
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    model = nn.Sequential(resnet18(stem), SimCLRProjectionHead(512, 512, 128))
    dtype, layout = (torch.bfloat16, torch.channels_last) if best else (torch.float32, torch.contiguous_format)
    model = model.to(memory_format=layout)
    optimizer, criterion = torch.optim.SGD(model.parameters(), 0.06, momentum=0.9), NTXentLoss()
    loader = torch.utils.data.DataLoader(
        Views(images), batch, shuffle=True, drop_last=True, num_workers=cores(), persistent_workers=True
    )
    for _ in loader:  # starts the workers
        pass

    def run() -> float:
        clock = time.perf_counter()
        for views in loader:
            with autocast(torch.device("cpu"), dtype):
                z = [model(view.to(memory_format=layout)) for view in views]
            loss = criterion(*(each.float() for each in z))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return len(images) // batch * batch / (time.perf_counter() - clock)

    return run
