"""Corruptions of images in five strengths, as of Hendrycks & Dietterich 2019 (arXiv 1903.12261)."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simclr.augment import gaussian_blur, normals

STRENGTHS = 5
SMALL, LARGE = 32, 224  # sides of the images for which CIFAR-10-C and ImageNet-C were made
LEAST_LARGE = 96  # side from which images are corrupted like those of ImageNet-C

# Makes images (N x 3 x S x S in [0, 1]) worse, by a number that says how much. N x 2 uniform numbers decide the noise.
Corruption = Callable[[Tensor, float, Tensor], Tensor]


def noise(images: Tensor, deviation: float, u: Tensor) -> Tensor:
    """Gaussian noise."""
    drawn = normals(u.to(images.device), images[0].numel())
    return images + deviation * drawn.view_as(images)


def blur(images: Tensor, sigma: float, _: Tensor) -> Tensor:
    """Gaussian blur with a sigma that is given for images of LARGE, or of up to SMALL, and grows with the side."""
    side = images.shape[-1]
    sigma *= side / LARGE if side >= LEAST_LARGE else max(1, side / SMALL)
    reach = min(max(1, int(4 * sigma + 0.5)), side - 1)
    return gaussian_blur(images, images.new_full((len(images),), sigma), 2 * reach + 1)


def brightness(images: Tensor, added: float, _: Tensor) -> Tensor:
    """Add to the value of each pixel (in HSV), which is its largest channel."""
    value = images.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value.clamp(min=1e-6)), brighter)


def contrast(images: Tensor, factor: float, _: Tensor) -> Tensor:
    """Pull each channel towards its mean over the image."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def pixelate(images: Tensor, factor: float, _: Tensor) -> Tensor:
    """Shrink by a factor and enlarge again, each pixel being the mean of what it covers."""
    side = images.shape[-1]
    small = max(1, int(side * factor))

    def change(image: Image.Image) -> Image.Image:
        return image.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)

    return _with_pillow(images, change)


def jpeg(images: Tensor, quality: float, _: Tensor) -> Tensor:
    """Compress as JPEG."""

    def change(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _with_pillow(images, change)


def _with_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = images.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])
    return torch.from_numpy(changed).to(images.device).permute(0, 3, 1, 2).float().div_(255)


# With the numbers of the five strengths for images of SMALL and of LARGE.
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...], tuple[float, ...]]] = {
    "noise": (noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": (blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}


def corrupted(images: Tensor, name: str, strength: int, u: Tensor) -> Tensor:
    """Corrupt images (uint8 N x 3 x S x S) in one of STRENGTHS (1: weakest). `u` holds N x 2 uniform numbers."""
    corruption, small, large = CORRUPTIONS[name]
    numbers = large if images.shape[-1] >= LEAST_LARGE else small
    changed = corruption(images.float().div_(255), numbers[strength - 1], u)
    return changed.clamp(0, 1).mul_(255).round_().byte()
