"""AutoAugment: published policies of augmentations that were searched with labels (arXiv 1805.09501)."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from simclr.augmentation import Augmentation
from simclr.device import send

LEVELS = 10  # of a magnitude
Step = tuple[str, float, tuple[float, float]]  # an operation, its probability, and its magnitude for either sign


@cache
def steps(policy: str, side: int) -> tuple[v2.AutoAugment, list[tuple[Step, Step]]]:
    """torchvision's transform of a policy, and both steps of each of its pairs, for images of a side in pixels."""
    transform = v2.AutoAugment(v2.AutoAugmentPolicy(policy))

    def step(name: str, probability: float, level: int | None) -> Step:
        of_levels, signed = transform._AUGMENTATION_SPACE[name]
        magnitudes = of_levels(LEVELS, side, side)
        size = float(magnitudes[level]) if magnitudes is not None else 0.0
        return name, probability, (size, -size if signed else size)

    return transform, [(step(*first), step(*second)) for first, second in transform._policies]


class AutoAugment(Augmentation):
    """One of a policy's pairs of operations on 8-bit pixels, in place of colour jitter (paper, Table 1)."""

    draws = 5
    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"  # data set on which the policy was searched

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        transform, pairs = steps(self.policy, images.shape[-1])
        pair, negative = (u[:, 0] * len(pairs)).long(), u[:, 3:5] < 0.5
        pixels = (images * 255).round_().to(torch.uint8)
        for place in (0, 1):
            for number, both in enumerate(pairs):
                name, probability, magnitudes = both[place]
                for sign, magnitude in enumerate(magnitudes):
                    taken = (pair == number) & (u[:, 1 + place] < probability) & (negative[:, place] == bool(sign))
                    if len(chosen := taken.nonzero().squeeze(1)):
                        rows = send(chosen, pixels.device)
                        pixels[rows] = transform._apply_image_or_video_transform(
                            pixels[rows], name, magnitude, transform.interpolation, transform._fill
                        )
        return pixels.to(images.dtype) / 255
