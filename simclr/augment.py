"""Batched augmentations. Every image has random parameters of its own, and images stay on their device.

To add an augmentation, write a subclass of `Augmentation` and add it to AUGMENTATIONS. The config, `--drop`, the tables
and the tests follow from that. Distributions are those of torchvision 2.x (`torchvision.transforms`), which the tests
compare with. Default strengths are the paper's (Appendix A).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.augmentation import (
    AspectRange,
    Augmentation,
    Factor,
    Fraction,
    FractionRange,
    Probability,
    Range,
    SigmaRange,
)
from simclr.auto_augment import AutoAugment
from simclr.device import send

# --- boxes, crops and resizing ----------------------------------------------------------------------------------------

ATTEMPTS = 10  # torchvision's RandomResizedCrop and RandomErasing give up after as many
BOX_DRAWS = 2 * ATTEMPTS + 2


def boxes(u: Tensor, scale: Range, ratio: Range, height: int, width: int, margin: int = 0) -> Tensor:
    """Sample N boxes (top, left, height, width) in whole pixels, as torchvision does; `u` is N x BOX_DRAWS.

    `scale` is the range of the area as a fraction of the image, and `ratio` the range of width / height. A box is at
    least `margin` pixels smaller than the image in both directions. It is all zeros if no attempt fits.
    """
    attempts = u[:, : 2 * ATTEMPTS].reshape(-1, ATTEMPTS, 2)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * attempts[..., 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * attempts[..., 1])
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w >= 1) & (w <= width - margin) & (h >= 1) & (h <= height - margin)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    h, w = h.gather(1, first).squeeze(1), w.gather(1, first).squeeze(1)
    top, left = (u[:, -2] * (height - h + 1)).floor(), (u[:, -1] * (width - w + 1)).floor()
    found: Tensor = torch.stack([top, left, h, w], 1) * fits.any(1, keepdim=True)
    return found


def crop_boxes(u: Tensor, scale: Range, ratio: Range, height: int, width: int) -> Tensor:
    """Sample `boxes`. If no attempt fits, take the largest central box with an allowed aspect ratio."""
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = round(min(width, height * aspect)), round(min(height, width / aspect))
    box = boxes(u, scale, ratio, height, width)
    return torch.where(box[:, 2:3] == 0, box.new_tensor([(height - h) // 2, (width - w) // 2, h, w]), box)


def resize_weights(start: Tensor, length: Tensor, size_in: int, size_out: int) -> Tensor:
    """N x size_out x size_in weights that resample [start, start + length) to size_out pixels, antialiased bilinear."""
    scale = (length / size_out).unsqueeze(1)
    reach = scale.clamp(min=1)  # of a pixel's weights to either side, in which both lists of places are measured
    offset = torch.arange(size_in, device=start.device) + 0.5 - start.unsqueeze(1)
    outside = (offset <= 0) | (offset >= length.unsqueeze(1))
    source = (offset / reach).masked_fill_(outside, math.inf)  # so far away that its weight is 0
    centre = (torch.arange(size_out, device=start.device) + 0.5) * (scale / reach)
    weights = (centre.unsqueeze(2) - source.unsqueeze(1)).abs_().neg_().add_(1).clamp_(min=0)
    return weights.div_(weights.sum(2, keepdim=True))


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one linear map to the rows of each image and one to its columns (each N x out x in)."""
    n, c, h, w = images.shape
    images = torch.bmm(images.reshape(n, c * h, w), columns.transpose(1, 2)).view(n, c, h, -1)
    return torch.matmul(rows.unsqueeze(1), images)


def resized_crop(images: Tensor, box: Tensor, size: int) -> Tensor:
    """Cut each image to its own box (N x 4: top, left, height, width) and resize it to size x size."""
    h, w = images.shape[-2:]
    rows = resize_weights(box[:, 0], box[:, 2], h, size)
    columns = resize_weights(box[:, 1], box[:, 3], w, size)
    return separable(images, rows, columns)


class SharedCrop(Augmentation):
    """Random resized crop that is the same in both views, before all else (paper, Section 3.1)."""

    draws = BOX_DRAWS
    shared = True
    scale: FractionRange = (0.08, 1.0)  # area as a fraction of the image
    ratio: AspectRange = (3 / 4, 4 / 3)  # width / height

    def __call__(self, images: Tensor, u: Tensor, size: int | None = None) -> Tensor:
        box = crop_boxes(u, self.scale, self.ratio, *images.shape[-2:])
        return resized_crop(images, send(box, images.device), size or images.shape[-1])


class Crop(SharedCrop):
    """Random resized crop with a log-uniform aspect ratio. With p = 0 and a `size`, the whole image is resized."""

    shared = False
    p: Probability = 1.0
    size: int | None = Field(None, ge=4, le=1024)  # side of the view in pixels (default: the stored side)

    def model_post_init(self, _: Any) -> None:
        if self.size and 0 < self.p < 1:
            raise ValueError(f"with a view size, all images or none must be cropped: set p = 1 or 0 (now {self.p:g})")

    def __call__(self, images: Tensor, u: Tensor, size: int | None = None) -> Tensor:
        return super().__call__(images, u, size or self.size)

    def as_applied(self) -> Augmentation | None:
        if self.size and self.p == 0:
            return Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0), size=self.size)
        return super().as_applied()


class Cutout(Augmentation):
    """Set a random box to black, as torchvision's RandomErasing does, with a log-uniform aspect ratio."""

    draws = BOX_DRAWS
    scale: FractionRange = (0.02, 0.33)  # area as a fraction of the image
    ratio: AspectRange = (0.3, 3.3)  # height / width, unlike a crop's

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        h, w = images.shape[-2:]
        low, high = self.ratio
        box = boxes(u, self.scale, (1 / high, 1 / low), h, w, margin=1)
        top, left, height, width = send(box, images.device).unbind(1)
        row = torch.arange(h, device=images.device) - top.unsqueeze(1)
        column = torch.arange(w, device=images.device) - left.unsqueeze(1)
        rows = (row >= 0) & (row < height.unsqueeze(1))
        columns = (column >= 0) & (column < width.unsqueeze(1))
        return images.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)


# --- flips and rotations ----------------------------------------------------------------------------------------------


class Flip(Augmentation):
    """Horizontal flip."""

    p: Probability = 0.5

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        return images.flip(-1)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image counter-clockwise by its own angle, bilinear."""
    theta = degrees.deg2rad()
    zero = torch.zeros_like(theta)
    matrix = torch.stack([theta.cos(), -theta.sin(), zero, theta.sin(), theta.cos(), zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class Rotation(Augmentation):
    """Rotation about the centre by up to `degrees` in either direction. Pixels from outside the image are black."""

    draws = 1
    degrees: float = Field(10.0, ge=0, le=180)  # largest angle, in degrees

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        return rotate(images, send(self.degrees * (2 * u[:, 0] - 1), images.device))


class QuarterTurn(Augmentation):
    """Rotation by 90, 180 or 270 degrees (paper, Fig. 4)."""

    draws = 1

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        turned = torch.stack([images.rot90(count, (-2, -1)) for count in (1, 2, 3)])
        return turned[send((3 * u[:, 0]).long(), images.device), torch.arange(len(u), device=images.device)]


# --- colours ----------------------------------------------------------------------------------------------------------


def gray(images: Tensor) -> Tensor:
    """Luma of each pixel (ITU-R 601-2, with weights rounded as in torchvision), N x 1 x H x W."""
    r, g, b = images.split(1, dim=1)
    luma: Tensor = 0.2989 * r
    return luma.add_(g, alpha=0.587).add_(b, alpha=0.114)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each image by its own `shift`, in turns of the colour circle (-0.5 to 0.5)."""
    red, green, blue = images.unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    bottom = torch.minimum(torch.minimum(red, green), blue)
    chroma = top - bottom
    # The hue in sixths of the circle, from cyan: cyan is 0, red is 3 or -3, green -1 and blue 1. The distance from cyan
    # is one linear formula everywhere, and the larger of green and blue tells the side: no cases, and few passes.
    hue = (red - green).add_(bottom).sub_(blue).div_(chroma.clamp(min=1e-12)).add_(2)
    hue.copysign_(blue - green).add_(6 * shift.view(-1, 1, 1))
    hue.sub_(hue.div(6).round_(), alpha=6)
    # Each channel is a trapezoid over the circle: red is low around cyan, green and blue are high around themselves.
    for channel, centre, base, sign in ((red, 0, bottom, 1), (green, -1, top, -1), (blue, 1, top, -1)):
        wave = (hue - centre).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(base, wave, chroma, value=sign, out=channel)
    return images


def blend(images: Tensor, weights: Tensor) -> None:
    """Add each image, its mean grey and its greys with its own weights (N x 3), and clamp the sum to [0, 1]."""
    of_image, of_mean, of_luma = weights.view(-1, 3, 1, 1, 1).unbind(1)
    luma = gray(images)
    mean = luma.mean((1, 2, 3), keepdim=True)
    torch.addcmul(luma.mul_(of_luma).add_(mean.mul_(of_mean)), images, of_image, out=images).clamp_(0, 1)


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Colour jitter with each image's own factors (N x 4: brightness, contrast, saturation, hue shift) and order.

    `order` (N x 4) lists which of the four comes first, second, ... for each image. Both tensors are on the CPU, so
    that selecting rows does not wait for an accelerator. Brightness, contrast and saturation each blend the image with
    a reference (black, its mean grey, its greys), so one formula serves all three. Images are sorted by the place of
    hue. So those that still need a blend before it, or after it, are neighbours, and hue is shifted once for all.
    """
    place, blend_places = (order == 3).to(torch.uint8).argmax(1), torch.arange(3)  # place of hue
    blends = order.gather(1, blend_places + (blend_places >= place.unsqueeze(1)))  # without hue
    factor = factors.gather(1, blends)
    weights = torch.stack([factor, (1 - factor) * (blends == 1), (1 - factor) * (blends == 2)], 2)
    rank = place.argsort()
    weights, shift = send(weights[rank], images.device), send(factors[rank, 3], images.device)
    # `len` because fake tensors, which tests use, have a length that is unknown, but no values that are.
    rank, ends = send(rank, images.device), [len((place <= i).nonzero()) for i in range(3)]
    by_place = images.index_select(0, rank)
    for i, end in enumerate(ends):
        blend(by_place[end:], weights[end:, i])
    shift_hue(by_place, shift)
    for i, end in enumerate(ends):
        blend(by_place[:end], weights[:end, i])
    return images.index_copy_(0, rank, by_place)


class ColorJitter(Augmentation):
    """Brightness, contrast, saturation and hue in random order, each multiplied by `strength` (the paper's s)."""

    draws = 8
    p: Probability = 0.8
    strength: Factor = 1.0  # factor on the other four settings
    brightness: Factor = 0.8  # largest relative change
    contrast: Factor = 0.8  # largest relative change
    saturation: Factor = 0.8  # largest relative change
    hue: Factor = 0.2  # largest shift, in turns of the colour circle; 0.5 reaches every hue

    def ranges(self) -> tuple[float, float, float, float]:
        """(brightness, contrast, saturation, hue), each multiplied by the strength."""
        b, c, s, h = (self.strength * x for x in (self.brightness, self.contrast, self.saturation, self.hue))
        return b, c, s, h

    def model_post_init(self, _: Any) -> None:
        if self.ranges()[3] > 0.5:
            raise ValueError(f"hue * strength must not exceed 0.5 (half the colour circle), got {self.ranges()[3]:g}")

    def effective_settings(self) -> dict[str, Any]:
        return {"p": self.p, "ranges": self.ranges()}

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        factors = torch.empty(len(u), 4)
        for column, reach in enumerate(self.ranges()[:3]):
            low, high = max(0.0, 1 - reach), 1 + reach
            factors[:, column] = low + (high - low) * u[:, column]
        factors[:, 3] = self.ranges()[3] * (2 * u[:, 3] - 1)
        return jitter(images, factors, u[:, 4:8].argsort(1))


class Grayscale(Augmentation):
    """Luma in all three channels."""

    p: Probability = 0.2

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        return gray(images).repeat(1, 3, 1, 1)


class Solarize(Augmentation):
    """Invert pixels at or above a threshold."""

    threshold: Probability = 0.5  # threshold, for pixels in [0, 1]

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        return torch.where(images >= self.threshold, 1 - images, images)


# --- blur, edges and noise --------------------------------------------------------------------------------------------


def blur_kernel(fraction: float, side: int) -> int:
    """The odd kernel size nearest to `fraction` of the side. It is at least 3, and at most what reflection allows."""
    size = 2 * round((fraction * side - 1) / 2) + 1
    return max(3, min(size, 2 * side - 1))


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur each image with its own sigma, reflecting at the edges. `kernel` is odd."""
    side, reach = images.shape[-1], kernel // 2
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    taps = torch.exp(-0.5 * (offsets / sigma.unsqueeze(1)) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    source = (torch.arange(side, device=images.device) + offsets.unsqueeze(1)).abs()
    source = side - 1 - (side - 1 - source).abs()  # reflect, without repeating the edge
    weights = (taps @ F.one_hot(source, side).float().flatten(1)).view(-1, side, side)
    return separable(images, weights, weights)


class Blur(Augmentation):
    """Gaussian blur with a random sigma."""

    draws = 1
    kernel: Fraction = 0.1  # size of the kernel as a fraction of the side, rounded to an odd number of pixels
    sigma: SigmaRange = (0.1, 2.0)  # range of the standard deviation, in pixels

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        low, high = self.sigma
        sigma = send(low + (high - low) * u[:, 0], images.device)
        return gaussian_blur(images, sigma, blur_kernel(self.kernel, images.shape[-1]))


class Sobel(Augmentation):
    """Magnitude of the Sobel gradient of each channel, divided by 4 so that a full black-white edge gives 1."""

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        slope = torch.arange(-1.0, 2.0, device=images.device)  # made there, as copying numbers would wait for a GPU
        smooth = (2 - slope.abs()) / 4
        kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)]).unsqueeze(1)
        padded = F.pad(images.flatten(0, 1).unsqueeze(1), (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, kernels).square().sum(1).sqrt().clamp(max=1).view_as(images)


def normals(seeds: Tensor, count: int) -> Tensor:
    """N x count standard normal numbers, where each row is a function of its seed alone (N x 2 uniforms).

    A counter is hashed by the 64-bit finaliser of SplitMix64 (Steele et al. 2014), and two parts of the hash go through
    Box-Muller. An image therefore gets the same noise in any part of a batch and on any device.
    """
    key = (seeds * 2**24).long()
    x = ((key[:, :1] << 24) + key[:, 1:2] << 15) * 0x9E3779B97F4A7C1 + torch.arange(count, device=seeds.device)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    radius = ((x & 0xFFFFFF) + 1).float() / 2**24
    angle = ((x >> 32) & 0xFFFFFF).float() / 2**24
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


class Noise(Augmentation):
    """Gaussian noise with standard deviation `sigma` on each channel of each pixel, then clamped to [0, 1]."""

    draws = 2
    sigma: float = Field(0.1, gt=0, le=100)  # standard deviation; pixels are in [0, 1]

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        noise = normals(send(u, images.device), images[0].numel()).view_as(images)
        return (images + self.sigma * noise).clamp(0, 1)


# In the order in which a view applies them (paper, Appendix A: crop, flip, colour, blur).
AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "shared_crop": SharedCrop,
    "crop": Crop,
    "flip": Flip,
    "rotation": Rotation,
    "quarter_turn": QuarterTurn,
    "auto_augment": AutoAugment,
    "color_jitter": ColorJitter,
    "grayscale": Grayscale,
    "blur": Blur,
    "solarize": Solarize,
    "sobel": Sobel,
    "noise": Noise,
    "cutout": Cutout,
}
