"""Views: which images are augmented, random numbers that are independent of everything else, and devices."""

import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simclr import augment
from simclr.augment import AUGMENTATIONS, Augmentation
from simclr.views import AugmentConfig, Pipeline, apply, batch_views, draw, pipeline

NAMES = list(AUGMENTATIONS)
CHANGING = [name for name in NAMES if name != "auto_augment"]  # its steps leave some images as they are
JUMPING = ("solarize", "auto_augment")  # at a threshold, where a rounding error can become an inversion
PLAIN = {"color_jitter": {"p": 0.0}, "grayscale": {"p": 0.0}}
P_VALUE = 1e-3  # seeds are fixed, so a test passes always or never


def images_u8(n: int, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augmentation(name: str, p: float) -> Augmentation:
    """An augmentation with default parameters, except for blur, which changes nothing if sigma is below about 0.2."""
    return AUGMENTATIONS[name](p=p, **({"sigma": (0.5, 2.0)} if name == "blur" else {}))


def full_pipeline(p: float) -> Pipeline:
    return {name: augmentation(name, p) for name in NAMES}


def view(images: torch.Tensor, operations: Pipeline, seed: int = 0) -> torch.Tensor:
    return apply(images, operations, draw(operations, len(images), seed, 0, 0))


def test_a_pipeline_has_the_order_of_the_table_and_no_absent_augmentations():
    section = AugmentConfig(**{name: {"p": 1.0} for name in reversed(NAMES)})
    assert list(pipeline(section)) == NAMES
    section = AugmentConfig(**{name: {"p": float(name == "blur")} for name in NAMES})
    assert list(pipeline(section)) == ["blur"]


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_view_size_is_reached_with_and_without_cropping(p):
    section = AugmentConfig(crop={"p": p, "size": 24})
    assert view(images_u8(5, 32), pipeline(section)).shape == (5, 3, 24, 24)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_views_keep_shape_range_and_dtype_and_leave_the_images(name, p):
    images = images_u8(16)
    images[0], images[1] = 0, 255
    before = images.clone()
    out = view(images, {name: augmentation(name, p)})
    assert torch.equal(images, before)
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    # Weights that sum to one do so up to rounding.
    assert out.min() >= -1e-6
    assert out.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", CHANGING)
def test_p_zero_changes_no_image_and_p_one_changes_all(name):
    images = images_u8(16)
    plain = images.float() / 255
    assert torch.equal(view(images, {name: augmentation(name, 0)}), plain)
    assert (view(images, {name: augmentation(name, 1)}) != plain).flatten(1).any(1).all()


@pytest.mark.parametrize("name", CHANGING)
def test_images_whose_number_is_below_p_are_augmented(name):
    images, operations = images_u8(12), {name: augmentation(name, 0.5)}
    draws = draw(operations, 12, 1, 0, 0)
    draws[name][:, 0] = torch.tensor([0.0, 0.4999, 0.5, 0.999] * 3)
    changed = (apply(images, operations, draws) != images.float() / 255).flatten(1).any(1)
    assert changed.tolist() == [True, True, False, False] * 3


def test_augmented_images_have_share_p_and_are_independent_between_augmentations():
    operations = {"flip": augment.Flip(p=0.3), "solarize": augment.Solarize(p=0.7)}
    images = torch.zeros(3000, 3, 1, 2, dtype=torch.uint8)
    images[..., 1] = 127  # a flip changes which pixel is brighter, and solarizing inverts the white images below
    out = view(images, {"flip": operations["flip"]})[:, 0, 0]
    flipped = out[:, 0] > out[:, 1]
    images[:] = 255
    inverted = view(images, operations)[:, 0, 0, 0] == 0
    assert stats.binomtest(int(flipped.sum()), 3000, 0.3).pvalue > P_VALUE
    assert stats.binomtest(int(inverted.sum()), 3000, 0.7).pvalue > P_VALUE
    table = [[int((flipped & inverted).sum()), int((flipped & ~inverted).sum())]]
    table.append([int((~flipped & inverted).sum()), int((~flipped & ~inverted).sum())])
    assert stats.chi2_contingency(table).pvalue > P_VALUE


@pytest.mark.parametrize("name", CHANGING)
def test_copies_of_an_image_get_different_parameters(name):
    copies = images_u8(1).expand(10, -1, -1, -1)
    out = view(copies, {name: augmentation(name, 1)}, seed=1)
    kinds = {"quarter_turn": 3}.get(name, 10 if AUGMENTATIONS[name].draws else 1)
    assert len({row.numpy().tobytes() for row in out}) == kinds


def test_both_views_start_with_the_same_shared_crop_and_only_one_is_augmented():
    images, crop = images_u8(8, 32), AugmentConfig(shared_crop={"p": 1.0}, crop={"p": 0.0}, flip={"p": 0.0}, **PLAIN)
    turned = crop.model_copy(update={"quarter_turn": augment.QuarterTurn(p=1.0)})
    first, second = batch_views(images, (pipeline(crop), pipeline(turned)), 0, 5)(slice(0, 8))
    assert len({row.numpy().tobytes() for row in first}) == 8
    turns = [
        [torch.equal(a.rot90(k, (1, 2)), b) for k in (1, 2, 3)].count(True) for a, b in zip(first, second, strict=True)
    ]
    assert turns == [1] * 8
    same, other = batch_views(images, (pipeline(crop), pipeline(crop)), 0, 5)(slice(0, 8))
    assert torch.equal(same, other)
    assert torch.equal(same, first)
    later, _ = batch_views(images, (pipeline(crop), pipeline(crop)), 0, 6)(slice(0, 8))
    assert not torch.equal(later, first)


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_part_of_a_batch_gives_that_part_of_the_views(name, p):
    images = images_u8(10)
    operations = full_pipeline(p) if name == "all" else {name: augmentation(name, p)}
    if name == "all":
        for jumping in JUMPING:
            del operations[jumping]
    draws = draw(operations, 10, 2, 3, 0)
    whole = apply(images, operations, draws)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 10)):
        part = apply(images[rows], operations, {key: u[rows] for key, u in draws.items()})
        torch.testing.assert_close(part, whole[rows], atol=2e-6, rtol=0)  # sums may be computed in another order


@pytest.mark.parametrize("later", ["blur", "solarize", "sobel", "noise", "cutout"])
def test_augmentations_after_grayscale_can_write_to_its_output(later):
    """If all images become grey, the output must not share memory between its channels."""
    images = images_u8(8)
    operations = {"grayscale": augment.Grayscale(p=0.5), later: augmentation(later, 0.5)}
    draws = draw(operations, 8, 0, 0, 0)
    draws["grayscale"][:, 0] = 0.0
    draws[later][:, 0] = torch.tensor([0.0, 0.9] * 4)
    all_but_one = {key: u.clone() for key, u in draws.items()}
    all_but_one["grayscale"][7, 0] = 0.9
    expected = apply(images, operations, all_but_one)[:7]
    torch.testing.assert_close(apply(images, operations, draws)[:7], expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dropped", NAMES)
def test_dropping_an_augmentation_keeps_the_numbers_of_the_others(dropped):
    operations = full_pipeline(0.5)
    before = draw(operations, 6, 0, 7, 1)
    del operations[dropped]
    after = draw(operations, 6, 0, 7, 1)
    assert after.keys() == before.keys() - {dropped}
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_random_numbers_depend_on_seed_step_view_and_augmentation_only():
    operations = full_pipeline(0.5)
    base, again = (draw(operations, 4, 0, 1, 0) for _ in range(2))
    assert all(torch.equal(base[name], again[name]) for name in NAMES)
    for seed, step, which in ((1, 1, 0), (0, 2, 0), (0, 1, 1), (1, 0, 0)):
        other = draw(operations, 4, seed, step, which)
        same = {name for name in NAMES if (base[name] == other[name]).any()}
        assert same == ({"shared_crop"} if (seed, step) == (0, 1) else set())
    first_columns = torch.stack([base[name][:, 0] for name in NAMES])
    assert len(first_columns.unique()) == first_columns.numel()  # each augmentation has its own key


def test_drawing_and_applying_keep_the_global_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    view(images_u8(4), full_pipeline(0.5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("equal", [True, False])
def test_two_views_are_those_of_each_pipeline_for_any_rows(equal):
    images, first = images_u8(6), full_pipeline(0.5)
    pipelines = first, full_pipeline(0.5 if equal else 0.75)
    for operations in pipelines:
        for jumping in JUMPING:
            del operations[jumping]
    views = batch_views(images, pipelines, 3, 7)
    for rows in (slice(0, 6), slice(1, 4)):
        for which, made in enumerate(views(rows)):
            draws = draw(pipelines[which], 6, 3, 7, which)
            expected = apply(images[rows], pipelines[which], {name: u[rows] for name, u in draws.items()})
            torch.testing.assert_close(made, expected, atol=2e-6, rtol=0)


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_views_stay_on_the_device_of_the_images(monkeypatch, share):
    """Uses fake accelerator tensors. They have no data to select images by, so the first ones are selected."""
    operations = full_pipeline(1.0)
    view(images_u8(1), operations)  # which computes tables with real numbers
    monkeypatch.setattr(
        torch.Tensor, "nonzero", lambda mask: torch.arange(int(share * len(mask)), device=mask.device).unsqueeze(1)
    )
    with FakeTensorMode():
        draws = {name: torch.rand(8, 1 + kind.draws) for name, kind in AUGMENTATIONS.items()}
        images = torch.zeros(8, 3, 16, 16, dtype=torch.uint8, device="cuda")
        out = apply(images, operations, draws)
    assert out.device.type == "cuda"
    assert out.shape == images.shape
    assert out.dtype == torch.float32


class Waiting(TorchDispatchMode):
    """Notes the operations for which a GPU waits: copies to it that block, and selections by an index on the CPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor) and each.ndim]
        onto = isinstance(out, torch.Tensor) and out.device.type == "cuda"
        if onto and any(each.device.type == "cpu" for each in inputs) and not (kwargs or {}).get("non_blocking"):
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "auto_augment"])  # which is torchvision's
def test_no_view_waits_for_the_gpu(name, monkeypatch):
    """Uses fake tensors, which have no data to select images by, so all are selected."""
    operation = augmentation(name, 1.0)
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda mask: torch.arange(len(mask)).unsqueeze(1))
    with FakeTensorMode(), Waiting() as waiting:
        u = torch.rand(8, operation.draws)
        operation(torch.zeros(8, 3, 16, 16, device="cuda"), u)
    assert not waiting.found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_views_on_the_accelerator_equal_those_on_the_cpu(name):
    images = images_u8(16)
    operations = full_pipeline(0.5) if name == "all" else {name: augmentation(name, 0.5)}
    if name == "all":
        for jumping in JUMPING:
            del operations[jumping]
    draws = draw(operations, 16, 0, 0, 0)
    there = apply(images.to(torch.accelerator.current_accelerator()), operations, draws)
    # Kernels sum in another order, and sines and exponentials differ in the last bits.
    torch.testing.assert_close(there.cpu(), apply(images, operations, draws), atol=1e-4, rtol=0)
