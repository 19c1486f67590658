"""LiDAR: how many directions tell images apart, relative to how much the views of one image differ."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.device import full_float32
from simclr.evaluate.base import Evaluation, Outcome
from simclr.evaluate.label_free import chosen_rows, entropy_rank, pretrained_on
from simclr.evaluate.subject import PIXELS_PER_BATCH, Subject, layer_names
from simclr.model import check_finite
from simclr.settings import MOST_IMAGES, Seed
from simclr.views import apply, draw


def lidar(means: Tensor, within: Tensor, delta: float) -> float:
    """Effective rank of the linear discriminant analysis whose classes are images, from 1 to D.

    `means` (N x D) are the means of the views of each image, and `within` (D x D) is the covariance of views around
    their means, to whose diagonal `delta` is added. Thilak et al. 2023 (arXiv 2312.04000).
    """
    centred = means - means.mean(0)
    root = torch.linalg.cholesky(within + delta * torch.eye(len(within), dtype=within.dtype))
    values = torch.linalg.svdvals(torch.linalg.solve_triangular(root, centred.T, upper=False)).square()
    return entropy_rank(values)


class Lidar(Evaluation):
    """LiDAR of h, and of z if there is a head. The views are those of pre-training.

    The images are validation images, or the pre-training images if there is no validation set.
    """

    section_name = "lidar"
    training_settings = ("augment",)
    needs_labels = False
    uses_test = False
    whole_network = True

    images: int = Field(1000, ge=2, le=MOST_IMAGES)  # largest number of images to use
    views: int = Field(50, ge=2, le=10_000)  # number of views of each image
    delta: float = Field(1e-4, gt=0, le=1)  # added to the variance of the views in each direction, for stability
    seed: Seed = 0  # seed of the choice of images and of their views

    def depends_on(self, config: Config, data: Dataset, device: torch.device) -> dict[str, Any]:  # noqa: ARG002
        """The encoder's own two kinds of views, and the pre-training images, where they are used."""
        return {"views": config.result()["views"][:2]} | pretrained_on(data)

    @torch.no_grad()
    def run(self, subject: Subject) -> Outcome:
        """lidar_h and lidar_z. Only the views of a few images are in memory at once."""
        rows, model, training = chosen_rows(subject, self.images, self.seed), subject.model, subject.model.training
        pipelines = [subject.config.pipelines()[view % 2] for view in range(self.views)]
        draws = [draw(ops, len(rows), self.seed, 0, view) for view, ops in enumerate(pipelines)]
        means: dict[str, list[Tensor]] = {name: [] for name in layer_names(model) if name in ("h", "z")}
        within: dict[str, Tensor] = {}
        size = max(1, PIXELS_PER_BATCH // model.side**2 // self.views)
        model.eval()
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            images = torch.from_numpy(subject.data.images[rows[part]]).to(subject.device)
            views = [
                apply(images, ops, {name: u[part] for name, u in drawn.items()})
                for ops, drawn in zip(pipelines, draws, strict=True)
            ]
            with full_float32():
                outputs = model(torch.cat(views))
            for layer, x in zip(means, outputs, strict=False):  # without a head, z is h
                x = check_finite(x).cpu().double().unflatten(0, (self.views, -1))
                mean = x.mean(0)
                apart = (x - mean).flatten(0, 1)
                means[layer].append(mean)
                within[layer] = within.get(layer, 0.0) + apart.T @ apart
            subject.observer.progress("views for LiDAR", min(start + size, len(rows)), len(rows))
        model.train(training)
        count = len(rows) * self.views
        return Outcome(
            {f"lidar_{name}": lidar(torch.cat(means[name]), within[name] / count, self.delta) for name in means}
        )
