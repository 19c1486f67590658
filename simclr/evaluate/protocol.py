"""What the figures of an evaluation mean, and the frozen encoder on a data set that they are of.

Choices (L2, learning rates) are made on validation; the test set is used once. In kNN and the linear classifier the
validation images then join the training images; fine-tuning keeps them apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError

from simclr.augment import Fractions
from simclr.data.dataset import Dataset
from simclr.data.images import Array
from simclr.settings import Count, Section, merge, nested, parse_setting, readable

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
