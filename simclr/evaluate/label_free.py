"""Figures that need no labels: how two views of an image lie to each other, and all images on the sphere."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr.data.images import Array
from simclr.device import whole_float32
from simclr.errors import UserError
from simclr.evaluate.subject import Outcome, Subject, layers
from simclr.methods.ntxent import contrast
from simclr.randomness import permutation
from simclr.views import two_views

BLOCK = 1024  # rows of a block of distances


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of the two views of an image on the unit sphere, in [0, 4]; both N x D.

    Wang & Isola 2020 (arXiv 2005.10242), equation 4 with alpha = 2. Lower is closer.
    """
    return (F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean().item()


def uniformity(x: Tensor) -> float:
    """log of the mean of exp(-2 |a - b|^2) over all pairs of different rows on the unit sphere, in [-8, 0]; N x D.

    Wang & Isola 2020, equation 5 with t = 2. Lower is more evenly spread.
    """
    x, total = F.normalize(x.cpu().double(), dim=1), 0.0
    squares = x.square().sum(1)  # 1; of a row of zeros, as dead units give, 0
    for block, own in zip(x.split(BLOCK), squares.split(BLOCK), strict=True):
        total += ((2 * block @ x.T - own[:, None] - squares) * 2).exp().sum().item()
    return math.log((total - len(x)) / (len(x) * (len(x) - 1)))  # a row with itself counts 1


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values' shares, from 1 to D; N x D.

    RankMe (Garrido et al. 2023, arXiv 2210.02885, equation 1). Low in a collapsed representation.
    """
    values = torch.linalg.svdvals(x.cpu().double())
    shares = values / values.sum().clamp(min=1e-300) + 1e-7  # the paper's epsilon; zeros have rank 1, their least
    return math.exp(-(shares * shares.log()).sum().item())


def _looked_at(subject: Subject) -> tuple[Array, int]:
    """Rows of the images that two views are made of, in whole batches, and the size of a batch."""
    data, settings = subject.data, subject.protocol.views
    rows = data.parts["val"] if len(data.parts["val"]) else data.parts["pretrain"]
    rows = rows[permutation(len(rows), settings.seed, "geometry").numpy()[: settings.images]]
    if len(rows) < 2:
        raise UserError(f"{len(rows)} image to look at: figures without labels need two or more")
    batch = min(subject.config.train.batch_size, len(rows))
    return rows[: len(rows) // batch * batch], batch


def random_matches(subject: Subject) -> tuple[dict[str, float], int]:
    """Contrastive accuracy of guessing among the 2N - 1 candidates, top-1 and top-5; and how many images it is of."""
    rows, batch = _looked_at(subject)
    return {f"top{k}": min(1.0, k / (2 * batch - 1)) for k in (1, 5)}, len(rows)


@torch.no_grad()
def geometry(subject: Subject) -> Outcome:
    """Contrastive top-1 and top-5, alignment, uniformity and effective rank; of h and, where there is a head, of z.

    Two views as in pre-training, of validation images (of the images pre-trained on, where none were held out), in
    batches of pre-training's size, which contrastive accuracy depends on: the candidates are 2N - 1.
    """
    data, config, settings = subject.data, subject.config, subject.protocol.views
    rows, batch = _looked_at(subject)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {
        layer: [] for layer in layers(subject.model) if layer in ("h", "z")
    }
    model, training = subject.model, subject.model.training
    model.eval()
    for step, start in enumerate(range(0, len(rows), batch)):
        images = torch.from_numpy(data.images[rows[start : start + batch]]).to(subject.device)
        with whole_float32():
            both = [model(view) for view in two_views(images, config.pipelines(), settings.seed, step)(slice(None))]
        for layer, first, second in zip(found, *both, strict=False):  # without a head z is h
            found[layer].append((first, second))
    model.train(training)
    metrics: dict[str, float] = {}
    for layer, batches in found.items():
        top = torch.stack([contrast(*pair, temperature=1.0)[1] for pair in batches]).mean(0).tolist()
        first, second = (torch.cat(view) for view in zip(*batches, strict=True))
        metrics |= {
            f"contrastive_{layer}_top1": top[0],
            f"contrastive_{layer}_top5": top[1],
            f"alignment_{layer}": alignment(first, second),
            f"uniformity_{layer}": uniformity(first),
            f"effective_rank_{layer}": effective_rank(first),
        }
    return Outcome(metrics, {})
