"""Encoders against torchvision's, heads, stems and widths, and initial weights that are drawn by shape."""

import itertools

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms.v2.functional import normalize

from simclr.build import build_model
from simclr.config import Config, make
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.model import HEADS, STEMS, ModelConfig, Network, build_encoder, parameter_count

FEATURES = {
    "resnet18": 512,
    "resnet50": 2048,
    "convnext_tiny": 768,
    "vit_b_16": 768,
    "mobilenet_v3_small": 576,
    "efficientnet_b0": 1280,
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SMALL = {"backbone": "resnet18", "width": 0.125}  # 80,000 weights


def build(side: int = 32, seed: int = 0, **settings) -> Network:
    return Network(ModelConfig(**settings), side, seed, MEAN, STD)


def build_meta(side: int = 32, **settings) -> Network:
    """Shapes only, no memory."""
    with torch.device("meta"):
        return build(side, **settings)


def images(n: int = 4, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def output_shapes(encoder: nn.Module, *layers: str) -> list[tuple[int, ...]]:
    """What the named layers put out for two images of 32 pixels, in the order in which they run."""
    shapes: list[tuple[int, ...]] = []
    for name in layers:
        encoder.get_submodule(name).register_forward_hook(lambda *call: shapes.append(tuple(call[-1].shape)))
    encoder(torch.empty(2, 3, 32, 32, device="meta"))
    return shapes


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", list(FEATURES))
def test_each_backbone_gives_features_and_embeddings(backbone):
    model = build_meta(backbone=backbone, stem="imagenet", out_dim=48)
    h, z = model(torch.empty(2, 3, 32, 32, device="meta"))
    assert model.features == FEATURES[backbone]
    assert h.shape == (2, FEATURES[backbone])
    assert z.shape == (2, 48)


@pytest.mark.parametrize("backbone", list(FEATURES))
def test_forward_keeps_to_the_device_of_the_model(backbone, monkeypatch):
    """On fake accelerator tensors: mixing devices raises. Drawing truncated normals depends on data: left out."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *args, **kwargs: tensor)
    with FakeTensorMode():
        with torch.device("cuda"):
            model = build(backbone=backbone, stem="imagenet")
        h, z = model(torch.rand(2, 3, 32, 32, device="cuda"))
    assert h.device.type == z.device.type == "cuda"
    assert h.shape == (2, FEATURES[backbone])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_plain_resnets_have_torchvisions_parameters_and_buffers_without_the_classifier(name):
    with torch.device("meta"):
        reference = torchvision.models.get_model(name)
    expected = {key: value.shape for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    encoder = build_meta(backbone=name, stem="imagenet").encoder
    assert {key: value.shape for key, value in encoder.state_dict().items()} == expected


def test_plain_resnet_with_torchvisions_weights_gives_torchvisions_features():
    torch.manual_seed(0)
    reference = torchvision.models.resnet18().eval()
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    reference.fc = nn.Identity()
    encoder = build(backbone="resnet18", stem="imagenet").encoder.eval()
    encoder.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images(2, 64)), reference(images(2, 64)))


def test_the_whole_classifier_is_taken_off_other_backbones():
    with torch.device("meta"):
        reference = torchvision.models.mobilenet_v3_small()
    expected = {k: v.shape for k, v in reference.state_dict().items() if not k.startswith("classifier.")}
    encoder = build_meta(backbone="mobilenet_v3_small", stem="imagenet").encoder
    assert {k: v.shape for k, v in encoder.state_dict().items()} == expected


@pytest.mark.parametrize(("side", "tokens"), [(32, 5), (64, 17)])
def test_vision_transformer_is_built_for_the_image_side(side, tokens):
    model = build_meta(side, backbone="vit_b_16", stem="imagenet")
    assert model.encoder.encoder.pos_embedding.shape == (1, tokens, 768)
    assert model(torch.empty(2, 3, side, side, device="meta"))[0].shape == (2, 768)


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("backbone", "expansion"), [("resnet18", 1), ("resnet50", 4)])
def test_width_multiplies_the_channels_of_every_stage(backbone, expansion, width):
    model = build_meta(backbone=backbone, stem="imagenet", width=width)
    shapes = output_shapes(model.encoder, "conv1", "layer1", "layer2", "layer3", "layer4")
    channels = [shape[1] for shape in shapes]
    assert channels == [64 * width] + [planes * expansion * width for planes in (64, 128, 256, 512)]
    inner = [block.conv2.out_channels for block in model.encoder.layer3]
    assert inner == [256 * width] * len(inner)
    assert model.features == 512 * expansion * width


def test_width_that_is_not_a_power_of_two_rounds_channels():
    model = build_meta(backbone="resnet18", width=0.3)
    assert model.encoder.conv1.out_channels == 19
    assert model.features == 154
    assert model(torch.empty(2, 3, 32, 32, device="meta"))[0].shape == (2, 154)


@pytest.mark.parametrize(
    ("stem", "kernel", "stride", "pooled", "after_stem", "last"),
    [
        ("imagenet", 7, 2, True, 8, 1),
        ("cifar", 3, 1, False, 32, 4),
        ("cifar_pad2", 3, 1, False, 34, 5),
        ("stride2", 3, 2, False, 16, 2),
    ],
)
def test_stems_have_their_convolution_pooling_and_spatial_sizes(stem, kernel, stride, pooled, after_stem, last):
    encoder = build_meta(backbone="resnet18", stem=stem).encoder
    assert encoder.conv1.kernel_size == (kernel, kernel)
    assert encoder.conv1.stride == (stride, stride)
    assert isinstance(encoder.maxpool, nn.MaxPool2d) == pooled
    shapes = output_shapes(encoder, "maxpool", "layer4")
    assert shapes == [(2, 64, after_stem, after_stem), (2, 512, last, last)]


def test_every_stem_was_tested():
    assert set(STEMS) == {"imagenet", "cifar", "cifar_pad2", "stride2"}


def test_images_are_normalised_by_mean_and_deviation_before_the_encoder():
    model = build(**SMALL).eval()
    plain = Network(ModelConfig(**SMALL), 32, 0, (0.0,) * 3, (1.0,) * 3).eval()
    x = images()
    by_hand = normalize(x, MEAN, STD)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], plain(by_hand)[0])
    assert {"mean", "std"} <= model.state_dict().keys()  # weights carry their transform


def test_images_and_weights_are_channels_last(digits: Dataset):
    config = make({"data": {"dataset": "digits"}, "model": {"stem": "stride2", "width": 0.25}})
    model = build_model(config, digits, torch.device("cpu"))
    assert model.normalize(torch.rand(2, 3, 16, 16)).is_contiguous(memory_format=torch.channels_last)
    weights = [p for p in model.encoder.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    assert any(not p.is_contiguous() for p in weights)


# --- heads ------------------------------------------------------------------------------------------------------------


def linears(head: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("none", []),
        ("linear", [(64, 20)]),
        ("mlp", [(64, 30), (30, 20)]),
        ("mlp3", [(64, 30), (30, 30), (30, 20)]),
    ],
)
def test_heads_have_their_layers(head, expected, batch_norm):
    model = build(**SMALL, head=head, hidden_dim=30, out_dim=20, head_batch_norm=batch_norm)
    assert linears(model.head) == expected
    norms = [m.num_features for m in model.head.modules() if isinstance(m, nn.BatchNorm1d)]
    assert norms == ([out for _, out in expected] if batch_norm else [])
    assert len([m for m in model.head.modules() if isinstance(m, nn.ReLU)]) == max(0, len(expected) - 1)
    # A bias before batch norm would be taken off again.
    assert all((m.bias is None) == batch_norm for m in model.head.modules() if isinstance(m, nn.Linear))
    h, z = model(images())
    assert h.shape == (4, 64)
    assert z.shape == (4, expected[-1][1] if expected else 64)


def test_every_head_was_tested():
    assert set(HEADS) == {"none", "linear", "mlp", "mlp3"}


def test_no_head_is_the_identity():
    model = build(**SMALL, head="none")
    h, z = model(images())
    assert torch.equal(h, z)
    assert parameter_count(model.head) == 0


def test_mlp_head_is_linear_relu_linear_of_the_representation():
    model = build(**SMALL, head="mlp").eval()
    with torch.no_grad():
        h, z = model(images())
        (w1, b1), (w2, b2) = ((m.weight, m.bias) for m in model.head if isinstance(m, nn.Linear))
        torch.testing.assert_close(z, (h @ w1.T + b1).clamp(min=0) @ w2.T + b2)
    assert w1.shape == (64, 64)  # hidden as wide as h unless said


def test_head_does_not_write_over_the_representation():
    model = build(**SMALL, head="mlp").eval()
    with torch.no_grad():
        h, _ = model(images())
        encoded = model.encoder((images() - model.mean) / model.std)
    torch.testing.assert_close(h, encoded)


def test_batch_norm_in_the_head_standardises_embeddings_over_the_batch():
    model = build(**SMALL, head="mlp", head_batch_norm=True, out_dim=10)
    z = model(images(16))[1]
    torch.testing.assert_close(z.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    # Its epsilon of 1e-5 beside small variances takes a little off.
    torch.testing.assert_close(z.var(0, unbiased=False), torch.ones(10), atol=0.05, rtol=0)


# --- initial weights --------------------------------------------------------------------------------------------------


def data(side: int = 32) -> Dataset:
    return Dataset("test", np.zeros((2, 3, side, side), np.uint8), np.zeros(2, np.int64), ("a",), {}, "", MEAN, STD)


def weights(**sections) -> dict[str, torch.Tensor]:
    """Of a whole config's initial model; `model` has the small ResNet's settings where it doesn't say."""
    sections["model"] = SMALL | sections.get("model", {})
    config: Config = make(sections)
    return build_model(config, data(), torch.device("cpu")).state_dict()


def encoder_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith("encoder.")}


@pytest.mark.parametrize(
    "model",
    [{}, *({"backbone": name, "width": 1.0, "stem": "imagenet"} for name in ("mobilenet_v3_small", "vit_b_16"))],
)
def test_the_same_config_gives_the_same_weights_whatever_was_drawn_before(model):
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
def test_settings_outside_the_model_leave_every_weight(change):
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
def test_changing_the_head_leaves_the_encoder(change):
    assert equal(encoder_of(weights(model=change)), encoder_of(weights()))


@pytest.mark.parametrize("stem", ["imagenet", "stride2"])
def test_changing_the_stem_changes_the_first_convolution_and_its_norm_alone(stem):
    stem_names = ("encoder.conv1.", "encoder.bn1.")
    before, after = weights(model={"stem": "cifar"}), weights(model={"stem": stem})
    assert before.keys() == after.keys()
    kept = [name for name in before if not name.startswith(stem_names)]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert len(kept) == len(before) - 6  # a weight, and the five numbers of a batch norm


def test_a_deeper_network_begins_with_every_weight_of_a_shallower_one():
    before, after = weights(model={"backbone": "resnet18"}), weights(model={"backbone": "resnet34"})
    assert before.keys() < after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("change", [{"width": 0.25}, {"backbone": "resnet50"}], ids=["width", "bottlenecks"])
def test_other_networks_begin_with_the_same_weights_where_shapes_agree(change):
    def by_shape(state):
        convolutions = [value for name, value in encoder_of(state).items() if value.ndim == 4]
        return {shape: [w for w in convolutions if w.shape == shape] for shape in {w.shape for w in convolutions}}

    before, after = by_shape(weights()), by_shape(weights(model=change))
    shared = before.keys() & after.keys()
    pairs = [pair for shape in shared for pair in zip(before[shape], after[shape], strict=False)]
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(torch.equal(a, b) for same in before.values() for a, b in itertools.combinations(same, 2))


def test_another_seed_gives_other_weights_everywhere():
    before, after = weights(seed=0), weights(seed=1)
    drawn = [name for name, value in before.items() if value.ndim > 1 and name not in ("mean", "std")]
    assert any(name.startswith("head.") for name in drawn)
    assert "encoder.conv1.weight" in drawn
    assert not any(torch.equal(before[name], after[name]) for name in drawn)


def test_building_leaves_the_global_random_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    weights()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stem", list(STEMS))
def test_first_convolution_is_initialised_as_the_others(stem):
    """He et al.: deviation sqrt(2 / fan-out)."""
    weight = build(backbone="resnet18", stem=stem).encoder.conv1.weight
    fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
    # Four standard errors of a standard deviation.
    expected = (2 / fan_out) ** 0.5
    assert weight.std().item() == pytest.approx(expected, abs=4 * expected / (2 * weight.numel()) ** 0.5)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "nearest"), [("resnet-18", "resnet18"), ("vit_b16", "vit_b_16")])
def test_unknown_backbone_is_refused_and_names_the_nearest(name, nearest):
    unchecked = ModelConfig.model_construct(backbone=name, stem="imagenet", width=1.0)
    with pytest.raises(UserError, match=f"unknown backbone '{name}': did you mean '{nearest}'"):
        build_encoder(unchecked, 32, 0)
    with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
        make({"model": {"backbone": name}})


@pytest.mark.parametrize("settings", [{"width": 2.0, "stem": "imagenet"}, {"stem": "cifar"}])
def test_width_and_stem_are_refused_for_what_is_not_a_resnet(settings):
    with pytest.raises(UserError, match="mobilenet_v3_small"):
        build_encoder(ModelConfig(backbone="mobilenet_v3_small", **settings), 32, 0)


def test_image_side_that_the_patches_do_not_divide_is_refused():
    with pytest.raises(UserError, match="30 px"):
        build_encoder(ModelConfig(backbone="vit_b_16", stem="imagenet"), 30, 0)


# --- accelerator ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_model_on_the_accelerator_has_the_cpus_weights_and_features():
    device = torch.accelerator.current_accelerator()
    config = make({"model": SMALL})
    here, there = (build_model(config, data(), where).eval() for where in (torch.device("cpu"), device))
    assert equal({name: value.cpu() for name, value in there.state_dict().items()}, here.state_dict())
    with torch.no_grad():
        # Convolutions may run in TF32, with a mantissa of ten bits.
        torch.testing.assert_close(there(images().to(device))[0].cpu(), here(images())[0], atol=1e-2, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_building_leaves_the_accelerators_random_state():
    module = torch.get_device_module(torch.accelerator.current_accelerator())
    module.manual_seed_all(3)
    before = module.get_rng_state()
    weights()
    assert torch.equal(module.get_rng_state(), before)
