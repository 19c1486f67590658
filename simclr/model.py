"""The network: an encoder f (a torchvision classifier without its last layer) and a projection head g.

The representation h = f(x) is evaluated, and the loss is computed on z = g(h) (paper, Section 2.1). The encoder and the
head draw their initial weights by shape (`randomness.initial_weights`). If a part, the width or the depth changes, the
tensors that keep their shape keep their initial weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import torchvision
from pydantic import Field
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import StochasticDepth

from simclr import processes
from simclr.errors import BadSettings, UserError, unknown
from simclr.randomness import initial_weights
from simclr.settings import Section, one_of

# Outputs of a layer of the head. Published heads have up to 16,384; a layer from 32,768 to as many takes 4 GiB.
Width = Annotated[int, Field(ge=1, le=2**15)]
HeadNorm = bool | Literal["hidden"]

# With fewer than 8 channels, oneDNN 3.12 (torch 2.14) on a CPU without AVX-512 writes out of bounds in the weight
# gradient of 1x1 convolutions with stride 2.
LEAST_WIDTH = 8 / 64


class ModelConfig(Section):
    """Settings of the encoder and the projection head."""

    # Network of the encoder, without its classifier.
    backbone: Annotated[str, one_of("backbone", backbones)] = "resnet18"
    stem: Annotated[str, one_of("stem", lambda: STEMS)] = "cifar"  # first convolution and pooling of a ResNet
    width: float = Field(1.0, ge=LEAST_WIDTH, le=8)  # factor on the number of channels in each layer of a ResNet
    head: Annotated[str, one_of("head", lambda: HEADS)] = "mlp"  # projection head; the paper's has one hidden layer
    hidden_dim: Width | None = None  # width of the head's hidden layers (default: that of h)
    out_dim: Width = 128  # width of z, the head's output
    # Batch norm after each linear layer of the head, as in the paper's code, or after the hidden ones only.
    head_batch_norm: HeadNorm = False

    def effective_settings(self) -> dict[str, Any]:
        settings = self.model_dump(mode="json", exclude=UNUSED_BY_HEAD.get(self.head))
        if self.head == "linear" and self.head_batch_norm == "hidden":  # it has no hidden layer
            settings["head_batch_norm"] = False
        return settings


RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),  # not in torchvision: half of ResNet-18, for short runs
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}


# torchvision's vision transformers in small, for images of 32 to 64 px. The name ends in the side of a patch in pixels.
_TINY = {"num_layers": 12, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}  # ViT-Ti (DeiT, arXiv 2012.12877)
_MINI = {"num_layers": 4, "num_heads": 4, "hidden_dim": 128, "mlp_dim": 256}  # for short runs on CPUs
VITS = {"vit_tiny_4": _TINY, "vit_tiny_8": _TINY, "vit_mini_4": _MINI, "vit_mini_8": _MINI}


SAME = 1e-6  # difference of two unit vectors that float32 can't tell from rounding


def _conv(width: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    return nn.Conv2d(3, width, kernel, stride, padding, bias=False)


def _fixed(convolution: nn.Conv2d) -> nn.Conv2d:
    convolution.weight.requires_grad_(False)
    return convolution


# From the number of channels to the first convolution and the pooling layer after it.
STEMS: dict[str, Callable[[int], tuple[nn.Conv2d, nn.Module]]] = {
    "imagenet": lambda width: (_conv(width, 7, 2, 3), nn.MaxPool2d(3, 2, padding=1)),
    "imagenet_no_pool": lambda width: (_conv(width, 7, 2, 3), nn.Identity()),
    "cifar": lambda width: (_conv(width, 3, 1, 1), nn.Identity()),  # paper, B.9: 3x3, stride 1, no max-pool
    "cifar_no_relu": lambda width: (_conv(width, 3, 1, 1), nn.Identity()),  # `cifar` without the ReLU, for lightly's
    "cifar_pad2": lambda width: (_conv(width, 3, 1, 2), nn.Identity()),  # solo-learn's, for its encoders
    "stride2": lambda width: (_conv(width, 3, 2, 1), nn.Identity()),  # a quarter of the cost of `cifar`
    # Two filters for each of the 27 values of a 3 x 3 patch, at any width. They are not trained: see `whiten`.
    "whitening": lambda _: (_fixed(_conv(54, 3, 2, 1)), nn.Identity()),
}


class WideResNet(ResNet):  # type: ignore[misc]
    """torchvision's ResNet with `width` times as many channels in every layer, and one of STEMS."""

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: list[int], width: float, stem: str) -> None:
        self.width = width
        convolution, pooling = STEMS[stem](round(64 * width))
        self.stem_width = convolution.out_channels
        super().__init__(block, layers)
        self.fc = nn.Linear(self.inplanes, 1)  # has the scaled width; `_detach_classifier` removes it
        self.conv1, self.maxpool = convolution, pooling
        if stem == "cifar_no_relu":
            self.relu = nn.Identity()  # only that of the stem: blocks have their own
        self.bn1 = nn.BatchNorm2d(self.stem_width)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self.stem_width
        layer: nn.Sequential = super()._make_layer(block, round(planes * self.width), blocks, stride, dilate)
        return layer


WHITENING_EPS = 5e-4  # added to variances of patches of normalised images (arXiv 2404.00498)


def whiten(stem: nn.Conv2d, images: Iterable[Tensor]) -> None:
    """Set the filters of a stem so that its outputs are uncorrelated and have unit variance on the images' patches.

    They are the eigenvectors of the covariance of patches, each divided by its standard deviation, and their negatives,
    so that the ReLU after them loses nothing (arXiv 2404.00498, Section 3.2). `images` are blocks of normalised ones
    (N x 3 x S x S), which bounds the memory.
    """
    covariance, count = torch.zeros((), dtype=torch.float64), 0
    for block in images:
        pixels = block.cpu().contiguous()  # not every device has float64
        patches = F.unfold(pixels, stem.kernel_size, stride=stem.stride).transpose(1, 2).flatten(0, 1).double()
        covariance, count = covariance + patches.T @ patches, count + len(patches)
    variances, vectors = torch.linalg.eigh(covariance / count)
    filters = (vectors / (variances + WHITENING_EPS).sqrt()).T
    filters *= filters.gather(1, filters.abs().argmax(1, keepdim=True)).sign()  # eigh leaves the sign open
    with torch.no_grad():
        stem.weight.copy_(torch.cat([filters, -filters]).view_as(stem.weight))


def backbones() -> list[str]:
    """The valid values of `model.backbone`: RESNETS, VITS, and torchvision's classifiers that end in a linear layer."""
    # They have auxiliary heads, no linear classifier, or (RegNets) no shapes until their weights are in memory.
    special = ("inception_v3", "googlenet", "squeezenet", "regnet", *RESNETS)
    names = torchvision.models.list_models(module=torchvision.models)
    others = [name for name in names if not name.startswith(special) and not name.startswith("quantized")]
    return [*RESNETS, *VITS, *others]


def _detach_classifier(network: nn.Module) -> int:
    """Remove the classifier, except for a norm or a pooling layer at its start. Returns the number of features.

    torchvision names the classifier fc, classifier, head or heads. It contains the last linear layer of the network,
    and everything from its first linear layer on is removed.
    """
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    name = last.partition(".")[0]
    classifier = network.get_submodule(name)
    layers = list(classifier.children()) if isinstance(classifier, nn.Sequential) else [classifier]
    first, linear = next((i, layer) for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    setattr(network, name, nn.Sequential(*(layer for layer in layers[:first] if not isinstance(layer, nn.Dropout))))
    return linear.in_features


def build_encoder(config: ModelConfig, side: int, seed: int) -> tuple[nn.Module, int]:
    """Build the encoder f. Returns it with the width of its output h, and restores the global random state.

    `side` is the image side in pixels, which vision transformers need. Raises UserError if the settings don't fit the
    backbone.
    """
    if config.backbone not in backbones():
        raise unknown("backbone", config.backbone, backbones())
    with initial_weights(seed, "encoder"):
        if config.backbone in RESNETS:
            block, layers = RESNETS[config.backbone]
            network: nn.Module = WideResNet(block, layers, config.width, config.stem)
        else:
            if config.width != 1 or config.stem != "imagenet":
                raise UserError(
                    f"model.width = {config.width:g} and model.stem = '{config.stem}' work only with ResNets: add "
                    f"--set model.width=1 --set model.stem=imagenet for '{config.backbone}'"
                )
            builder, options = VisionTransformer, VITS.get(config.backbone, {})
            if config.backbone not in VITS:
                builder = torchvision.models.get_model_builder(config.backbone)
            if config.backbone.startswith("vit_"):
                patch = int(config.backbone.rpartition("_")[2])
                if side % patch:
                    raise UserError(
                        f"backbone '{config.backbone}' can't process {side} px images: expected a multiple of {patch}, "
                        f"such as --set data.side={max(side // patch, 1) * patch} (or augment.crop.size, if that is "
                        f"set)"
                    )
                options = options | {"image_size": side} | ({"patch_size": patch} if config.backbone in VITS else {})
            network = builder(**options)
        features = _detach_classifier(network)
    return network, features


def _mlp(depth: int) -> Callable[[int, int, int, HeadNorm], nn.Sequential]:
    def build(features: int, hidden: int, out: int, batch_norm: HeadNorm) -> nn.Sequential:
        widths = [features] + [hidden] * (depth - 1) + [out]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            is_hidden = i < depth - 1
            normalised = batch_norm is True or (batch_norm == "hidden" and is_hidden)
            layers.append(nn.Linear(a, b, bias=not normalised))
            if normalised:
                layers.append(nn.BatchNorm1d(b))
            if is_hidden:
                layers.append(nn.ReLU(inplace=True))
        return nn.Sequential(*layers)

    return build


# From (features, hidden width, output width, `head_batch_norm`) to a head. The paper's Fig. 8 compares none, linear and
# mlp.
HEADS: dict[str, Callable[[int, int, int, HeadNorm], nn.Sequential]] = {
    "none": lambda features, hidden, out, batch_norm: nn.Sequential(),
    "linear": _mlp(1),
    "mlp": _mlp(2),
    "mlp3": _mlp(3),
}

# Settings that a head does not use.
UNUSED_BY_HEAD: dict[str, set[str]] = {
    "none": {"hidden_dim", "out_dim", "head_batch_norm"},
    "linear": {"hidden_dim"},
}


class Network(nn.Module):
    """Encoder and head: images (float N x 3 x S x S in [0, 1]) -> (h: N x features, z: N x out_dim).

    Images of another side than `side` are resized. All images are normalised by the `mean` and `std` of each channel,
    which are buffers, so that saved weights include their preprocessing.
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

    @property
    def z_width(self) -> int:
        """The width of z."""
        last = [layer for layer in self.head if isinstance(layer, nn.Linear)][-1:]
        return last[0].out_features if last else self.features

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise the channels of images for the encoder."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def encode(self, images: Tensor, *, resize: bool = True) -> Tensor:
        """The representation h of images of any side, resized with antialiased bilinear weights as crops are.

        Without `resize`, they go through as they are, as local crops do in training.
        """
        if resize and tuple(images.shape[-2:]) != (self.side, self.side):
            images = F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        return self.encoder(self.normalize(images))  # type: ignore[no-any-return]

    def forward(self, images: Tensor, *, resize: bool = True) -> tuple[Tensor, Tensor]:
        h = self.encode(images, resize=resize)
        return h, self.head(h)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """All batch norm layers of a network."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def mixes_images(model: nn.Module) -> bool:
    """Whether the output for an image depends on the rest of its batch.

    It does with batch norm, and with dropout or stochastic depth, whose random numbers are drawn for a whole batch.
    """
    random = (nn.modules.dropout._DropoutNd, StochasticDepth)
    return bool(batch_norms(model)) or any(isinstance(m, random) and m.p > 0 for m in model.modules())


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """A context in which batch norm layers don't update their running statistics."""
    norms = [norm for norm in batch_norms(model) if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def statistics_in_order(model: nn.Module) -> Iterator[None]:
    """A context that makes the running statistics of batch norm independent of the number of processes.

    Inside it, each process updates them with its own share of a batch. At the end, all processes get the statistics
    that a single process would have after all groups of the batch, in order.

    A group with the statistic s changes the running statistic r to k r + (1 - k) s, where k = 1 - momentum. After n
    groups, r has become k^n r plus a sum over the groups that does not depend on r. So the sums of all processes are
    added, each multiplied by k for every group that comes after it.
    """
    used = batch_norms(model) if processes.count() > 1 else []
    norms = [norm for norm in used if norm.training and norm.track_running_stats]
    if not norms:
        yield
        return
    before = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
    yield
    every, later = processes.count(), processes.count() - 1 - processes.rank()
    sums, kept = [], []
    for norm, (*statistics, groups) in zip(norms, before, strict=True):
        assert norm.momentum is not None  # it is for plain averages, which are for evaluations
        *moved, done = norm.buffers()
        keep = (1 - norm.momentum) ** (done - groups).to(moved[0].dtype)
        for now, then in zip(moved, statistics, strict=True):
            sums.append(now.sub_(keep * then).mul_(keep**later))
            kept.append(keep**every * then)
        done.sub_(groups).mul_(every).add_(groups)
    processes.add_up(sums)
    torch._foreach_add_(sums, kept)


def check_finite(x: Tensor) -> Tensor:
    """Return the features (N x D) unchanged. Raises BadSettings if some are not finite, so that no metric uses them."""
    if wrong := int((~x.isfinite()).any(1).sum()):
        raise BadSettings(
            f"the features of {wrong} of {len(x)} images are not finite (nan or infinity): the network diverged, or "
            f"its weights are too large. Use weights from before that, or train with a lower optim.lr"
        )
    return x


def check_spread(images: Tensor, x: Tensor) -> None:
    """Raise BadSettings if different images (N x ...) have features (N x D) that all point in the same direction.

    Neighbours, clusters and classes can't be told apart then, and a map of the features can't be drawn.
    """
    directions = F.normalize(x.float(), dim=1)
    if bool((directions - directions[:1]).abs().max() <= SAME) and bool((images != images[:1]).any()):
        raise BadSettings(
            f"the encoder has collapsed: {len(x)} different images have the same features. Train it for longer or "
            f"with another optim.lr or loss.temperature, or use another encoder"
        )


def parameter_count(module: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())
