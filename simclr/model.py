"""The network: an encoder f (any torchvision classifier without its last layer) and a projection head g.

h = f(x) is the representation that is evaluated; z = g(h) is what the loss sees (paper, Section 2.1). The encoder and
the head each draw their initial weights by shape (`randomness.initial_weights`), so that changing a part, a width or
the depth leaves what keeps its shape as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import torchvision
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import StochasticDepth

from simclr.errors import UserError, unknown
from simclr.randomness import initial_weights
from simclr.settings import Section, _one_of


class ModelConfig(Section):
    """The encoder and the projection head."""

    backbone: Annotated[str, _one_of("backbone", backbones)] = "resnet18"
    stem: Annotated[str, _one_of("stem", lambda: STEMS)] = "cifar"
    # Multiplies the channels of a ResNet. Below 0.125 the first have fewer than 8, and oneDNN 3.12 (torch 2.14), on a
    # CPU without AVX-512, writes out of bounds in the weights' gradient of such a 1x1 convolution of stride 2.
    width: float = Field(1.0, ge=0.125, le=8)
    head: Annotated[str, _one_of("head", lambda: HEADS)] = "mlp"
    hidden_dim: int | None = Field(None, ge=1)  # of the head (default: as wide as h; paper: 2048 for ResNet-50)
    out_dim: int = Field(128, ge=1)  # of z
    head_batch_norm: bool = False  # batch norm after each linear layer of the head (the paper's code has it)


RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),  # not torchvision's: half of ResNet-18, for short runs
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}


def _conv(width: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    return nn.Conv2d(3, width, kernel, stride, padding, bias=False)


# First convolution (from the number of channels) and what pools after it.
STEMS: dict[str, Callable[[int], tuple[nn.Conv2d, nn.Module]]] = {
    "imagenet": lambda width: (_conv(width, 7, 2, 3), nn.MaxPool2d(3, 2, padding=1)),
    "cifar": lambda width: (_conv(width, 3, 1, 1), nn.Identity()),  # paper, B.9: 3x3, stride 1, no max-pool
    "cifar_pad2": lambda width: (_conv(width, 3, 1, 2), nn.Identity()),  # solo-learn's, for encoders from there
    "stride2": lambda width: (_conv(width, 3, 2, 1), nn.Identity()),  # a quarter of the cost of `cifar`
}


class WideResNet(ResNet):  # type: ignore[misc]
    """torchvision's ResNet with every layer's number of channels multiplied by `width`, and one of STEMS."""

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: list[int], width: float) -> None:
        self.width = width
        super().__init__(block, layers)
        self.fc = nn.Linear(self.inplanes, 1)  # of the scaled width; its place is what the encoder's output comes from

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == 64:
            self.inplanes = round(64 * self.width)
        layer: nn.Sequential = super()._make_layer(block, round(planes * self.width), blocks, stride, dilate)
        return layer

    def set_stem(self, name: str) -> None:
        width = round(64 * self.width)
        self.conv1, self.maxpool = STEMS[name](width)
        self.bn1 = nn.BatchNorm2d(width)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")


def backbones() -> list[str]:
    """Names that `model.backbone` may have: RESNETS, and torchvision's classifiers that end in a linear layer."""
    special = ("inception_v3", "googlenet", "squeezenet", *RESNETS)  # auxiliary heads, or no linear classifier
    names = torchvision.models.list_models(module=torchvision.models)
    return list(RESNETS) + [name for name in names if not name.startswith(special) and not name.startswith("quantized")]


def _detach_classifier(network: nn.Module) -> int:
    """Replace the classifier by the identity, keeping a norm or a pooling at its start; the features that went into it.

    torchvision calls it fc, classifier, head or heads; it ends in the last linear layer and begins at its own first.
    """
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    name = last.partition(".")[0]
    classifier = network.get_submodule(name)
    layers = list(classifier.children()) if isinstance(classifier, nn.Sequential) else [classifier]
    first, linear = next((i, layer) for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    setattr(network, name, nn.Sequential(*(layer for layer in layers[:first] if not isinstance(layer, nn.Dropout))))
    return linear.in_features


def build_encoder(config: ModelConfig, side: int, seed: int) -> tuple[nn.Module, int]:
    """The encoder f and the width of its output h. `side` is the image side in pixels (needed by vision transformers).

    The global random state is left as it was.
    """
    if config.backbone not in backbones():
        raise unknown("backbone", config.backbone, backbones())
    with initial_weights(seed, "encoder"):
        if config.backbone in RESNETS:
            block, layers = RESNETS[config.backbone]
            network: nn.Module = WideResNet(block, layers, config.width)
            network.set_stem(config.stem)  # type: ignore[operator]
        else:
            if config.width != 1 or config.stem != "imagenet":
                raise UserError(
                    f"model.width = {config.width:g} and model.stem = '{config.stem}' are for ResNets; "
                    f"'{config.backbone}' needs model.width = 1 and model.stem = 'imagenet'"
                )
            builder = torchvision.models.get_model_builder(config.backbone)
            is_transformer = config.backbone.startswith("vit_")
            try:
                network = builder(**({"image_size": side} if is_transformer else {}))
            except (ValueError, AssertionError) as error:  # a side that the patches don't divide
                raise UserError(f"backbone '{config.backbone}' can't take {side} px images: {error}") from None
        features = _detach_classifier(network)
    return network, features


def _mlp(depth: int) -> Callable[[int, int, int, bool], nn.Sequential]:
    def build(features: int, hidden: int, out: int, batch_norm: bool) -> nn.Sequential:
        widths = [features] + [hidden] * (depth - 1) + [out]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(a, b, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(b))
            if i < depth - 1:
                layers.append(nn.ReLU(inplace=True))
        return nn.Sequential(*layers)

    return build


# From (features, hidden width, output width, batch norm after each linear layer). Paper, Fig. 8: none, linear, mlp.
HEADS: dict[str, Callable[[int, int, int, bool], nn.Sequential]] = {
    "none": lambda features, hidden, out, batch_norm: nn.Sequential(),
    "linear": _mlp(1),
    "mlp": _mlp(2),
    "mlp3": _mlp(3),
}


class Network(nn.Module):
    """Encoder and head: images (float N x 3 x S x S in [0, 1]) -> (h: N x features, z: N x out_dim).

    The network sees images of `side` pixels, as its views are; others are resized here. They are normalised here, by
    `mean` and `std` of each channel, so that weights carry their transform.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, side: int, seed: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.encoder, self.features = build_encoder(config, side, seed)
        hidden = config.hidden_dim or self.features
        with initial_weights(seed, "head"):
            self.head = HEADS[config.head](self.features, hidden, config.out_dim, config.head_batch_norm)

    def normalize(self, images: Tensor) -> Tensor:
        """What the encoder is given."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def encode(self, images: Tensor) -> Tensor:
        """h of images of any side, antialiased bilinear where they are resized, as crops are."""
        if images.shape[-1] != self.side:
            images = F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        return self.encoder(self.normalize(images))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encode(images)
        return h, self.head(h)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def mixes_images(model: nn.Module) -> bool:
    """Whether what a network makes of an image depends on the images that it comes with: by batch norm, or by the draws
    of dropout and stochastic depth."""
    random = (nn.modules.dropout._DropoutNd, StochasticDepth)
    return bool(batch_norms(model)) or any(isinstance(m, random) and m.p > 0 for m in model.modules())


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norms leave their running averages, and their counts of batches, as they are."""
    norms = [norm for norm in batch_norms(model) if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
