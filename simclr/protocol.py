"""What the figures of an evaluation mean, and the frozen encoder on a data set that they are of.

Choices (L2, learning rates) are made on validation; the test set is used once. In kNN and the linear classifier the
validation images then join the training images; fine-tuning keeps them apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, Field, ValidationError
from torch import Tensor

from .augment import Fractions
from .config import Config, Count, Section, merge, nested, parse_setting, readable
from .data import Array, Dataset, Progress, silent
from .device import autocast, resolve_precision, whole_float32
from .model import SimCLR, build_model

STATISTICS = 4096  # images (or up to twice as many) that an untrained network's batch norms are measured on
PIXELS = 2**20  # of the images in a forward pass: 1,024 of 32 px, 20 of 224 px (a quarter of a GiB in ResNet-50)
IN_NAMES = ("k", "fractions")  # settings of which each has figures of its own, named by it

Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]


class Knn(Section):
    """Votes of the k nearest by cosine similarity, each weighted by exp(similarity / temperature)."""

    k: Annotated[tuple[Count, ...], Field(min_length=1)] = (200,)
    temperature: float = Field(0.1, gt=0)


class Linear(Section):
    """Multinomial logistic regression by L-BFGS; L2 values log-spaced between two bounds (paper, B.8.1)."""

    standardise: bool = True
    l2_max: float = Field(1e5, gt=0)
    l2_min: float = Field(1e-6, gt=0)
    l2_values: int = Field(45, ge=1)

    def grid(self) -> list[float]:
        """Of the penalty on the sum of the cross-entropies, strongest first."""
        grid: list[float] = np.geomspace(self.l2_max, self.l2_min, self.l2_values).tolist()
        return grid


class Sgd(Section):
    """A classifier trained by SGD with Nesterov momentum .9, no weight decay, cosine decay, random crop and flip."""

    lr: Rates = (0.1,)  # for a batch of 256, scaled linearly; of several, the best on validation
    epochs: Count = 90  # paper, B.6
    min_steps: Count = 1
    batch_size: int = Field(256, ge=2)
    crop: Fractions = (0.08, 1.0)  # area of the random crop as a fraction of the image
    head: Literal["linear", "mlp"] = "linear"  # mlp: features -> features -> classes, with a ReLU


def _once_each(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) < len(values):
        raise ValueError("expected each value once")
    return values


class Finetune(Sgd):
    """Encoder and classifier trained together on some of the labels (paper, B.5, where the rate is .05 at 256)."""

    lr: Rates = (0.01, 0.05, 0.2)
    epochs: Count = 30
    min_steps: Count = 200  # so that 1 % of the labels are not left after a handful of steps
    seeds: Count = 3  # of the labels that are picked, the classifier's weights, the order and the crops
    fractions: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1), AfterValidator(_once_each)
    ] = (0.01, 0.1, 1.0)


class Views(Section):
    """Figures without labels, of two views of validation images (training images where there is no validation)."""

    images: int = Field(5000, ge=2)
    seed: int = Field(0, ge=0)


class Protocol(Section):
    """How encoders are judged: frozen, versioned, written beside every figure."""

    version: Literal[3] = 3  # a change in what any figure means gives a new number
    layer: str = "h"  # h, z, or head.N: the output of module N of the head
    knn: Knn = Knn()
    linear: Linear = Linear()
    linear_sgd: Sgd = Sgd()
    finetune: Finetune = Finetune()
    views: Views = Views()


def make_protocol(settings: list[str], **changes: object) -> Protocol:
    """The protocol with settings changed: `knn.k=[20,200]`. Raises UserError for what is not valid."""
    table: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    for text in settings:
        table = merge(table, nested(*parse_setting(text)))
    try:
        return Protocol.model_validate(table)
    except ValidationError as error:
        raise readable(error, Protocol) from None


def represent(model: SimCLR, images: Tensor, layer: str) -> Tensor:
    """The layer's output, N x D, for images N x 3 x S x S in [0, 1]; `pixels`: the normalised pixels themselves."""
    if layer == "pixels":
        return model.normalize(images).flatten(1)
    h = model.encode(images)
    if layer == "h":
        return h
    z: Tensor = model.head(h) if layer == "z" else model.head[: int(layer.removeprefix("head.")) + 1](h)
    return z


def layers(model: SimCLR) -> list[str]:
    """The layers that can be evaluated."""
    return ["h", *(f"head.{n}" for n in range(len(model.head) - 1)), *(["z"] if len(model.head) else [])]


def whole_images(images: Array, rows: Array, model: SimCLR) -> Iterator[Tensor]:
    """The images in `rows`, float n x 3 x S x S in [0, 1], as many at a time as a forward pass can take."""
    size = max(1, PIXELS // model.side**2)
    for start in range(0, len(rows), size):
        yield torch.from_numpy(images[rows[start : start + size]]).to(model.mean.device).float().div_(255)


@torch.no_grad()
def features(model: SimCLR, images: Array, rows: Array, dtype: torch.dtype, layer: str = "h") -> Tensor:
    """A layer's output for the images in `rows` (whole, not augmented): float32 N x D on the model's device."""
    device, training = model.mean.device, model.training
    out, done = torch.empty(0, 0), 0
    model.eval()
    for batch in whole_images(images, rows, model):
        with autocast(device, dtype), whole_float32():
            x = represent(model, batch, layer)
        if not done:
            out = torch.empty(len(rows), x.shape[1], device=device)
        out[done : done + len(x)] = x
        done += len(x)
    model.train(training)
    return out


class Outcome(NamedTuple):
    """Metrics by name (accuracies, in [0, 1], end in _top1 or _top5), and predicted classes of the test images."""

    metrics: dict[str, float]
    predictions: dict[str, Tensor]  # by the accuracy that they are of
    shares: dict[str, Tensor] = {}  # noqa: RUF012  of a mean over seeds: the share of them that got each image right


@dataclass(frozen=True)
class Subject:
    """A frozen encoder on a data set; features are computed when they are first asked for."""

    model: SimCLR
    config: Config  # of the encoder's own pre-training: views, batch size, precision
    data: Dataset
    protocol: Protocol
    progress: Progress = silent

    @property
    def device(self) -> torch.device:
        return self.model.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Of autocast where a classifier is trained by SGD: as in pre-training."""
        return resolve_precision(self.config.train.precision, self.device)

    def labels(self, part: str) -> Tensor:
        """Class of each image of a part, on the device."""
        return torch.from_numpy(self.data.labels[self.data.parts[part]]).to(self.device)

    def _part(self, part: str) -> tuple[Tensor, Tensor]:
        rows = self.data.parts[part]
        return features(self.model, self.data.images, rows, torch.float32, self.protocol.layer), self.labels(part)

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        """Features and labels."""
        return self._part("train")

    @cached_property
    def val(self) -> tuple[Tensor, Tensor]:
        """Features and labels."""
        return self._part("val")

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Features and labels."""
        return self._part("test")

    def identity(self, sections: tuple[str, ...]) -> str:
        """Version and a short hash of all that a figure depends on beside the encoder: equal ones may be compared."""
        more: dict[str, Any] = {}
        if "views" in sections:  # views are made by the encoder's own pipelines, and compared in its own batches
            config, rows = self.config, self.data.parts["pretrain"]  # whose images are used where none are held out
            more = {"batch": config.train.batch_size, "views": config.result()["views"], "pretrain": _hash(rows)}
        if {"linear_sgd", "finetune"} & set(sections):
            more = {"dtype": str(self.dtype)}
        return identity(self.protocol, self.data, self.model.side, sections, more)


def _hash(*rows: Array) -> str:
    return hashlib.blake2b(b"".join(r.tobytes() for r in rows), digest_size=8).hexdigest()


def describe(protocol: Protocol, data: Dataset) -> dict[str, Any]:
    """A protocol in full, with the images that it is applied to."""
    rows = {part: data.parts[part] for part in ("train", "val", "test")}
    about = {"name": data.name, "digest": data.digest, "side": data.side, "split": _hash(*rows.values())}
    return protocol.model_dump(mode="json") | {
        "data": about | {part: len(r) for part, r in rows.items()},
        "images": "whole, of the side of the views, normalised as in pre-training, not augmented; features in float32",
        "distance": "cosine",
    }


def identity(protocol: Protocol, data: Dataset, side: int, sections: tuple[str, ...], more: Mapping[str, Any]) -> str:
    """See Subject.identity; `side` is what the network sees, `more` what a figure depends on beside the protocol's
    sections and the images."""
    whole = describe(protocol, data)
    if side != data.side:
        more = {**more, "side": side}
    read: dict[str, Any] = {key: whole[key] for key in ("version", "layer", "data")} | {"more": more}
    for section in sections:
        read[section] = {key: value for key, value in whole[section].items() if key not in IN_NAMES}
    digest = hashlib.blake2b(json.dumps(read, sort_keys=True).encode(), digest_size=3).hexdigest()
    return f"{protocol.version}-{digest}"


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of all weights and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def random_encoder(subject: Subject) -> SimCLR:
    """The untrained network of a subject's config, its encoder's batch norms with the statistics of training images.

    Without those, activations of a deep untrained network leave all range, and the comparison would flatter training.
    """
    data, model = subject.data, build_model(subject.config, subject.data, subject.device).eval()
    model.mean.copy_(subject.model.mean)  # on another data set: the encoder's, not that one's
    model.std.copy_(subject.model.std)
    norms = [m for m in model.encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = None  # a plain average over the batches, a last and smaller one among them
    rows = data.parts["pretrain"]
    for batch in whole_images(data.images, rows[:: max(1, len(rows) // STATISTICS)], model):
        if len(batch) > 1 or 2 * model.side**2 > PIXELS:  # a small image left over has no statistics of its own
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
