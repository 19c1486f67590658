"""Views against torchvision and scipy, image by image; sampled parameters against torchvision's samplers."""

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
from torch._subclasses.fake_tensor import FakeTensorMode

from simclr import augment, views
from simclr.augment import AUGMENTATIONS, BOX_DRAWS

NAMES = list(AUGMENTATIONS)
P_VALUE = 1e-3  # of tests on fixed seeds: they pass always or never
SIDE = 16

# Float32 on the same formula, summed in another order.
CLOSE = {"atol": 2e-6, "rtol": 0}


def images_u8(n: int, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    """Random images with bright and dark, coloured and nearly grey regions."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    grain = 0.1 * torch.rand(n, 3, side, side, generator=generator)
    return ((smooth + grain).clamp(0, 1) * 255).round().to(torch.uint8)


def images_f32(n: int, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    return images_u8(n, side, seed).float() / 255


def uniforms(n: int, draws: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, draws, generator=torch.Generator().manual_seed(seed))


def params_of(name: str, p: float) -> augment.Params:
    """The defaults, but for blur: below a sigma of about 0.2 it leaves an image as it is."""
    return AUGMENTATIONS[name].params(p=p, **({"sigma": (0.5, 2.0)} if name == "blur" else {}))


def full_pipeline(p: float) -> views.Pipeline:
    return {name: params_of(name, p) for name in NAMES}


def view(images: torch.Tensor, pipeline: views.Pipeline, seed: int = 0) -> torch.Tensor:
    return views.apply(images, pipeline, views.draw(pipeline, len(images), seed, 0, 0))


def each(function, images: torch.Tensor, *parameters) -> torch.Tensor:
    """`function` on one image at a time, each with its own parameters."""
    return torch.stack([function(image, *values) for image, *values in zip(images, *parameters, strict=True)])


def assert_same_distribution(ours, reference) -> None:
    """Two-sample Kolmogorov-Smirnov (conservative on whole numbers)."""
    assert stats.ks_2samp(np.asarray(ours, float), np.asarray(reference, float)).pvalue > P_VALUE


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple]:
    """Record the arguments that `augment.<name>` is called with; it returns its first one."""
    calls: list[tuple] = []

    def record(*args):
        calls.append(args)
        return args[0]

    monkeypatch.setattr(augment, name, record)
    return calls


# --- each operation against torchvision or scipy, on the same parameters ----------------------------------------------


@pytest.mark.parametrize(("stored", "size"), [(32, 32), (64, 32), (16, 48)])
def test_resized_crop_equals_torchvision_antialiased(stored, size):
    images = images_f32(12, stored)
    box = augment.crop_boxes(uniforms(12, BOX_DRAWS), (0.05, 1.0), (0.5, 2.0), stored, stored)
    box[:4] = torch.tensor(
        [[0, 0, stored, stored], [3, 5, 1, 1], [0, stored - 2, stored, 2], [stored - 3, 0, 3, stored]]
    )

    def reference(image, numbers):
        top, left, h, w = numbers.int().tolist()
        return F2.resized_crop(image, top, left, h, w, [size, size], antialias=True)

    torch.testing.assert_close(augment.resized_crop(images, box, size), each(reference, images, box), **CLOSE)


def test_crop_gives_views_of_the_requested_size():
    images, u = images_f32(5, 32), uniforms(5, BOX_DRAWS)
    params = augment.Crop(size=24)
    box = augment.crop_boxes(u, params.scale, params.ratio, 32, 32)
    cropped = augment.crop(images, u, params)
    assert cropped.shape == (5, 3, 24, 24)
    torch.testing.assert_close(cropped, augment.resized_crop(images, box, 24))
    assert views.apply(images_u8(5, 32), {"crop": params}, {"crop": uniforms(5, 1 + BOX_DRAWS)}).shape[-1] == 24


def test_flip_equals_torchvision():
    images = images_f32(3)
    assert torch.equal(augment.flip(images, uniforms(3, 0), augment.Flip()), F2.horizontal_flip(images))


@pytest.mark.parametrize("functional", [F1, F2])
def test_rotate_equals_torchvision_bilinear(functional):
    degrees = torch.tensor([0.0, 10.0, -10.0, 37.5, -45.0, 90.0, 133.0, 180.0])
    images = images_f32(len(degrees), 17)

    def reference(image, angle):
        return functional.rotate(image, float(angle), F1.InterpolationMode.BILINEAR)

    # torchvision rounds the sine and cosine elsewhere: sample positions differ by a few millionths of a pixel.
    torch.testing.assert_close(augment.rotate(images, degrees), each(reference, images, degrees), atol=5e-5, rtol=0)


def test_rotation_spans_the_angles_of_torchvision(monkeypatch):
    calls = spy(monkeypatch, "rotate")
    augment.rotation(torch.zeros(2000, 3, 1, 1), uniforms(2000, 1), augment.Rotation(degrees=30))
    torch.manual_seed(0)
    assert_same_distribution(calls[0][1], [T.RandomRotation.get_params([-30.0, 30.0]) for _ in range(2000)])


ADJUST = (F2.adjust_brightness, F2.adjust_contrast, F2.adjust_saturation, F2.adjust_hue)
# Hue goes through HSV there and through trapezoids here: a few roundings more.
HUE_CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.mark.parametrize("place", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_each_colour_adjustment_alone_equals_torchvision(place):
    images = images_f32(9)
    images[0] = images[0, :1]  # grey: no hue to turn
    images[1, 0], images[1, 1] = 1.0, 0.0  # ties between channels
    images[2, 1], images[2, 2] = 0.0, 0.0
    images[3, 1] = images[3, 2]
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(9, 1)
    factors[:, place] = torch.linspace(-0.5, 0.5, 9) if place == 3 else torch.linspace(0, 2, 9)
    order = torch.arange(4).repeat(9, 1)
    expected = each(lambda image, factor: ADJUST[place](image, float(factor)), images, factors[:, place])
    torch.testing.assert_close(augment.jitter(images, factors, order), expected, **HUE_CLOSE)


def test_jitter_in_all_24_orders_equals_torchvision_in_that_order():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images, u = images_f32(24), uniforms(24, 4)
    factors = 0.2 + 1.6 * u
    factors[:, 3] = u[:, 3] - 0.5

    def reference(image, values, order):
        for which in order.tolist():
            image = ADJUST[which](image, float(values[which]))
        return image

    expected = each(reference, images, factors, orders)
    # Each of four steps can enlarge the rounding of the one before by its factor (up to 1.8).
    torch.testing.assert_close(augment.jitter(images, factors, orders), expected, atol=5e-5, rtol=0)


def test_grayscale_equals_torchvision():
    images = images_f32(3)
    expected = F2.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(augment.grayscale(images, uniforms(3, 0), augment.Grayscale()), expected, **CLOSE)


@pytest.mark.parametrize(("side", "kernel"), [(16, 3), (32, 9), (9, 17)])
def test_gaussian_blur_equals_torchvision_reflecting(side, kernel):
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    images = images_f32(len(sigma), side)
    expected = each(lambda image, s: F2.gaussian_blur(image, [kernel, kernel], [float(s)] * 2), images, sigma)
    torch.testing.assert_close(augment.gaussian_blur(images, sigma, kernel), expected, **CLOSE)


def test_blur_kernel_is_the_odd_size_nearest_to_the_fraction_of_the_side():
    for side, fraction in itertools.product((4, 8, 32, 64, 96, 224), (0.01, 0.1, 0.25, 0.9)):
        kernel = augment.blur_kernel(fraction, side)
        assert kernel % 2 == 1
        assert kernel >= 3
        if fraction * side >= 2:
            assert abs(kernel - fraction * side) <= 1
    assert augment.blur_kernel(0.1, 32) == 3
    assert augment.blur_kernel(0.1, 224) in (21, 23)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 128 / 255, 1.0])
def test_solarize_equals_torchvision_at_and_around_the_threshold(threshold):
    images = (torch.arange(3 * 256) % 256).view(1, 3, 16, 16).float() / 255
    expected = F2.solarize(images, threshold)
    solarized = augment.solarize(images, uniforms(1, 0), augment.Solarize(threshold=threshold))
    torch.testing.assert_close(solarized, expected, **CLOSE)


def test_sobel_equals_scipy_with_edges_repeated():
    images = images_f32(4)
    images[0] = (images[0] > 0.5).float()  # edges strong enough to clamp

    def reference(plane):
        slopes = [ndimage.sobel(plane.double().numpy(), axis=axis, mode="nearest") / 4 for axis in (0, 1)]
        return torch.from_numpy(np.minimum(np.hypot(*slopes), 1)).float()

    expected = torch.stack([reference(plane) for plane in images.flatten(0, 1)]).view_as(images)
    torch.testing.assert_close(augment.sobel(images, uniforms(4, 0), augment.Sobel()), expected, **CLOSE)


def test_sobel_of_a_full_straight_edge_is_one():
    images = torch.zeros(1, 3, 6, 6)
    images[..., 3:] = 1
    edges = augment.sobel(images, uniforms(1, 0), augment.Sobel())
    assert torch.equal(edges[0, 0, 2], torch.tensor([0.0, 0, 1, 1, 0, 0]))


def test_cutout_equals_torchvision_erase(monkeypatch):
    box = torch.tensor([[0, 0, 3, 5], [2, 7, 6, 1], [13, 9, 3, 7], [0, 0, 16, 15]]).float()
    monkeypatch.setattr(augment, "boxes", lambda *args, **kwargs: box)
    images = images_f32(4)

    def reference(image, numbers):
        top, left, h, w = numbers.int().tolist()
        return F2.erase(image, top, left, h, w, torch.zeros(3, h, w))

    erased = augment.cutout(images.clone(), uniforms(4, BOX_DRAWS), augment.Cutout())
    assert torch.equal(erased, each(reference, images, box))


# --- noise ------------------------------------------------------------------------------------------------------------


def test_normals_are_standard_normal():
    x = augment.normals(uniforms(40, 2), 5000).flatten().double()
    n = len(x)
    # Four standard errors of each moment's estimate.
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert stats.kstest(x.numpy(), "norm").pvalue > P_VALUE


def test_normals_of_different_images_and_neighbouring_pixels_are_uncorrelated():
    seeds = uniforms(8, 2)
    seeds[4:] = seeds[:4]
    seeds[4:6, 0] += 2**-24  # the nearest seeds there are
    seeds[6:, 1] += 2**-24
    count = 20000
    x = augment.normals(seeds, count)
    correlation = torch.corrcoef(torch.cat([x, x.roll(1, 1)])).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(count)  # five standard errors, for 120 pairs


def test_normals_of_a_row_depend_on_its_seed_only():
    seeds = uniforms(6, 2)
    x = augment.normals(seeds, 100)
    order = torch.tensor([4, 1, 5, 5, 0])
    assert torch.equal(augment.normals(seeds[order], 100), x[order])
    assert torch.equal(augment.normals(seeds[2:3], 100), x[2:3])


def test_noise_has_the_stated_deviation_and_stays_between_black_and_white():
    grey, white = torch.full((8, 3, 32, 32), 0.5), torch.ones(8, 3, 32, 32)
    u, params = uniforms(8, 2), augment.Noise(sigma=0.05)
    added = augment.noise(grey.clone(), u, params) - 0.5
    torch.testing.assert_close(added.std().item(), 0.05, rtol=0.02, atol=0)  # 1 / sqrt(2n) is 0.5 %
    noisy = augment.noise(white.clone(), u, params)
    assert noisy.max() == 1
    assert 0.48 < (noisy == 1).float().mean() < 0.52  # half of it was clamped
    assert augment.noise(1 - white, u, params).min() == 0


def test_noise_is_torchvisions_on_the_same_normal_numbers(monkeypatch):
    images, u = images_f32(5), uniforms(5, 2)
    normal = augment.normals(u, images[0].numel()).view_as(images)
    rows = iter(normal)
    monkeypatch.setattr(torch, "randn_like", lambda image: next(rows))
    expected = each(lambda image: F2.gaussian_noise(image, mean=0.0, sigma=0.2, clip=True), images)
    torch.testing.assert_close(augment.noise(images, u, augment.Noise(sigma=0.2)), expected, **CLOSE)


# --- what holds for every augmentation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_views_keep_shape_range_and_dtype(name, p):
    images = images_u8(16)
    images[0], images[1] = 0, 255
    out = view(images, {name: params_of(name, p)})
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    # Weights that sum to one do so up to rounding.
    assert out.min() >= -1e-6
    assert out.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_p_zero_leaves_the_image_and_p_one_touches_every_image(name):
    images = images_u8(16)
    plain = images.float() / 255
    assert torch.equal(view(images, {name: params_of(name, 0)}), plain)
    assert (view(images, {name: params_of(name, 1)}) != plain).flatten(1).any(1).all()


@pytest.mark.parametrize("name", NAMES)
def test_images_with_low_draws_are_those_that_are_touched(name):
    images, params = images_u8(12), params_of(name, 0.5)
    draws = views.draw({name: params}, 12, 1, 0, 0)
    draws[name][:, 0] = torch.tensor([0.0, 0.4999, 0.5, 0.999] * 3)
    touched = (views.apply(images, {name: params}, draws) != images.float() / 255).flatten(1).any(1)
    assert touched.tolist() == [True, True, False, False] * 3


def test_share_of_touched_images_is_p_and_independent_between_operations():
    pipeline = {"flip": augment.Flip(p=0.3), "solarize": augment.Solarize(p=0.7)}
    images = torch.zeros(3000, 3, 1, 2, dtype=torch.uint8)
    images[..., 1] = 127  # the flip shows in which pixel is brighter, the inversion in how bright the darker one is
    out = view(images, {"flip": pipeline["flip"]})[:, 0, 0]
    flipped = out[:, 0] > out[:, 1]
    images[:] = 255
    inverted = view(images, pipeline)[:, 0, 0, 0] == 0
    assert stats.binomtest(int(flipped.sum()), 3000, 0.3).pvalue > P_VALUE
    assert stats.binomtest(int(inverted.sum()), 3000, 0.7).pvalue > P_VALUE
    table = [[int((flipped & inverted).sum()), int((flipped & ~inverted).sum())]]
    table.append([int((~flipped & inverted).sum()), int((~flipped & ~inverted).sum())])
    assert stats.chi2_contingency(table).pvalue > P_VALUE


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_an_image_get_parameters_of_their_own(name):
    copies = images_u8(1).expand(10, -1, -1, -1)
    out = view(copies, {name: params_of(name, 1)}, seed=1)
    distinct = len({row.numpy().tobytes() for row in out})
    assert distinct == (10 if AUGMENTATIONS[name].draws else 1)


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_a_slice_of_the_batch_gives_that_slice_of_the_views(name, p):
    images = images_u8(10)
    pipeline = full_pipeline(p) if name == "all" else {name: params_of(name, p)}
    if name == "all":
        del pipeline["solarize"]  # jumps at its threshold, so would enlarge a last bit to a whole inversion
    draws = views.draw(pipeline, 10, 2, 3, 0)
    whole = views.apply(images, pipeline, draws)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 10)):
        part = views.apply(images[rows], pipeline, {key: u[rows] for key, u in draws.items()})
        torch.testing.assert_close(part, whole[rows], **CLOSE)  # sums may run in another order


@pytest.mark.parametrize("later", ["blur", "solarize", "sobel", "noise", "cutout"])
def test_grayscale_of_a_whole_batch_leaves_channels_that_later_operations_can_write(later):
    images = images_u8(8)
    pipeline = {"grayscale": augment.Grayscale(p=0.5), later: params_of(later, 0.5)}
    draws = views.draw(pipeline, 8, 0, 0, 0)
    draws["grayscale"][:, 0] = 0.0
    draws[later][:, 0] = torch.tensor([0.0, 0.9] * 4)
    not_the_last = {key: u.clone() for key, u in draws.items()}
    not_the_last["grayscale"][7, 0] = 0.9
    expected = views.apply(images, pipeline, not_the_last)[:7]
    torch.testing.assert_close(views.apply(images, pipeline, draws)[:7], expected, **CLOSE)


@pytest.mark.parametrize("dropped", NAMES)
def test_dropping_an_operation_leaves_the_draws_of_the_others(dropped):
    pipeline = full_pipeline(0.5)
    before = views.draw(pipeline, 6, 0, 7, 1)
    del pipeline[dropped]
    after = views.draw(pipeline, 6, 0, 7, 1)
    assert after.keys() == before.keys() - {dropped}
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_draws_are_a_function_of_seed_step_and_view():
    pipeline = full_pipeline(0.5)
    base = views.draw(pipeline, 4, 0, 1, 0)
    again = views.draw(pipeline, 4, 0, 1, 0)
    assert all(torch.equal(base[name], again[name]) for name in NAMES)
    assert torch.equal(
        views.apply(images_u8(4), pipeline, base),
        views.apply(images_u8(4), pipeline, again),
    )
    for seed, step, which in ((1, 1, 0), (0, 2, 0), (0, 1, 1), (1, 0, 0)):
        other = views.draw(pipeline, 4, seed, step, which)
        assert not any((base[name] == other[name]).any() for name in NAMES)
    first_columns = torch.stack([base[name][:, 0] for name in NAMES])
    assert len(first_columns.unique()) == first_columns.numel()  # operations have keys of their own


def test_drawing_and_applying_leave_the_global_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    view(images_u8(4), full_pipeline(0.5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_uint8_images_are_not_modified(name, p):
    images = images_u8(6)
    before = images.clone()
    view(images, {name: params_of(name, p)})
    assert torch.equal(images, before)


# --- distributions against torchvision's samplers ---------------------------------------------------------------------

N = 3000


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.2, 0.6), (1 / 3, 3.0)), ((0.5, 1.0), (1.0, 2.0))],
    ids=["paper", "flat and tall", "wide"],
)
def test_crop_boxes_are_distributed_as_torchvisions(height, width, scale, ratio):
    ours = augment.crop_boxes(uniforms(N, BOX_DRAWS), scale, ratio, height, width).numpy()
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    reference = np.array([T.RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(N)])
    for column in range(4):
        assert_same_distribution(ours[:, column], reference[:, column])
    assert_same_distribution(ours[:, 2] * ours[:, 3], reference[:, 2] * reference[:, 3])
    assert_same_distribution(ours[:, 3] / ours[:, 2], reference[:, 3] / reference[:, 2])
    # Where the box lies in the room it has, at both ends.
    assert_same_distribution(height - ours[:, 0] - ours[:, 2], height - reference[:, 0] - reference[:, 2])
    assert_same_distribution(width - ours[:, 1] - ours[:, 3], width - reference[:, 1] - reference[:, 3])
    # Whether top and left go together.
    assert_same_distribution(ours[:, 0] + ours[:, 1], reference[:, 0] + reference[:, 1])
    assert_same_distribution(ours[:, 0] - ours[:, 1], reference[:, 0] - reference[:, 1])


@pytest.mark.parametrize("area", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("rest", [0.0, 1 - 2**-24])
def test_boxes_stay_inside_the_image_at_the_ends_of_the_uniform_range(area, rest):
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
def test_impossible_crops_fall_back_to_torchvisions_central_box(height, width, tall):
    image = torch.empty(3, height, width)
    for factor in np.linspace(1.1, 6.0, 50):
        ratio = width / height * (1 / factor if tall else factor)  # of the whole area: it never fits
        ours = augment.crop_boxes(uniforms(1, BOX_DRAWS), (1.0, 1.0), (ratio, ratio), height, width)[0]
        reference = T.RandomResizedCrop.get_params(image, [1.0, 1.0], [ratio, ratio])
        assert tuple(ours.int().tolist()) == reference


def test_crop_too_small_for_a_pixel_falls_back_to_the_whole_image():
    box = augment.crop_boxes(uniforms(3, BOX_DRAWS), (1e-6, 1e-6), (3 / 4, 4 / 3), 32, 32)
    assert torch.equal(box, torch.tensor([[0.0, 0.0, 32.0, 32.0]]).expand(3, -1))


def black_boxes(images: torch.Tensor) -> np.ndarray:
    """Top, left, height, width of the black box in each white image; zeros where there is none."""
    rows, columns = (images[:, 0] == 0).any(2), (images[:, 0] == 0).any(1)
    h, w = rows.sum(1), columns.sum(1)
    assert torch.equal((images[:, 0] == 0).sum((1, 2)), h * w)
    return torch.stack([rows.int().argmax(1), columns.int().argmax(1), h, w], 1).numpy()


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.02, 0.33), (0.3, 3.3)), ((0.02, 0.33), (1.0, 3.0)), ((0.7, 1.0), (0.3, 3.3)), ((0.9, 1.0), (2.0, 3.0))],
    ids=["defaults", "one-sided ratio", "large", "impossible"],
)
def test_cutout_boxes_are_distributed_as_torchvisions_random_erasing(scale, ratio):
    """Also where no box fits: the image stays as it is."""
    side = 20
    white = torch.ones(N, 3, side, side)
    ours = black_boxes(augment.cutout(white, uniforms(N, BOX_DRAWS), augment.Cutout(scale=scale, ratio=ratio)))
    torch.manual_seed(2)
    image = torch.ones(3, side, side)
    reference = []
    for _ in range(N):
        *box, patch = T.RandomErasing.get_params(image, list(scale), list(ratio), [0.0])
        reference.append([0, 0, 0, 0] if patch is image else box)
    for ours_column, column in zip(ours.T, np.array(reference).T, strict=True):
        assert_same_distribution(ours_column, column)


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_jitter_factors_and_orders_are_distributed_as_torchvisions(monkeypatch, strength):
    calls = spy(monkeypatch, "jitter")
    augment.color_jitter(torch.zeros(N, 3, 1, 1), uniforms(N, 8), augment.ColorJitter(strength=strength))
    _, factors, order = calls[0]
    reach = [strength * 0.8] * 3 + [strength * 0.2]
    torchvision = T.ColorJitter(*reach)
    torch.manual_seed(3)
    ranges = (torchvision.brightness, torchvision.contrast, torchvision.saturation, torchvision.hue)
    samples = [T.ColorJitter.get_params(*ranges) for _ in range(N)]
    for column in range(4):
        assert_same_distribution(factors[:, column], [sample[1 + column] for sample in samples])
        first = [sample[1 + column] for sample in samples if sample[0][0] == column]
        assert_same_distribution(factors[order[:, 0] == column, column], first)  # it does not depend on the order
    correlation = torch.corrcoef(factors.T).fill_diagonal_(0)
    assert correlation.abs().max() < 4 / math.sqrt(N)  # four standard errors
    names = list(itertools.permutations(range(4)))
    counts = np.zeros((2, len(names)))
    for ours, (theirs, *_) in zip(order.tolist(), samples, strict=True):
        counts[0, names.index(tuple(ours))] += 1
        counts[1, names.index(tuple(theirs.tolist()))] += 1
    assert stats.chi2_contingency(counts).pvalue > P_VALUE
    assert stats.chisquare(counts[0]).pvalue > P_VALUE


def test_blur_sigma_is_distributed_as_torchvisions(monkeypatch):
    calls = spy(monkeypatch, "gaussian_blur")
    augment.blur(torch.zeros(N, 3, 32, 32), uniforms(N, 1), augment.Blur())
    torch.manual_seed(4)
    assert_same_distribution(calls[0][1], [T.GaussianBlur.get_params(0.1, 2.0) for _ in range(N)])
    assert calls[0][2] == 3


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [{"p": 1.01}, {"p": -0.1}, {"p": math.nan}, {"strenght": 1}])
def test_bad_probabilities_and_unknown_parameters_are_refused(name, bad):
    with pytest.raises(ValidationError):
        AUGMENTATIONS[name].params(**bad)


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
def test_parameters_out_of_range_are_refused(name, bad):
    with pytest.raises(ValidationError):
        AUGMENTATIONS[name].params(**bad)


def test_largest_allowed_hue_and_a_view_size_with_p_one_are_accepted():
    assert augment.ColorJitter(hue=0.25, strength=2).ranges()[3] == 0.5
    assert augment.Crop(size=24, p=1).size == 24


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_apply_keeps_to_the_device_of_the_images(monkeypatch, share):
    """On fake accelerator tensors. Which images are chosen depends on data, so a stand-in chooses the first ones."""
    pipeline = full_pipeline(1.0)
    monkeypatch.setattr(
        torch.Tensor, "nonzero", lambda mask: torch.arange(int(share * len(mask)), device=mask.device).unsqueeze(1)
    )
    with FakeTensorMode():
        draws = {name: torch.rand(8, 1 + row.draws) for name, row in AUGMENTATIONS.items()}
        images = torch.zeros(8, 3, SIDE, SIDE, dtype=torch.uint8, device="cuda")
        out = views.apply(images, pipeline, draws)
    assert out.device.type == "cuda"
    assert out.shape == images.shape
    assert out.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_views_on_the_accelerator_equal_those_on_the_cpu(name):
    images = images_u8(16)
    pipeline = full_pipeline(0.5) if name == "all" else {name: params_of(name, 0.5)}
    if name == "all":
        del pipeline["solarize"]  # jumps at its threshold
    draws = views.draw(pipeline, 16, 0, 0, 0)
    there = views.apply(images.to(torch.accelerator.current_accelerator()), pipeline, draws)
    # Other kernels, other order of sums; sines and exponentials differ in the last bits.
    torch.testing.assert_close(there.cpu(), views.apply(images, pipeline, draws), atol=1e-4, rtol=0)
