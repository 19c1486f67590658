"""Networks of whole configs: initial weights that are drawn by shape, memory layout, and unsuitable images."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr.build import build_model, check_images, check_size
from simclr.config import make
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate.protocol import Protocol
from simclr.evaluate.subject import Subject, random_encoder
from simclr.model import STEMS
from simclr.train.step import start_training, train_step

CPU = torch.device("cpu")
SMALL = {"backbone": "resnet18", "width": 0.125}  # has 80,000 weights


def data(side: int = 32) -> Dataset:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    return Dataset("test", np.zeros((2, 3, side, side), np.uint8), np.zeros(2, np.int64), ("a",), {}, "", mean, std)


def weights(**sections) -> dict[str, torch.Tensor]:
    """The initial weights of a config whose network is SMALL unless `model` says otherwise."""
    config = make(sections | {"model": SMALL | sections.get("model", {})})
    return build_model(config, data(), CPU).state_dict()


def encoder_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith("encoder.")}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_images_and_weights_are_channels_last():
    model = build_model(make({"model": SMALL}), data(), CPU)
    assert model.normalize(torch.rand(2, 3, 16, 16)).is_contiguous(memory_format=torch.channels_last)
    kernels = [p for p in model.encoder.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert any(not p.is_contiguous() for p in kernels)


@pytest.mark.parametrize(("crop", "side"), [({}, 32), ({"size": 24}, 24)])
def test_networks_are_built_for_the_side_of_the_views(crop, side):
    model = build_model(make({"model": SMALL, "augment": {"crop": crop}}), data(), CPU)
    assert model.side == side
    assert model.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_images_that_the_network_cannot_process_are_rejected():
    config = make({"model": {"backbone": "densenet121", "stem": "imagenet"}, "data": {"dataset": "digits"}})
    with pytest.raises(UserError, match=r"can't process 16 px images .*: set data\.side, or choose"):
        check_images(config)
    check_images(make({"model": SMALL, "data": {"dataset": "digits"}}))


def test_a_network_that_the_machine_cannot_hold_is_rejected_before_it_is_built(monkeypatch):
    config = make({"model": {"backbone": "resnet152", "width": 8.0}})
    monkeypatch.setattr("simclr.build.system_memory", lambda: 2**33)
    with pytest.raises(UserError, match=r"take 30 GiB, but this machine has 8 GiB: lower model\.width"):
        check_size(config)
    check_images(config)  # allocates nothing
    check_size(make({"model": SMALL}))


# --- initial weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{}, {"backbone": "mobilenet_v3_small", "width": 1.0, "stem": "imagenet"}])
def test_weights_do_not_depend_on_earlier_random_numbers(model):
    first = weights(model=model)
    torch.rand(17)
    assert equal(weights(model=model), first)


@pytest.mark.parametrize(
    "change",
    [
        {"loss": {"temperature": 0.1}},
        {"optim": {"name": "sgd", "lr": 1.0}},
        {"train": {"batch_size": 64}},
        {"augment": {"crop": {"p": 0}}},
    ],
    ids=["temperature", "optimizer", "batch size", "augmentation"],
)
def test_weights_do_not_depend_on_settings_outside_the_model(change):
    assert equal(weights(**change), weights())


@pytest.mark.parametrize(
    "change",
    [
        {"head": "none"},
        {"head": "linear"},
        {"head": "mlp3"},
        {"hidden_dim": 7},
        {"out_dim": 9},
        {"head_batch_norm": True},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_the_encoder_does_not_depend_on_the_head(change):
    assert equal(encoder_of(weights(model=change)), encoder_of(weights()))


@pytest.mark.parametrize("stem", ["imagenet", "stride2"])
def test_the_stem_changes_only_the_first_convolution_and_its_norm(stem):
    stem_names = ("encoder.conv1.", "encoder.bn1.")
    before, after = weights(model={"stem": "cifar"}), weights(model={"stem": stem})
    assert before.keys() == after.keys()
    kept = [name for name in before if not name.startswith(stem_names)]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert len(kept) == len(before) - 6  # a weight, and the five numbers of a batch norm


def test_a_deeper_network_has_all_initial_weights_of_a_shallower_one():
    before, after = weights(model={"backbone": "resnet18"}), weights(model={"backbone": "resnet34"})
    assert before.keys() < after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("change", [{"width": 0.25}, {"backbone": "resnet50"}], ids=["width", "bottlenecks"])
def test_networks_have_equal_initial_weights_where_shapes_agree(change):
    def by_shape(state):
        convolutions = [value for name, value in encoder_of(state).items() if value.ndim == 4]
        return {shape: [w for w in convolutions if w.shape == shape] for shape in {w.shape for w in convolutions}}

    before, after = by_shape(weights()), by_shape(weights(model=change))
    shared = before.keys() & after.keys()
    pairs = [pair for shape in shared for pair in zip(before[shape], after[shape], strict=False)]
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(torch.equal(a, b) for same in before.values() for a, b in itertools.combinations(same, 2))


def test_another_seed_gives_other_weights():
    before, after = weights(seed=0), weights(seed=1)
    drawn = [name for name, value in before.items() if value.ndim > 1 and name not in ("mean", "std")]
    assert any(name.startswith("head.") for name in drawn)
    assert "encoder.conv1.weight" in drawn
    assert not any(torch.equal(before[name], after[name]) for name in drawn)


def test_building_keeps_the_global_random_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    weights()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stem", STEMS)
def test_the_first_convolution_has_kaiming_initialisation(stem):
    """He et al. 2015: its standard deviation is sqrt(2 / fan-out)."""
    weight = weights(model={"stem": stem, "width": 1.0, "backbone": "resnet10"})["encoder.conv1.weight"]
    fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
    expected = (2 / fan_out) ** 0.5
    # Four standard errors of a standard deviation.
    assert weight.std().item() == pytest.approx(expected, abs=4 * expected / (2 * weight.numel()) ** 0.5)


def test_a_whitening_stem_is_made_from_the_images_to_train_on_and_is_not_trained():
    config = make({"model": SMALL | {"stem": "whitening"}, "train": {"batch_size": 8}})
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), np.uint8)
    images[30:] = 0  # held out
    known = {"pretrain": np.arange(30), "train": np.arange(30), "val": np.arange(30, 40)}
    whole = replace(data(), images=images, labels=np.zeros(40, np.int64), parts=known)
    training = start_training(config, whole, CPU)
    made = training.model
    outputs = made.encoder.conv1(made.normalize(torch.from_numpy(images[:30]) / 255))[:, :27, 1:, 1:]
    torch.testing.assert_close(outputs.square().mean((0, 2, 3)), torch.ones(27), atol=0.2, rtol=0)
    untrained = random_encoder(Subject(made, config, replace(whole, images=255 - images // 9), Protocol()))
    assert torch.equal(untrained.encoder.conv1.weight, made.encoder.conv1.weight)  # also on other images
    before = {name: weight.clone() for name, weight in training.model.named_parameters()}
    train_step(training, torch.from_numpy(images[:8]), torch.zeros(8, dtype=torch.int64))
    kept = [name for name, weight in training.model.named_parameters() if torch.equal(weight, before[name])]
    assert kept == ["encoder.conv1.weight"]


# --- accelerator ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_weights_and_features_on_the_accelerator_equal_those_on_the_cpu():
    device = torch.accelerator.current_accelerator()
    here, there = (build_model(make({"model": SMALL}), data(), where).eval() for where in (CPU, device))
    assert equal({name: value.cpu() for name, value in there.state_dict().items()}, here.state_dict())
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Convolutions may use TF32, which has a mantissa of ten bits.
        torch.testing.assert_close(there(x.to(device))[0].cpu(), here(x)[0], atol=1e-2, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_building_keeps_the_random_state_of_the_accelerator():
    module = torch.get_device_module(torch.accelerator.current_accelerator())
    module.manual_seed_all(3)
    before = module.get_rng_state()
    weights()
    assert torch.equal(module.get_rng_state(), before)
