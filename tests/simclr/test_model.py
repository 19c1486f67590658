"""Networks: encoders compared with torchvision's, stems, widths and heads."""

import pytest
import torch
import torchvision
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import StochasticDepth
from torchvision.transforms.v2.functional import normalize

from simclr.build import check_images
from simclr.config import make
from simclr.errors import UserError
from simclr.model import (
    HEADS,
    STEMS,
    ModelConfig,
    Network,
    build_encoder,
    mixes_images,
    parameter_count,
    statistics_kept,
    whiten,
)

FEATURES = {
    "resnet18": 512,
    "convnext_tiny": 768,
    "vit_b_16": 768,
    "vit_tiny_4": 192,
    "vit_mini_8": 128,
    "mobilenet_v3_small": 576,
    "efficientnet_b0": 1280,
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SMALL = {"backbone": "resnet18", "width": 0.125}  # has 80,000 weights


def build(side: int = 32, seed: int = 0, **settings) -> Network:
    return Network(ModelConfig(**settings), side, seed, MEAN, STD)


def build_meta(side: int = 32, **settings) -> Network:
    """A network without data, for tests of shapes."""
    with torch.device("meta"):
        return build(side, **settings)


def images(n: int = 4, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def output_shapes(encoder: nn.Module, *layers: str) -> list[tuple[int, ...]]:
    """The output shapes of the named layers for two 32 px images, in the order in which the layers run."""
    shapes: list[tuple[int, ...]] = []
    for name in layers:
        encoder.get_submodule(name).register_forward_hook(lambda *call: shapes.append(tuple(call[-1].shape)))
    encoder(torch.empty(2, 3, 32, 32, device="meta"))
    return shapes


# --- encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", list(FEATURES))
def test_backbones_give_features_and_embeddings(backbone):
    model = build_meta(backbone=backbone, stem="imagenet", out_dim=48)
    h, z = model(torch.empty(2, 3, 32, 32, device="meta"))
    assert model.features == FEATURES[backbone]
    assert h.shape == (2, FEATURES[backbone])
    assert z.shape == (2, 48)


@pytest.mark.parametrize("backbone", ["resnet18", "vit_b_16"])
def test_forward_stays_on_the_device_of_the_model(backbone, monkeypatch):
    """Fake accelerator tensors raise if devices are mixed. They have no data, which truncated normals need."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *args, **kwargs: tensor)
    with FakeTensorMode():
        with torch.device("cuda"):
            model = build(backbone=backbone, stem="imagenet")
        h, z = model(torch.rand(2, 3, 32, 32, device="cuda"))
    assert h.device.type == z.device.type == "cuda"
    assert h.shape == (2, FEATURES[backbone])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_have_the_parameters_and_buffers_of_torchvision(name):
    with torch.device("meta"):
        reference = torchvision.models.get_model(name)
    expected = {key: value.shape for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    encoder = build_meta(backbone=name, stem="imagenet").encoder
    assert {key: value.shape for key, value in encoder.state_dict().items()} == expected


def test_a_resnet_with_torchvision_weights_gives_torchvision_features():
    torch.manual_seed(0)
    reference = torchvision.models.resnet18().eval()
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    reference.fc = nn.Identity()
    encoder = build(backbone="resnet18", stem="imagenet").encoder.eval()
    encoder.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images(2)), reference(images(2)))


def test_the_whole_classifier_of_other_backbones_is_removed():
    with torch.device("meta"):
        reference = torchvision.models.mobilenet_v3_small()
    expected = {k: v.shape for k, v in reference.state_dict().items() if not k.startswith("classifier.")}
    encoder = build_meta(backbone="mobilenet_v3_small", stem="imagenet").encoder
    assert {k: v.shape for k, v in encoder.state_dict().items()} == expected


@pytest.mark.parametrize(("side", "tokens"), [(32, 5), (64, 17)])
def test_vision_transformers_are_built_for_the_image_side(side, tokens):
    model = build_meta(side, backbone="vit_b_16", stem="imagenet")
    assert model.encoder.encoder.pos_embedding.shape == (1, tokens, 768)
    assert model(torch.empty(2, 3, side, side, device="meta"))[0].shape == (2, 768)


def test_small_vision_transformers_have_the_size_of_their_source():
    model = build_meta(32, backbone="vit_tiny_4", stem="imagenet")
    assert model.encoder.encoder.pos_embedding.shape == (1, 65, 192)
    # The layers of DeiT-Ti, which has 5.7 million weights with larger patches, more positions and 1,000 classes.
    assert parameter_count(model.encoder) == pytest.approx(5.4e6, rel=0.01)
    with pytest.raises(UserError, match=r"can't process 36 px images: expected a multiple of 8, such as"):
        build_meta(36, backbone="vit_mini_8", stem="imagenet")


def test_vision_transformers_refuse_local_crops_of_another_size():
    vit = {"backbone": "vit_mini_8", "stem": "imagenet"}
    config = make({"data": {"dataset": "shapes"}, "model": vit, "augment": {"local": {"size": 16}}})
    with pytest.raises(UserError, match=r"can't process 16 px images .*: raise augment\.local\.size or leave it out"):
        check_images(config)


@pytest.mark.parametrize("width", [0.25, 2.0])
@pytest.mark.parametrize(("backbone", "expansion"), [("resnet18", 1), ("resnet50", 4)])
def test_width_multiplies_the_channels_of_every_stage(backbone, expansion, width):
    model = build_meta(backbone=backbone, stem="imagenet", width=width)
    shapes = output_shapes(model.encoder, "conv1", "layer1", "layer2", "layer3", "layer4")
    channels = [shape[1] for shape in shapes]
    assert channels == [64 * width] + [planes * expansion * width for planes in (64, 128, 256, 512)]
    inner = [block.conv2.out_channels for block in model.encoder.layer3]
    assert inner == [256 * width] * len(inner)
    assert model.features == 512 * expansion * width


def test_widths_that_are_not_powers_of_two_round_channels():
    model = build_meta(backbone="resnet18", width=0.3)
    assert model.encoder.conv1.out_channels == 19
    assert model.features == 154
    assert model(torch.empty(2, 3, 32, 32, device="meta"))[0].shape == (2, 154)


@pytest.mark.parametrize(
    ("stem", "kernel", "stride", "channels", "pooled", "after_stem", "last"),
    [
        ("imagenet", 7, 2, 64, True, 8, 1),
        ("cifar", 3, 1, 64, False, 32, 4),
        ("imagenet_no_pool", 7, 2, 64, False, 16, 2),
        ("cifar_no_relu", 3, 1, 64, False, 32, 4),
        ("cifar_pad2", 3, 1, 64, False, 34, 5),
        ("stride2", 3, 2, 64, False, 16, 2),
        ("whitening", 3, 2, 54, False, 16, 2),
    ],
)
def test_stems_have_their_convolution_and_pooling(stem, kernel, stride, channels, pooled, after_stem, last):
    encoder = build_meta(backbone="resnet18", stem=stem).encoder
    assert encoder.conv1.kernel_size == (kernel, kernel)
    assert encoder.conv1.stride == (stride, stride)
    assert isinstance(encoder.maxpool, nn.MaxPool2d) == pooled
    shapes = output_shapes(encoder, "maxpool", "layer4")
    assert shapes == [(2, channels, after_stem, after_stem), (2, 512, last, last)]


@pytest.mark.parametrize("backbone", ["resnet10", "resnet50"])
def test_a_whitening_stem_has_outputs_without_correlation_and_with_unit_variance(backbone):
    stem = build(backbone=backbone, stem="whitening", width=0.25).encoder.conv1
    blurred = nn.functional.avg_pool2d(images(64, 34), 3, 1)  # neighbouring pixels are alike
    blurred = (blurred - blurred.mean()) / blurred.std()
    whiten(stem, blurred.split(10))
    out = nn.functional.conv2d(blurred, stem.weight, stride=2)  # without a border of zeros
    ours = out.transpose(0, 1).flatten(1)
    torch.testing.assert_close(ours[27:], -ours[:27])
    covariance = ours[:27] @ ours[:27].T / ours.shape[1]
    torch.testing.assert_close(covariance, torch.diag(covariance.diagonal()), atol=1e-3, rtol=0)
    assert covariance.diagonal().max() < 1
    assert covariance.diagonal().min() > 0.95  # WHITENING_EPS lowers the smallest variances


def test_a_whitening_stem_needs_float64_only_on_the_cpu():
    """MPS doesn't have it. Fake tensors stand for those of an accelerator."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made = [each for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
            assert not any(each.dtype == torch.float64 and each.device.type == "cuda" for each in made)
            return out

    with FakeTensorMode():
        stem = nn.Conv2d(3, 54, 3, 2, 1, bias=False, device="cuda")
        with Watch():
            whiten(stem, torch.rand(8, 3, 16, 16, device="cuda").split(4))


def test_images_are_normalised_before_the_encoder():
    model = build(**SMALL).eval()
    plain = Network(ModelConfig(**SMALL), 32, 0, (0.0,) * 3, (1.0,) * 3).eval()
    x = images()
    by_hand = normalize(x, MEAN, STD)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], plain(by_hand)[0])
    assert {"mean", "std"} <= model.state_dict().keys()  # saved weights include their preprocessing


def test_images_of_another_side_are_resized():
    model = build(**SMALL).eval()
    x = images(side=48)
    resized = nn.functional.interpolate(x, size=(32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], model(resized)[0])


# --- heads ------------------------------------------------------------------------------------------------------------


def linears(head: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("batch_norm", [False, True, "hidden"])
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
    normalised = {False: 0, True: len(expected), "hidden": max(0, len(expected) - 1)}[batch_norm]  # the first layers
    assert norms == [out for _, out in expected][:normalised]
    assert len([m for m in model.head.modules() if isinstance(m, nn.ReLU)]) == max(0, len(expected) - 1)
    # Batch norm would remove a bias before it.
    biased = [m.bias is not None for m in model.head.modules() if isinstance(m, nn.Linear)]
    assert biased == [False] * normalised + [True] * (len(expected) - normalised)
    h, z = model(images())
    assert h.shape == (4, 64)
    assert z.shape == (4, expected[-1][1] if expected else 64)


def test_no_head_is_the_identity():
    model = build(**SMALL, head="none")
    h, z = model(images())
    assert torch.equal(h, z)
    assert parameter_count(model.head) == 0


def test_the_mlp_head_is_linear_relu_linear():
    model = build(**SMALL, head="mlp").eval()
    with torch.no_grad():
        h, z = model(images())
        (w1, b1), (w2, b2) = ((m.weight, m.bias) for m in model.head if isinstance(m, nn.Linear))
        torch.testing.assert_close(z, (h @ w1.T + b1).clamp(min=0) @ w2.T + b2)
    assert w1.shape == (64, 64)  # by default, the hidden layer is as wide as h


def test_the_head_does_not_overwrite_the_representation():
    model = build(**SMALL, head="mlp").eval()
    with torch.no_grad():
        h, _ = model(images())
        encoded = model.encoder((images() - model.mean) / model.std)
    torch.testing.assert_close(h, encoded)


def test_batch_norm_in_the_head_standardises_embeddings():
    model = build(**SMALL, head="mlp", head_batch_norm=True, out_dim=10)
    z = model(images(16))[1]
    torch.testing.assert_close(z.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    # Its epsilon of 1e-5 lowers small variances a little.
    torch.testing.assert_close(z.var(0, unbiased=False), torch.ones(10), atol=0.05, rtol=0)


def test_every_stem_and_head_is_tested():
    cifar = {"cifar", "cifar_no_relu", "cifar_pad2"}
    assert set(STEMS) == {"imagenet", "imagenet_no_pool", "stride2", "whitening"} | cifar
    assert set(HEADS) == {"none", "linear", "mlp", "mlp3"}


# --- batch norm and dropout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.BatchNorm1d(4), True),
        (nn.Dropout(0.5), True),
        (StochasticDepth(0.5, "row"), True),
        (nn.Dropout(0.0), False),
        (nn.LayerNorm(4), False),
    ],
)
def test_batch_norm_and_random_layers_mix_images(layer, expected):
    assert mixes_images(nn.Sequential(nn.Linear(4, 4), layer)) is expected


def test_statistics_are_kept_where_asked():
    norm, fixed = nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)
    model = nn.Sequential(norm, fixed)
    x = torch.arange(12.0).view(4, 3)
    with statistics_kept(model):
        inside = model(x)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert norm.num_batches_tracked == 0
    assert torch.equal(model(x), inside)  # both use the statistics of the batch
    assert norm.num_batches_tracked == 1
    assert not fixed.track_running_stats


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "nearest"), [("resnet-18", "resnet18"), ("vit_b16", "vit_b_16")])
def test_the_nearest_backbone_is_suggested_for_an_unknown_one(name, nearest):
    unchecked = ModelConfig.model_construct(backbone=name, stem="imagenet", width=1.0)
    with pytest.raises(UserError, match=f"unknown backbone '{name}': did you mean '{nearest}'"):
        build_encoder(unchecked, 32, 0)


@pytest.mark.parametrize("settings", [{"width": 2.0, "stem": "imagenet"}, {"stem": "cifar"}])
def test_width_and_stem_are_rejected_for_other_backbones_than_resnets(settings):
    with pytest.raises(UserError, match=r"work only with ResNets: add .* for 'mobilenet_v3_small'"):
        build_encoder(ModelConfig(backbone="mobilenet_v3_small", **settings), 32, 0)


def test_image_sides_that_are_not_multiples_of_the_patch_are_rejected():
    for side, works in ((30, 16), (40, 32), (9, 16)):
        with pytest.raises(UserError, match=f"can't process {side} px .* a multiple of 16, such as .*side={works} "):
            build_encoder(ModelConfig(backbone="vit_b_16", stem="imagenet"), side, 0)
