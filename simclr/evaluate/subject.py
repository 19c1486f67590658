"""The frozen encoder on a data set that an evaluation is about: its features, its untrained twin, and the protocol's identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simclr.build import build_model
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.data.images import Array
from simclr.device import autocast, resolve_precision, whole_float32
from simclr.evaluate.protocol import Protocol, _hash, identity
from simclr.model import Network
from simclr.progress import SILENT, Observer

STATISTICS = 4096  # images (or up to twice as many) that an untrained network's batch norms are measured on


PIXELS = 2**20  # of the images in a forward pass: 1,024 of 32 px, 20 of 224 px (a quarter of a GiB in ResNet-50)


def represent(model: Network, images: Tensor, layer: str) -> Tensor:
    """The layer's output, N x D, for images N x 3 x S x S in [0, 1]; `pixels`: the normalised pixels themselves."""
    if layer == "pixels":
        return model.normalize(images).flatten(1)
    h = model.encode(images)
    if layer == "h":
        return h
    z: Tensor = model.head(h) if layer == "z" else model.head[: int(layer.removeprefix("head.")) + 1](h)
    return z


def layers(model: Network) -> list[str]:
    """The layers that can be evaluated."""
    return ["h", *(f"head.{n}" for n in range(len(model.head) - 1)), *(["z"] if len(model.head) else [])]


def whole_images(images: Array, rows: Array, model: Network) -> Iterator[Tensor]:
    """The images in `rows`, float n x 3 x S x S in [0, 1], as many at a time as a forward pass can take."""
    size = max(1, PIXELS // model.side**2)
    for start in range(0, len(rows), size):
        yield torch.from_numpy(images[rows[start : start + size]]).to(model.mean.device).float().div_(255)


@torch.no_grad()
def features(model: Network, images: Array, rows: Array, dtype: torch.dtype, layer: str = "h") -> Tensor:
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

    model: Network
    config: Config  # of the encoder's own pre-training: views, batch size, precision
    data: Dataset
    protocol: Protocol
    observer: Observer = SILENT

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


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of all weights and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def random_encoder(subject: Subject) -> Network:
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
