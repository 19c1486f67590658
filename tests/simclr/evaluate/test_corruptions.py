"""Corruptions against Pillow, colorsys and scikit-image's formulas, one image at a time."""

from __future__ import annotations

import colorsys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from simclr.evaluate.corruptions import CORRUPTIONS, STRENGTHS, corrupted

U = torch.rand(3, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Three smooth colour images of 32 px, with a black corner."""
    noise = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(noise, size=32, mode="bilinear").mul(255).byte()
    images[:, :, :4, :4] = 0
    return images


def picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def by_hand(name: str, image: torch.Tensor, number: float) -> np.ndarray:
    """One image, H x W x 3 in [0, 255], by other libraries."""
    x = image.permute(1, 2, 0).numpy() / 255
    if name == "brightness":
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in x.reshape(-1, 3)]
        return 255 * np.array([colorsys.hsv_to_rgb(h, s, min(1, v + number)) for h, s, v in hsv]).reshape(x.shape)
    if name == "contrast":
        mean = x.mean((0, 1), keepdims=True)
        return 255 * np.clip((x - mean) * number + mean, 0, 1)
    if name == "blur":
        return 255 * np.stack([gaussian_filter(x[..., c], number, mode="mirror") for c in range(3)], -1)
    if name == "jpeg":
        file = BytesIO()
        picture(image).save(file, "JPEG", quality=int(number))
        return np.asarray(Image.open(file))
    small = int(32 * number)
    return np.asarray(
        picture(image).resize((small, small), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    )


# The strengths 1 and 5 in the authors' code for CIFAR-10-C.
PUBLISHED = {
    "blur": (0.4, 1.0),
    "brightness": (0.05, 0.3),
    "contrast": (0.75, 0.15),
    "pixelate": (0.95, 0.65),
    "jpeg": (80, 40),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("end", [0, 1])
def test_a_corruption_is_that_of_another_implementation(name: str, end: int, images: torch.Tensor) -> None:
    found = corrupted(images, name, (1, STRENGTHS)[end], U).permute(0, 2, 3, 1).numpy().astype(float)
    for image, mine in zip(images, found, strict=True):
        np.testing.assert_allclose(mine, by_hand(name, image, PUBLISHED[name][end]), atol=1.01)  # rounding


def test_large_images_are_corrupted_in_the_strengths_of_imagenet_c(images: torch.Tensor) -> None:
    large = torch.nn.functional.interpolate(images[:1], size=224)
    found = corrupted(large, "blur", 2, U[:1])[0].permute(1, 2, 0).numpy().astype(float)
    np.testing.assert_allclose(found, by_hand("blur", large[0], 2), atol=1.01)


def test_noise_has_its_deviation_and_belongs_to_its_image() -> None:
    grey = torch.full((3, 3, 64, 64), 128, dtype=torch.uint8)
    for strength, deviation in ((1, 0.04), (3, 0.08)):
        found = corrupted(grey, "noise", strength, U)
        assert (found.float() / 255).std().item() == pytest.approx(deviation, rel=0.03)
        assert torch.equal(corrupted(grey[:1], "noise", strength, U[1:2]), found[1:2])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [16, 96])
def test_the_strongest_is_farther_from_the_clean_image_than_the_weakest(
    name: str, side: int, images: torch.Tensor
) -> None:
    clean = torch.nn.functional.interpolate(images, size=side)
    far = [(corrupted(clean, name, s, U).float() - clean.float()).abs().mean() for s in (1, STRENGTHS)]
    assert len(CORRUPTIONS[name][1]) == len(CORRUPTIONS[name][2]) == STRENGTHS
    assert 0 < far[0] < far[1]
