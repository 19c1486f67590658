"""Each augmentation is compared with torchvision or scipy, and its random parameters with torchvision's samplers."""

import itertools
import math

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F1
import torchvision.transforms.v2.functional as F2
from pydantic import ValidationError
from scipy import ndimage, stats

from simclr import augment
from simclr.augment import AUGMENTATIONS, BOX_DRAWS

P_VALUE = 1e-3  # seeds are fixed, so a test passes always or never

# For the same formula in float32, summed in another order.
CLOSE = {"atol": 2e-6, "rtol": 0}


def images_f32(n: int, side: int = 16) -> torch.Tensor:
    """Random images with bright and dark, coloured and nearly grey regions."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    grain = 0.1 * torch.rand(n, 3, side, side, generator=generator)
    return ((smooth + grain).clamp(0, 1) * 255).round() / 255


def uniforms(n: int, draws: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, draws, generator=torch.Generator().manual_seed(seed))


def each(function, images: torch.Tensor, *parameters) -> torch.Tensor:
    """Call `function` on one image at a time, each with its own parameters."""
    return torch.stack([function(image, *values) for image, *values in zip(images, *parameters, strict=True)])


def assert_same_distribution(ours, reference) -> None:
    """Two-sample Kolmogorov-Smirnov test, which is conservative for whole numbers."""
    assert stats.ks_2samp(np.asarray(ours, float), np.asarray(reference, float)).pvalue > P_VALUE


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple]:
    """Replace `augment.<name>` by a function that records its arguments and returns the first one."""
    calls: list[tuple] = []

    def record(*args):
        calls.append(args)
        return args[0]

    monkeypatch.setattr(augment, name, record)
    return calls


# --- same parameters as torchvision or scipy --------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "size"), [(32, 32), (64, 32), (16, 48)])
def test_resized_crop_equals_torchvision(stored, size):
    images = images_f32(12, stored)
    box = augment.crop_boxes(uniforms(12, BOX_DRAWS), (0.05, 1.0), (0.5, 2.0), stored, stored)
    box[:4] = torch.tensor(
        [[0, 0, stored, stored], [3, 5, 1, 1], [0, stored - 2, stored, 2], [stored - 3, 0, 3, stored]]
    )

    def reference(image, numbers):
        top, left, h, w = numbers.int().tolist()
        return F2.resized_crop(image, top, left, h, w, [size, size], antialias=True)

    torch.testing.assert_close(augment.resized_crop(images, box, size), each(reference, images, box), **CLOSE)


def test_crop_resizes_to_the_view_size():
    images, u, crop = images_f32(5, 32), uniforms(5, BOX_DRAWS), augment.Crop(size=24)
    box = augment.crop_boxes(u, crop.scale, crop.ratio, 32, 32)
    torch.testing.assert_close(crop(images, u), augment.resized_crop(images, box, 24))


def test_flip_equals_torchvision():
    images = images_f32(3)
    assert torch.equal(augment.Flip()(images, uniforms(3, 0)), F2.horizontal_flip(images))


@pytest.mark.parametrize("functional", [F1, F2])
def test_rotate_equals_torchvision(functional):
    degrees = torch.tensor([0.0, 10.0, -10.0, 37.5, -45.0, 90.0, 133.0, 180.0])
    images = images_f32(len(degrees), 17)

    def reference(image, angle):
        return functional.rotate(image, float(angle), F1.InterpolationMode.BILINEAR)

    # torchvision rounds the sine and cosine at another place, so positions differ by a few millionths of a pixel.
    torch.testing.assert_close(augment.rotate(images, degrees), each(reference, images, degrees), atol=5e-5, rtol=0)


def test_quarter_turns_are_those_of_numpy_and_equally_likely():
    images, u = images_f32(3000, 4), uniforms(3000, 1)
    out = augment.QuarterTurn()(images.clone(), u)
    turns = [
        [k for k in range(4) if np.array_equal(np.rot90(a, k, (1, 2)), b)] for a, b in zip(images, out, strict=True)
    ]
    counts = np.bincount([turn for (turn,) in turns], minlength=4)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > P_VALUE


def test_a_shared_crop_is_a_crop():
    images, u = images_f32(20, 32), uniforms(20, BOX_DRAWS)
    crop, shared = (kind(scale=(0.2, 0.9), ratio=(0.5, 2.0)) for kind in (augment.Crop, augment.SharedCrop))
    assert torch.equal(shared(images, u), crop(images, u))
    assert (augment.SharedCrop().p, augment.SharedCrop().scale) == (0, augment.Crop().scale)


def test_rotation_angles_are_distributed_as_in_torchvision(monkeypatch):
    calls = spy(monkeypatch, "rotate")
    augment.Rotation(degrees=30)(torch.zeros(2000, 3, 1, 1), uniforms(2000, 1))
    torch.manual_seed(0)
    assert_same_distribution(calls[0][1], [T.RandomRotation.get_params([-30.0, 30.0]) for _ in range(2000)])


ADJUST = (F2.adjust_brightness, F2.adjust_contrast, F2.adjust_saturation, F2.adjust_hue)
# torchvision goes through HSV, which rounds a few times more.
HUE_CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.mark.parametrize("place", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_each_colour_adjustment_equals_torchvision(place):
    images = images_f32(9)
    images[0] = images[0, :1]  # grey has no hue
    images[1, 0], images[1, 1] = 1.0, 0.0  # ties between channels
    images[2, 1], images[2, 2] = 0.0, 0.0
    images[3, 1] = images[3, 2]
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(9, 1)
    factors[:, place] = torch.linspace(-0.5, 0.5, 9) if place == 3 else torch.linspace(0, 2, 9)
    order = torch.arange(4).repeat(9, 1)
    expected = each(lambda image, factor: ADJUST[place](image, float(factor)), images, factors[:, place])
    torch.testing.assert_close(augment.jitter(images, factors, order), expected, **HUE_CLOSE)


def test_jitter_equals_torchvision_in_all_24_orders():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images, u = images_f32(24), uniforms(24, 4)
    factors = 0.2 + 1.6 * u
    factors[:, 3] = u[:, 3] - 0.5

    def reference(image, values, order):
        for which in order.tolist():
            image = ADJUST[which](image, float(values[which]))
        return image

    expected = each(reference, images, factors, orders)
    # Each of the four steps can amplify earlier rounding errors by its factor (up to 1.8).
    torch.testing.assert_close(augment.jitter(images, factors, orders), expected, atol=5e-5, rtol=0)


def test_grayscale_equals_torchvision():
    images = images_f32(3)
    expected = F2.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(augment.Grayscale()(images, uniforms(3, 0)), expected, **CLOSE)


@pytest.mark.parametrize(("side", "kernel"), [(16, 3), (32, 9), (9, 17)])
def test_gaussian_blur_equals_torchvision(side, kernel):
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    images = images_f32(len(sigma), side)
    expected = each(lambda image, s: F2.gaussian_blur(image, [kernel, kernel], [float(s)] * 2), images, sigma)
    torch.testing.assert_close(augment.gaussian_blur(images, sigma, kernel), expected, **CLOSE)


def test_blur_kernel_is_the_nearest_odd_size():
    for side, fraction in itertools.product((4, 8, 32, 64, 96, 224), (0.01, 0.1, 0.25, 0.9)):
        kernel = augment.blur_kernel(fraction, side)
        assert kernel % 2 == 1
        assert kernel >= 3
        if fraction * side >= 2:
            assert abs(kernel - fraction * side) <= 1
    assert augment.blur_kernel(0.1, 32) == 3
    assert augment.blur_kernel(0.1, 224) in (21, 23)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 128 / 255, 1.0])
def test_solarize_equals_torchvision_around_the_threshold(threshold):
    images = (torch.arange(3 * 256) % 256).view(1, 3, 16, 16).float() / 255
    expected = F2.solarize(images, threshold)
    solarized = augment.Solarize(threshold=threshold)(images, uniforms(1, 0))
    torch.testing.assert_close(solarized, expected, **CLOSE)


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_auto_augment_equals_torchvision_image_by_image(policy, monkeypatch):
    """torchvision's own transform, one image at a time, with our numbers in place of its own."""
    images, u = images_f32(150), uniforms(150, 5)
    ours = augment.AutoAugment(policy=policy)(images.clone(), u)
    reference = T.AutoAugment(T.AutoAugmentPolicy(policy))
    numbers = iter(u)

    def parameters(count):
        own = next(numbers)
        return int(own[0] * count), own[1:3], (own[3:5] >= 0.5).long()

    monkeypatch.setattr(T.AutoAugment, "get_params", staticmethod(parameters))
    expected = torch.stack([reference(image) for image in (images * 255).round().to(torch.uint8)])
    # Both forms round to 8 bits in their own way, which a later inversion of bright pixels can magnify.
    distance = (ours * 255 - expected).abs().flatten(1)
    assert distance.gt(2).float().mean() < 0.005
    assert distance.mean(1).max() < 6
    assert (ours != images).flatten(1).any(1).float().mean() > 0.5


def test_sobel_equals_scipy():
    images = images_f32(4)
    images[0] = (images[0] > 0.5).float()  # edges strong enough to clamp

    def reference(plane):
        slopes = [ndimage.sobel(plane.double().numpy(), axis=axis, mode="nearest") / 4 for axis in (0, 1)]
        return torch.from_numpy(np.minimum(np.hypot(*slopes), 1)).float()

    expected = torch.stack([reference(plane) for plane in images.flatten(0, 1)]).view_as(images)
    torch.testing.assert_close(augment.Sobel()(images, uniforms(4, 0)), expected, **CLOSE)


def test_sobel_of_a_black_white_edge_is_one():
    images = torch.zeros(1, 3, 6, 6)
    images[..., 3:] = 1
    edges = augment.Sobel()(images, uniforms(1, 0))
    assert torch.equal(edges[0, 0, 2], torch.tensor([0.0, 0, 1, 1, 0, 0]))


def test_cutout_equals_torchvision_erase(monkeypatch):
    box = torch.tensor([[0, 0, 3, 5], [2, 7, 6, 1], [13, 9, 3, 7], [0, 0, 16, 15]]).float()
    monkeypatch.setattr(augment, "boxes", lambda *args, **kwargs: box)
    images = images_f32(4)

    def reference(image, numbers):
        top, left, h, w = numbers.int().tolist()
        return F2.erase(image, top, left, h, w, torch.zeros(3, h, w))

    erased = augment.Cutout()(images.clone(), uniforms(4, BOX_DRAWS))
    assert torch.equal(erased, each(reference, images, box))


# --- noise ------------------------------------------------------------------------------------------------------------


def test_normals_are_standard_normal():
    x = augment.normals(uniforms(40, 2), 5000).flatten().double()
    n = len(x)
    # Four standard errors of each moment.
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert stats.kstest(x.numpy(), "norm").pvalue > P_VALUE


def test_normals_of_images_and_neighbouring_pixels_are_uncorrelated():
    seeds = uniforms(8, 2)
    seeds[4:] = seeds[:4]
    seeds[4:6, 0] += 2**-24  # the closest possible seeds
    seeds[6:, 1] += 2**-24
    count = 20000
    x = augment.normals(seeds, count)
    correlation = torch.corrcoef(torch.cat([x, x.roll(1, 1)])).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(count)  # five standard errors, for 120 pairs


def test_normals_of_a_row_depend_only_on_its_seed():
    seeds = uniforms(6, 2)
    x = augment.normals(seeds, 100)
    order = torch.tensor([4, 1, 5, 5, 0])
    assert torch.equal(augment.normals(seeds[order], 100), x[order])
    assert torch.equal(augment.normals(seeds[2:3], 100), x[2:3])


def test_noise_has_its_standard_deviation_and_is_clamped():
    grey, white = torch.full((8, 3, 32, 32), 0.5), torch.ones(8, 3, 32, 32)
    u, noise = uniforms(8, 2), augment.Noise(sigma=0.05)
    added = noise(grey.clone(), u) - 0.5
    torch.testing.assert_close(added.std().item(), 0.05, rtol=0.02, atol=0)  # 1 / sqrt(2n) is 0.5 %
    noisy = noise(white.clone(), u)
    assert noisy.max() == 1
    assert 0.48 < (noisy == 1).float().mean() < 0.52  # half of the pixels are clamped
    assert noise(1 - white, u).min() == 0


def test_noise_equals_torchvision_with_the_same_normal_numbers(monkeypatch):
    images, u = images_f32(5), uniforms(5, 2)
    normal = augment.normals(u, images[0].numel()).view_as(images)
    rows = iter(normal)
    monkeypatch.setattr(torch, "randn_like", lambda image: next(rows))
    expected = each(lambda image: F2.gaussian_noise(image, mean=0.0, sigma=0.2, clip=True), images)
    torch.testing.assert_close(augment.Noise(sigma=0.2)(images, u), expected, **CLOSE)


# --- same distributions as torchvision's samplers ---------------------------------------------------------------------

N = 2000


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (24, 40, (0.08, 1.0), (3 / 4, 4 / 3)),
        (24, 40, (0.2, 0.6), (1 / 3, 3.0)),
        (32, 32, (0.5, 1.0), (1.0, 2.0)),
    ],
    ids=["paper", "not square", "flat and tall", "wide"],
)
def test_crop_boxes_are_distributed_as_in_torchvision(height, width, scale, ratio):
    ours = augment.crop_boxes(uniforms(N, BOX_DRAWS), scale, ratio, height, width).numpy()
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    reference = np.array([T.RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(N)])
    for column in range(4):
        assert_same_distribution(ours[:, column], reference[:, column])
    assert_same_distribution(ours[:, 2] * ours[:, 3], reference[:, 2] * reference[:, 3])
    assert_same_distribution(ours[:, 3] / ours[:, 2], reference[:, 3] / reference[:, 2])
    # The distances to the bottom and the right.
    assert_same_distribution(height - ours[:, 0] - ours[:, 2], height - reference[:, 0] - reference[:, 2])
    assert_same_distribution(width - ours[:, 1] - ours[:, 3], width - reference[:, 1] - reference[:, 3])
    # The dependence between top and left.
    assert_same_distribution(ours[:, 0] + ours[:, 1], reference[:, 0] + reference[:, 1])
    assert_same_distribution(ours[:, 0] - ours[:, 1], reference[:, 0] - reference[:, 1])


@pytest.mark.parametrize("area", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("rest", [0.0, 1 - 2**-24])
def test_boxes_stay_inside_the_image_for_extreme_uniforms(area, rest):
    u = torch.full((1, BOX_DRAWS), rest)
    u[:, : BOX_DRAWS - 2 : 2] = area
    for side in (4, 31, 32, 33, 224):
        top, left, h, w = augment.crop_boxes(u, (0.08, 1.0), (3 / 4, 4 / 3), side, side)[0].tolist()
        assert min(top, left) >= 0
        assert min(h, w) >= 1
        assert top + h <= side
        assert left + w <= side


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (33, 17)])
@pytest.mark.parametrize("tall", [False, True])
def test_impossible_crops_use_the_central_box_of_torchvision(height, width, tall):
    image = torch.empty(3, height, width)
    for factor in np.linspace(1.1, 6.0, 20):
        ratio = (
            width / height * (1 / factor if tall else factor)
        )  # such a box never fits, as its area is the whole image's
        ours = augment.crop_boxes(uniforms(1, BOX_DRAWS), (1.0, 1.0), (ratio, ratio), height, width)[0]
        reference = T.RandomResizedCrop.get_params(image, [1.0, 1.0], [ratio, ratio])
        assert tuple(ours.int().tolist()) == reference


def test_crops_smaller_than_a_pixel_use_the_whole_image():
    box = augment.crop_boxes(uniforms(3, BOX_DRAWS), (1e-6, 1e-6), (3 / 4, 4 / 3), 32, 32)
    assert torch.equal(box, torch.tensor([[0.0, 0.0, 32.0, 32.0]]).expand(3, -1))


def black_boxes(images: torch.Tensor) -> np.ndarray:
    """Top, left, height and width of the black box in each white image, or zeros if it has none."""
    rows, columns = (images[:, 0] == 0).any(2), (images[:, 0] == 0).any(1)
    h, w = rows.sum(1), columns.sum(1)
    assert torch.equal((images[:, 0] == 0).sum((1, 2)), h * w)
    return torch.stack([rows.int().argmax(1), columns.int().argmax(1), h, w], 1).numpy()


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.02, 0.33), (0.3, 3.3)), ((0.02, 0.33), (1.0, 3.0)), ((0.7, 1.0), (0.3, 3.3)), ((0.9, 1.0), (2.0, 3.0))],
    ids=["defaults", "one-sided ratio", "large", "impossible"],
)
def test_cutout_boxes_are_distributed_as_in_torchvision(scale, ratio):
    """This includes images that stay unchanged because no box fits."""
    side = 20
    white = torch.ones(N, 3, side, side)
    ours = black_boxes(augment.Cutout(scale=scale, ratio=ratio)(white, uniforms(N, BOX_DRAWS)))
    torch.manual_seed(2)
    image = torch.ones(3, side, side)
    reference = []
    for _ in range(N):
        *box, patch = T.RandomErasing.get_params(image, list(scale), list(ratio), [0.0])
        reference.append([0, 0, 0, 0] if patch is image else box)
    for ours_column, column in zip(ours.T, np.array(reference).T, strict=True):
        assert_same_distribution(ours_column, column)


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_jitter_factors_and_orders_are_distributed_as_in_torchvision(monkeypatch, strength):
    calls = spy(monkeypatch, "jitter")
    augment.ColorJitter(strength=strength)(torch.zeros(N, 3, 1, 1), uniforms(N, 8))
    _, factors, order = calls[0]
    reach = [strength * 0.8] * 3 + [strength * 0.2]
    torchvision = T.ColorJitter(*reach)
    torch.manual_seed(3)
    ranges = (torchvision.brightness, torchvision.contrast, torchvision.saturation, torchvision.hue)
    samples = [T.ColorJitter.get_params(*ranges) for _ in range(N)]
    for column in range(4):
        assert_same_distribution(factors[:, column], [sample[1 + column] for sample in samples])
        first = [sample[1 + column] for sample in samples if sample[0][0] == column]
        assert_same_distribution(factors[order[:, 0] == column, column], first)  # independent of the order
    correlation = torch.corrcoef(factors.T).fill_diagonal_(0)
    assert correlation.abs().max() < 4 / math.sqrt(N)  # four standard errors
    names = list(itertools.permutations(range(4)))
    counts = np.zeros((2, len(names)))
    for ours, (theirs, *_) in zip(order.tolist(), samples, strict=True):
        counts[0, names.index(tuple(ours))] += 1
        counts[1, names.index(tuple(theirs.tolist()))] += 1
    assert stats.chi2_contingency(counts).pvalue > P_VALUE
    assert stats.chisquare(counts[0]).pvalue > P_VALUE


def test_blur_sigma_is_distributed_as_in_torchvision(monkeypatch):
    calls = spy(monkeypatch, "gaussian_blur")
    augment.Blur()(torch.zeros(N, 3, 32, 32), uniforms(N, 1))
    torch.manual_seed(4)
    assert_same_distribution(calls[0][1], [T.GaussianBlur.get_params(0.1, 2.0) for _ in range(N)])
    assert calls[0][2] == 3


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{"p": 1.01}, {"p": -0.1}, {"p": math.nan}, {"strenght": 1}])
def test_bad_probabilities_and_unknown_parameters_are_rejected(bad):
    for augmentation in AUGMENTATIONS.values():
        with pytest.raises(ValidationError):
            augmentation(**bad)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("crop", {"scale": (1.0, 0.08)}),
        ("crop", {"scale": (0.0, 1.0)}),
        ("crop", {"scale": (0.5, 1.5)}),
        ("crop", {"ratio": (4 / 3, 3 / 4)}),
        ("crop", {"ratio": (0.0, 1.0)}),
        ("crop", {"ratio": (1.0, math.inf)}),
        ("crop", {"size": 32, "p": 0.5}),
        ("crop", {"size": 3}),
        ("rotation", {"degrees": 181}),
        ("color_jitter", {"hue": 0.6}),
        ("color_jitter", {"hue": 0.3, "strength": 2}),
        ("color_jitter", {"brightness": -0.1}),
        ("color_jitter", {"brightness": math.inf}),
        ("color_jitter", {"strength": math.inf, "hue": 0}),
        ("solarize", {"threshold": 1.1}),
        ("blur", {"sigma": (2.0, 0.1)}),
        ("blur", {"sigma": (0.0, 1.0)}),
        ("blur", {"kernel": 0}),
        ("noise", {"sigma": 0}),
        ("cutout", {"scale": (0.3, 0.2)}),
    ],
)
def test_parameters_out_of_range_are_rejected(name, bad):
    with pytest.raises(ValidationError):
        AUGMENTATIONS[name](**bad)


def test_the_largest_hue_and_a_view_size_with_p_one_are_accepted():
    assert augment.ColorJitter(hue=0.25, strength=2).ranges()[3] == 0.5
    assert augment.Crop(size=24, p=1).size == 24
