"""Figures that need no labels: how close two views of an image are, and how the images spread on the unit sphere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.data.images import Array
from simclr.device import full_float32, within_memory
from simclr.errors import UserError
from simclr.evaluate.base import Evaluation, Outcome
from simclr.evaluate.subject import Subject, batch_of, hash_rows, layer_names
from simclr.methods.ntxent import contrast, contrastive_accuracy, contrastive_entropy, similarities
from simclr.methods.simclr import LossConfig
from simclr.model import check_finite
from simclr.randomness import permutation
from simclr.settings import MOST_IMAGES, Seed
from simclr.views import batch_views

BLOCK = 1024  # rows in a block of distances


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance between two views of an image on the unit sphere, in [0, 4]. Both are N x D.

    Wang & Isola 2020 (arXiv 2005.10242), equation 4 with alpha = 2. Lower means closer.
    """
    return (F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean().item()


def uniformity(x: Tensor) -> float:
    """Log of the mean of exp(-2 |a - b|^2) over all pairs of different rows of x (N x D), in [-8, 0].

    The rows are first projected to the unit sphere. Wang & Isola 2020, equation 5 with t = 2. Lower means more even.
    """
    x, total = F.normalize(x.cpu().double(), dim=1), 0.0
    squares = x.square().sum(1)  # 1, but 0 for a row of zeros, which dead units give
    for block, own in zip(x.split(BLOCK), squares.split(BLOCK), strict=True):
        total += ((2 * block @ x.T - own[:, None] - squares) * 2).exp().sum().item()
    return math.log((total - len(x)) / (len(x) * (len(x) - 1)))  # every row paired with itself added 1


def effective_rank(x: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of x (N x D), from 1 to D. Low means collapse.

    RankMe (Garrido et al. 2023, arXiv 2210.02885, equation 1).
    """
    values = torch.linalg.svdvals(x.cpu().double())
    return entropy_rank(values)


def entropy_rank(values: Tensor) -> float:
    """How many of some numbers (all at least 0) matter: the exponential of the entropy of their shares."""
    shares = values / values.sum().clamp(min=1e-300) + 1e-7  # RankMe's epsilon; all zeros give the minimum of 1
    return math.exp(-(shares * shares.log()).sum().item())


def own_rows(subject: Subject) -> Array:
    """Validation images, or the pre-training images if there is no validation set."""
    parts = subject.data.parts
    return parts["val"] if len(parts["val"]) else parts["pretrain"]


def chosen_rows(subject: Subject, most: int, seed: int) -> Array:
    """Up to `most` of `own_rows`, in a random order.

    Raises UserError if there are fewer than two.
    """
    rows = own_rows(subject)
    rows = rows.take(permutation(len(rows), seed, "geometry").numpy()[:most])
    if len(rows) < 2:
        raise UserError(f"label-free metrics need at least two images, but there are {len(rows)}: add images")
    return rows


def pretrained_on(data: Dataset) -> dict[str, str]:
    """What a protocol's identity says of the pre-training images: their hash, if `chosen_rows` chooses among them."""
    return {} if len(data.parts["val"]) else {"pretrain": hash_rows(data.parts["pretrain"])}


class LabelFree(Evaluation):
    """Contrastive top-1 and top-5 accuracy, alignment, uniformity and effective rank, of h and of z if there is a head.

    For SimCLR, also contrastive accuracy and entropy with the similarity of its loss (paper, Table 5).

    They compare two views of each image, augmented as in pre-training. The images are validation images, or the
    pre-training images if there is no validation set. The batch size is that of pre-training, because contrastive
    accuracy depends on the number of candidates, 2N - 1.
    """

    section_name = "views"
    needs_labels = False
    uses_test = False
    whole_network = True
    prefixes = ("contrastive_", "softmax_", "alignment_", "uniformity_", "effective_rank_")
    training_settings = ("augment", "train.batch_size")

    images: int = Field(5000, ge=2, le=MOST_IMAGES)  # largest number of images to use
    seed: Seed = 0  # seed of the choice of images and of their views

    def chance(self, subject: Subject) -> tuple[dict[str, float], int]:
        """Contrastive accuracy of guessing among the 2N - 1 candidates, and the number of images compared."""
        rows, batch = self._rows(subject)
        return {f"top{k}": min(1.0, k / (2 * batch - 1)) for k in (1, 5)}, len(rows)

    def depends_on(self, config: Config, data: Dataset, device: torch.device) -> dict[str, Any]:  # noqa: ARG002
        """The encoder's own views and batch size, and the pre-training images, which may be the ones compared."""
        pretrain = hash_rows(data.parts["pretrain"])
        return {"batch": config.train.batch_size, "views": config.result()["views"][:2], "pretrain": pretrain}

    def _rows(self, subject: Subject) -> tuple[Array, int]:
        """Rows of the images to compare, in whole batches, and the batch size."""
        rows = chosen_rows(subject, self.images, self.seed)
        batch = min(subject.config.train.batch_size, len(rows))
        return rows[: len(rows) // batch * batch], batch

    @torch.no_grad()
    def run(self, subject: Subject) -> Outcome:
        """Compute the figures."""
        rows, batch = self._rows(subject)
        training = subject.model.training
        subject.model.eval()
        size = min(batch, batch_of(subject.model))
        outputs = within_memory(lambda size: self._outputs(subject, rows, batch, size), size)
        subject.model.train(training)
        metrics: dict[str, float] = {}
        for layer, views in outputs.items():
            first, second = check_finite(views)
            batches = views.split(batch, dim=1)
            top = torch.stack([contrast(pair, temperature=1.0)[1] for pair in batches]).mean(0).tolist()
            metrics |= {
                f"contrastive_{layer}_top1": top[0],
                f"contrastive_{layer}_top5": top[1],
                f"alignment_{layer}": alignment(first, second),
                f"uniformity_{layer}": uniformity(first),
                f"effective_rank_{layer}": effective_rank(first),
            }
        if isinstance(loss := subject.config.method_settings(), LossConfig):
            tops, entropies = [], []
            for pair in outputs.get("z", outputs["h"]).split(batch, dim=1):
                matrix = similarities(pair, normalize=loss.normalize)
                tops.append(contrastive_accuracy(matrix)[0].item())
                entropies.append(contrastive_entropy(matrix, loss.temperature))
            metrics |= {"contrastive_own_top1": float(np.mean(tops)), "softmax_entropy": float(np.mean(entropies))}
        return Outcome(metrics, used=(len(rows), len(own_rows(subject))))

    def _outputs(self, subject: Subject, rows: Array, batch: int, size: int) -> dict[str, Tensor]:
        """h, and z if there is a head, of two views of the images in `rows` (2 x N x D), `size` images at a time."""
        model, pieces = subject.model, []
        for step, start in enumerate(range(0, len(rows), batch)):
            images = torch.from_numpy(subject.data.images[rows[start : start + batch]]).to(subject.device)
            views = batch_views(images, subject.config.pipelines()[:2], self.seed, step)
            for first in range(0, batch, size):
                with full_float32():
                    pieces.append([model(view) for view in views(slice(first, first + size))])
        layers = [layer for layer in layer_names(model) if layer in ("h", "z")]  # without a head, z is h
        both = [[torch.cat(parts) for parts in zip(*view, strict=True)] for view in zip(*pieces, strict=True)]
        return {layer: torch.stack(views) for layer, *views in zip(layers, *both, strict=False)}
