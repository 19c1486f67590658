"""Views: batched augmentations with parameters of their own for each image, on whatever device the images are on.

An augmentation is a parameter model and a function `(images, u, params) -> images`, where `images` is float32
N x 3 x H x W in [0, 1] and `u`, on the CPU, holds the uniform random numbers that become its parameters, a row each.
The function is deterministic (all randomness is in `u`, drawn by key in `draw`) and may write over the images it is
given. To add one, write the two
and add a line to AUGMENTATIONS; the config, `--drop`, the tables and the tests follow.

Distributions are torchvision's (2.x `transforms`), which the tests hold; strengths are the paper's (Appendix A).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from simclr.device import send


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the first value must not exceed the second, got {list(pair)}")
    return pair


Probability = Annotated[float, Field(ge=0, le=1)]


Fraction = Annotated[float, Field(gt=0, le=1)]


Positive = Annotated[float, Field(gt=0)]


Fractions = Annotated[tuple[Fraction, Fraction], AfterValidator(_ordered)]


Positives = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


class Params(BaseModel):
    """Parameters of one augmentation; `p` is the probability that an image gets it (0: the operation is absent)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    p: Probability = 0.0

    def effective(self) -> dict[str, Any]:
        """What reaches the pixels: equal for two settings that do the same."""
        return self.model_dump(mode="json")

    def applied(self) -> Params | None:
        """What a view does for these parameters; None: nothing."""
        return self if self.p > 0 else None


class Crop(Params):
    """Random resized crop: area as a fraction of the image, then an aspect ratio (log-uniform), resized to `size`; with
    p = 0 and a size the whole image is."""

    p: Probability = 1.0
    scale: Fractions = (0.08, 1.0)
    ratio: Positives = (3 / 4, 4 / 3)
    size: int | None = Field(None, ge=4)  # side of the view in pixels (default: the stored side)

    def model_post_init(self, _: Any) -> None:
        if self.size and 0 < self.p < 1:
            raise ValueError(f"a view size needs every image to be cropped, or none: set p = 1 or 0 (now {self.p:g})")

    def applied(self) -> Params | None:
        if self.size and self.p == 0:
            return Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0), size=self.size)
        return super().applied()


Range = tuple[float, float]


ATTEMPTS = 10  # of torchvision's RandomResizedCrop and RandomErasing, before they give up


BOX_DRAWS = 2 * ATTEMPTS + 2


def boxes(u: Tensor, scale: Range, ratio: Range, height: int, width: int, margin: int = 0) -> Tensor:
    """N boxes (top, left, height, width) in whole pixels, as torchvision samples them; `u` is N x BOX_DRAWS.

    `scale` is of the area, `ratio` is width / height; a box is at least `margin` pixels smaller than the image in both
    directions. Where none of the attempts is, the box is all zeros.
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
    """`boxes`, but where none of the attempts fits the largest central one with an allowed aspect ratio."""
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = round(min(width, height * aspect)), round(min(height, width / aspect))
    box = boxes(u, scale, ratio, height, width)
    return torch.where(box[:, 2:3] == 0, box.new_tensor([(height - h) // 2, (width - w) // 2, h, w]), box)


def resize_weights(start: Tensor, length: Tensor, size_in: int, size_out: int) -> Tensor:
    """N x size_out x size_in weights that resample [start, start + length) to size_out pixels, antialiased bilinear."""
    pixel = torch.arange(size_in, device=start.device) + 0.5
    scale = (length / size_out).view(-1, 1, 1)
    centre = (torch.arange(size_out, device=start.device) + 0.5).view(1, -1, 1) * scale
    offset = (pixel - start.unsqueeze(1)).unsqueeze(1)  # of each source pixel's centre, within the box
    weights = (1 - (offset - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((offset > 0) & (offset < length.view(-1, 1, 1)))
    return weights / weights.sum(2, keepdim=True)


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply to each image a linear map of its rows and one of its columns (N x out x in each): two batched products."""
    n, c, h, w = images.shape
    images = torch.bmm(images.reshape(n, c * h, w), columns.transpose(1, 2)).view(n, c, h, -1)
    return torch.matmul(rows.unsqueeze(1), images)


def resized_crop(images: Tensor, box: Tensor, size: int) -> Tensor:
    """Each image's own box (N x 4: top, left, height, width), resized to size x size."""
    h, w = images.shape[-2:]
    rows = resize_weights(box[:, 0], box[:, 2], h, size)
    columns = resize_weights(box[:, 1], box[:, 3], w, size)
    return separable(images, rows, columns)


def crop(images: Tensor, u: Tensor, params: Crop) -> Tensor:
    h, w = images.shape[-2:]
    box = crop_boxes(u, params.scale, params.ratio, h, w)
    return resized_crop(images, send(box, images.device), params.size or h)


class Flip(Params):
    """Horizontal flip."""

    p: Probability = 0.5


def flip(images: Tensor, u: Tensor, params: Flip) -> Tensor:
    return images.flip(-1)


class Rotation(Params):
    """Rotation about the centre by up to `degrees` either way; black outside."""

    degrees: float = Field(10.0, ge=0, le=180)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image counter-clockwise by its own angle, bilinear."""
    theta = degrees.deg2rad()
    zero = torch.zeros_like(theta)
    matrix = torch.stack([theta.cos(), -theta.sin(), zero, theta.sin(), theta.cos(), zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def rotation(images: Tensor, u: Tensor, params: Rotation) -> Tensor:
    return rotate(images, send(params.degrees * (2 * u[:, 0] - 1), images.device))


class ColorJitter(Params):
    """Brightness, contrast, saturation and hue in a random order; each is multiplied by `strength` (paper: s)."""

    p: Probability = 0.8
    strength: float = Field(1.0, ge=0)
    brightness: float = Field(0.8, ge=0)
    contrast: float = Field(0.8, ge=0)
    saturation: float = Field(0.8, ge=0)
    hue: float = Field(0.2, ge=0)

    def ranges(self) -> tuple[float, float, float, float]:
        """(brightness, contrast, saturation, hue), each times the strength."""
        b, c, s, h = (self.strength * x for x in (self.brightness, self.contrast, self.saturation, self.hue))
        return b, c, s, h

    def model_post_init(self, _: Any) -> None:
        if self.ranges()[3] > 0.5:
            raise ValueError(f"hue * strength must not exceed 0.5 (half the colour circle), got {self.ranges()[3]:g}")

    def effective(self) -> dict[str, Any]:
        return {"p": self.p, "ranges": self.ranges()}


def gray(images: Tensor) -> Tensor:
    """Luma of each pixel (ITU-R 601-2, with torchvision's rounding of its weights), N x 1 x H x W."""
    r, g, b = images.split(1, dim=1)
    luma: Tensor = 0.2989 * r
    return luma.add_(g, alpha=0.587).add_(b, alpha=0.114)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn each image's hue by its own `shift`, in turns of the colour circle (-0.5 to 0.5)."""
    r, g, b = images.unbind(1)
    top, bottom = images.amax(1), images.amin(1)
    chroma = top - bottom
    # Hue in sixths of the circle, where channels tie for the top by torchvision's preference: red, green, blue.
    # A channel that is the top gives a finite number, the others are not used: no branch, few passes.
    scale = chroma.clamp(min=1e-12).reciprocal_()
    hue = torch.where(top == r, g - b, torch.where(top == g, (b - r).add_(2 * chroma), (r - g).add_(4 * chroma)))
    hue.mul_(scale).add_(6 * shift.view(-1, 1, 1))
    hue.sub_(hue.div(6).floor_().mul_(6))
    # Each channel is a trapezoid over the circle: red is low around 3, green and blue high around 2 and 4.
    for channel, (centre, sign) in enumerate(((3, -1), (2, 1), (4, 1))):
        wave = (hue - centre).abs_().mul_(-sign).add_(1.5 * sign + 0.5).clamp_(0, 1)
        torch.addcmul(bottom, wave, chroma, out=images[:, channel])
    return images


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Colour jitter with each image's own factors (N x 4: brightness, contrast, saturation, hue shift) and order.

    Both are on the CPU, so that choosing rows waits for no accelerator. `order` (N x 4) lists for each image which of
    the four comes first, second, ... Brightness, contrast and saturation each blend the image with a reference (black,
    its mean grey, its greys) and clamp, so one formula serves whichever an image has in that place; a factor of 1
    leaves alone those that have hue there.
    """
    for place in range(4):
        which = order[:, place : place + 1]
        factor = factors.gather(1, which).masked_fill_(which == 3, 1.0)
        # An image is multiplied by its factor; the rest is of its mean grey (contrast) or its greys (saturation).
        columns = torch.cat([factor, (1 - factor) * (which == 1), (1 - factor) * (which == 2)], 1)
        factor, of_mean, of_luma = send(columns, images.device).view(-1, 3, 1, 1, 1).unbind(1)
        luma = gray(images)
        mean = luma.mean((1, 2, 3), keepdim=True)
        images.mul_(factor).add_(luma.mul_(of_luma).add_(mean.mul_(of_mean))).clamp_(0, 1)
        chosen = (which == 3).squeeze(1).nonzero().squeeze(1)
        hue = send(chosen, images.device)
        images[hue] = shift_hue(images[hue], send(factors[chosen, 3], images.device))
    return images


def color_jitter(images: Tensor, u: Tensor, params: ColorJitter) -> Tensor:
    factors = torch.empty(len(u), 4)
    for column, reach in enumerate(params.ranges()[:3]):
        low, high = max(0.0, 1 - reach), 1 + reach
        factors[:, column] = low + (high - low) * u[:, column]
    factors[:, 3] = params.ranges()[3] * (2 * u[:, 3] - 1)
    return jitter(images, factors, u[:, 4:8].argsort(1))


class Grayscale(Params):
    """Luma in all three channels."""

    p: Probability = 0.2


def grayscale(images: Tensor, u: Tensor, params: Grayscale) -> Tensor:
    return gray(images).repeat(1, 3, 1, 1)


class Solarize(Params):
    """Invert pixels at or above a threshold."""

    threshold: Probability = 0.5


def solarize(images: Tensor, u: Tensor, params: Solarize) -> Tensor:
    return torch.where(images >= params.threshold, 1 - images, images)


class Blur(Params):
    """Gaussian blur; the kernel is a fraction of the side (rounded to an odd number, 3 at least), sigma in pixels."""

    kernel: Fraction = 0.1
    sigma: Positives = (0.1, 2.0)


def blur_kernel(fraction: float, side: int) -> int:
    """The odd kernel size nearest to `fraction` of the side, at least 3 and at most what reflection allows."""
    size = 2 * round((fraction * side - 1) / 2) + 1
    return max(3, min(size, 2 * side - 1))


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur each image with its own sigma, reflecting at the edges; `kernel` is odd."""
    side, reach = images.shape[-1], kernel // 2
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    taps = torch.exp(-0.5 * (offsets / sigma.unsqueeze(1)) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    source = (torch.arange(side, device=images.device) + offsets.unsqueeze(1)).abs()
    source = side - 1 - (side - 1 - source).abs()  # reflect, without repeating the edge
    weights = (taps @ F.one_hot(source, side).float().flatten(1)).view(-1, side, side)
    return separable(images, weights, weights)


def blur(images: Tensor, u: Tensor, params: Blur) -> Tensor:
    low, high = params.sigma
    sigma = send(low + (high - low) * u[:, 0], images.device)
    return gaussian_blur(images, sigma, blur_kernel(params.kernel, images.shape[-1]))


class Sobel(Params):
    """Magnitude of the Sobel gradient of each channel, divided by 4 so that a full black-white edge gives 1."""


def sobel(images: Tensor, u: Tensor, params: Sobel) -> Tensor:
    smooth = torch.tensor([1.0, 2.0, 1.0], device=images.device) / 4
    slope = torch.tensor([-1.0, 0.0, 1.0], device=images.device)
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)]).unsqueeze(1)
    padded = F.pad(images.flatten(0, 1).unsqueeze(1), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernels).square().sum(1).sqrt().clamp(max=1).view_as(images)


class Noise(Params):
    """Gaussian noise of standard deviation `sigma` on each channel of each pixel, then clamped to [0, 1]."""

    sigma: Positive = 0.1


def normals(seeds: Tensor, count: int) -> Tensor:
    """N x count standard normal numbers, each row a function of its seed alone (N x 2 uniforms).

    A counter hashed by the 64-bit finaliser of SplitMix64 (Steele et al. 2014), two halves of which go through
    Box-Muller: any slice of a batch gets the noise that it would get in the whole batch, on any device.
    """
    key = (seeds * 2**24).long()
    x = ((key[:, :1] << 24) + key[:, 1:2] << 15) * 0x9E3779B97F4A7C1 + torch.arange(count, device=seeds.device)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    radius = ((x & 0xFFFFFF) + 1).float() / 2**24
    angle = ((x >> 32) & 0xFFFFFF).float() / 2**24
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def noise(images: Tensor, u: Tensor, params: Noise) -> Tensor:
    return (images + params.sigma * normals(send(u, images.device), images[0].numel()).view_as(images)).clamp(0, 1)


class Cutout(Params):
    """Set a random box to black: area as a fraction of the image, log-uniform aspect (RandomErasing's sampler)."""

    scale: Fractions = (0.02, 0.33)
    ratio: Positives = (0.3, 3.3)


def cutout(images: Tensor, u: Tensor, params: Cutout) -> Tensor:
    h, w = images.shape[-2:]
    low, high = params.ratio  # of height / width, unlike a crop's
    box = boxes(u, params.scale, (1 / high, 1 / low), h, w, margin=1)
    top, left, height, width = send(box, images.device).unbind(1)
    row = torch.arange(h, device=images.device) - top.unsqueeze(1)
    column = torch.arange(w, device=images.device) - left.unsqueeze(1)
    rows = (row >= 0) & (row < height.unsqueeze(1))
    columns = (column >= 0) & (column < width.unsqueeze(1))
    return images.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)


class Augmentation(NamedTuple):
    """One row of AUGMENTATIONS: its parameters, how many uniforms an image needs, and the function."""

    params: type[Params]
    draws: int
    apply: Callable[[Tensor, Tensor, Any], Tensor]


# In the order in which a view applies them (paper, Appendix A: crop, flip, colour, blur).
AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": Augmentation(Crop, BOX_DRAWS, crop),
    "flip": Augmentation(Flip, 0, flip),
    "rotation": Augmentation(Rotation, 1, rotation),
    "color_jitter": Augmentation(ColorJitter, 8, color_jitter),
    "grayscale": Augmentation(Grayscale, 0, grayscale),
    "blur": Augmentation(Blur, 1, blur),
    "solarize": Augmentation(Solarize, 0, solarize),
    "sobel": Augmentation(Sobel, 0, sobel),
    "noise": Augmentation(Noise, 2, noise),
    "cutout": Augmentation(Cutout, BOX_DRAWS, cutout),
}
