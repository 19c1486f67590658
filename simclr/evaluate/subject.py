"""The subject of an evaluation: a frozen encoder on a data set, its features, and its untrained counterpart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from simclr.augment import Crop
from simclr.augmentation import FractionRange
from simclr.build import build_model
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.data.images import Array
from simclr.device import autocast, full_float32, resolve_precision, within_memory
from simclr.evaluate.scaling import SCALINGS, Transform
from simclr.model import Network, batch_norms, check_finite, check_spread
from simclr.progress import SILENT, Observer
from simclr.randomness import uniforms
from simclr.settings import MOST_VALUES, Section, later, one_of

CALIBRATION_IMAGES = 4096  # images (up to twice as many) that set the batch norms of an untrained network
COLLAPSE_IMAGES = 16  # images (or up to twice as many) whose features are compared to notice a collapse
PIXELS_PER_BATCH = 2**20  # 1,024 images of 32 px or 20 of 224 px, which take a quarter of a GiB in ResNet-50


class Crops(Section):
    """Random crops of each image, whose features are averaged (EMP-SSL, arXiv 2304.03977), instead of the whole image.

    Tables never mix results under such a protocol with those of whole images.
    """

    count: int = Field(10, ge=1, le=MOST_VALUES)  # number of crops of each image
    scale: FractionRange = (0.2, 1.0)  # area as a fraction of the image


class BaseProtocol(Section):
    """The part of a protocol that doesn't depend on which evaluations exist. `Protocol` adds a table for each."""

    version: Literal[3] = 3  # version of the protocol, increased when the meaning of a metric changes
    layer: str = "h"  # layer to evaluate: h, z, or head.N, the output of module N of the head
    # Images that accuracies are measured on. With val, classifiers are fitted on the training images alone.
    on: Literal["test", "val"] = "test"
    # Average features over random crops, for evaluations that only read features (default: whole images).
    crops: Crops | None = later(None)
    # Scaling of features before they are classified: none (raw), standardised or whitened, by the statistics of the
    # training images.
    features: Annotated[str, one_of("scaling of features", lambda: SCALINGS)] = "raw"


def represent(model: Network, images: Tensor, layer: str) -> Tensor:
    """Output of a layer (N x D) for images (N x 3 x S x S, in [0, 1]). `pixels` gives the normalised pixels."""
    if layer == "pixels":
        return model.normalize(images).flatten(1)
    h = model.encode(images)
    if layer == "h":
        return h
    z: Tensor = model.head(h) if layer == "z" else model.head[: int(layer.removeprefix("head.")) + 1](h)
    return z


def layer_names(model: Network) -> list[str]:
    """Names of the layers that can be evaluated."""
    return ["h", *(f"head.{n}" for n in range(len(model.head) - 1)), *(["z"] if len(model.head) else [])]


def batch_of(model: Network, pixels: int = PIXELS_PER_BATCH) -> int:
    """The number of a network's images that have this many pixels in total, at least one."""
    return max(1, pixels // model.side**2)


def whole_images(images: Array, rows: Array, model: Network, size: int | None = None) -> Iterator[Tensor]:
    """The images in `rows` (float n x 3 x S x S, in [0, 1]), in batches that fit into a forward pass, or of a size."""
    size = size or batch_of(model)
    for start in range(0, len(rows), size):
        yield torch.from_numpy(images[rows[start : start + size]]).to(model.mean.device).float().div_(255)


@torch.no_grad()
def features(
    model: Network,
    images: Array,
    rows: Array,
    dtype: torch.dtype,
    layer: str = "h",
    change: Callable[[Tensor, slice], Tensor] = lambda batch, place: batch,
    keep: torch.device | None = None,
) -> Tensor:
    """Output of a layer for the whole images in `rows`, without augmentation: float32 N x D on the model's device.

    `change` makes other images of a batch, given its place in `rows`, and `keep` is another device for the result. If
    a batch doesn't fit into memory, half of it goes through at a time. Raises BadSettings if a feature is not finite.
    """
    device, training = model.mean.device, model.training

    def in_batches(size: int) -> Tensor:
        out, done = torch.empty(0, 0), 0
        for batch in whole_images(images, rows, model, size):
            with autocast(device, dtype), full_float32():
                x = represent(model, change(batch, slice(done, done + len(batch))), layer)
            if not done:
                out = torch.empty(len(rows), x.shape[1], device=keep or device)
            out[done : done + len(x)] = x
            done += len(x)
        return out

    model.eval()
    out = within_memory(in_batches, batch_of(model))
    model.train(training)
    return check_finite(out)


def crop_features(model: Network, images: Array, rows: Array, crops: Crops, layer: str = "h") -> Tensor:
    """Means of a layer's outputs over random crops of the images in `rows`, of the side of the views: float32 N x D."""
    crop = Crop(scale=crops.scale)

    def of_round(number: int) -> Tensor:
        u = uniforms((len(rows), crop.draws), 0, "averaged crops", number)
        change = lambda batch, place: crop(batch, u[place], model.side)  # noqa: E731
        return features(model, images, rows, torch.float32, layer, change)

    return sum(map(of_round, range(1, crops.count)), of_round(0)) / crops.count


@dataclass(frozen=True)
class Subject:
    """A frozen encoder on a data set. Features are computed when they are first used, and kept."""

    model: Network
    config: Config  # of the encoder's pre-training: its views, batch size and precision
    data: Dataset
    protocol: BaseProtocol
    observer: Observer = SILENT

    @property
    def device(self) -> torch.device:
        return self.model.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """The autocast dtype for classifiers trained by SGD. It is the one of pre-training."""
        return resolve_precision(self.config.train.precision, self.device)

    def labels(self, part: str) -> Tensor:
        """Class of each image of a part, on the device."""
        return torch.from_numpy(self.data.labels[self.data.parts[part]]).to(self.device)

    def _features(self, part: str) -> Tensor:
        layer, crops, rows = self.protocol.layer, self.protocol.crops, self.data.parts[part]
        if crops is None:
            return features(self.model, self.data.images, rows, torch.float32, layer)
        return crop_features(self.model, self.data.images, rows, crops, layer)

    def _part(self, part: str) -> tuple[Tensor, Tensor]:
        if not len(self.data.parts[part]):
            return self.train[0][:0], self.train[1][:0]
        return self.scale(self._features(part)), self.labels(part)

    @cached_property
    def _fitted(self) -> tuple[Transform, Tensor]:
        """What scales features as the protocol says, and the scaled features of the training images."""
        x = self._features("train")
        scale = SCALINGS[self.protocol.features](x)
        return scale, scale(x)

    @property
    def scale(self) -> Transform:
        """Scales features (N x D) as the protocol says, by the statistics of those of the training images."""
        return self._fitted[0]

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        """Features and labels of the training images."""
        return self._fitted[1], self.labels("train")

    @cached_property
    def val(self) -> tuple[Tensor, Tensor]:
        """Features and labels of the validation images."""
        return self._part("val")

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Features and labels of the test images."""
        return self._part("test")


def check_collapse(subject: Subject) -> None:
    """Raise BadSettings if an encoder gives different images the same features, or features that are not finite."""
    rows = subject.data.parts["pretrain"]
    rows = rows[:: max(1, len(rows) // COLLAPSE_IMAGES)]
    images = subject.data.images[rows]
    x = features(subject.model, images, np.arange(len(rows)), torch.float32, subject.protocol.layer)
    check_spread(torch.from_numpy(images), x.cpu())


def hash_rows(*rows: Array) -> str:
    """A hash of row numbers, for identities."""
    return hashlib.blake2b(b"".join(r.tobytes() for r in rows), digest_size=8).hexdigest()


def model_fingerprint(model: torch.nn.Module) -> str:
    """A hash of all weights and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def random_encoder(subject: Subject) -> Network:
    """The untrained network of a subject's config, with batch-norm statistics measured on training images.

    Without those statistics the activations of a deep untrained network grow without bound, and the comparison would
    flatter training.
    """
    data, model = subject.data, build_model(subject.config, subject.data, subject.device).eval()
    model.mean.copy_(subject.model.mean)  # the encoder's own normalisation, also on another data set
    model.std.copy_(subject.model.std)
    if subject.config.model.stem == "whitening":  # which belongs to the normalisation, and isn't trained
        model.encoder.conv1.load_state_dict(subject.model.encoder.conv1.state_dict())  # type: ignore[union-attr]
    norms = batch_norms(model.encoder)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = None  # a plain average over the batches, including a smaller last one
    rows = data.parts["pretrain"]
    for batch in whole_images(data.images, rows[:: max(1, len(rows) // CALIBRATION_IMAGES)], model):
        if len(batch) > 1 or 2 * model.side**2 > PIXELS_PER_BATCH:  # one small image has no statistics of its own
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
