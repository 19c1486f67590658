"""How features of whole images spread over directions: effective rank, and decay of the spectrum (alpha-ReQ)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.evaluate.base import Evaluation, Outcome
from simclr.evaluate.label_free import chosen_rows, effective_rank, pretrained_on
from simclr.evaluate.scaling import covariance
from simclr.evaluate.subject import Subject, features, layer_names
from simclr.settings import MOST_IMAGES, Count, Pair, Seed

ROUNDING = 1e-12  # of the largest eigenvalue; smaller ones follow from the rounding of float32


def _check_ranks(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] >= pair[1]:
        raise ValueError(f"the first rank must be below the second, got {list(pair)}")
    return pair


Ranks = Annotated[Pair[Count], AfterValidator(_check_ranks)]


def spectral_decay(x: Tensor, ranks: tuple[int, int]) -> float:
    """alpha, where the i-th largest eigenvalue of the covariance of x (N x D) is about i to the power of -alpha.

    alpha-ReQ (Agrawal et al. 2022, NeurIPS 35). It is the negative slope of a line through log(i) and log(eigenvalue),
    fitted for the ranks from the first to the second with weights 1 / i, as in the authors' code. It is nan if fewer
    than two of these eigenvalues are above rounding errors. A small alpha means that many directions matter.
    """
    values = torch.linalg.eigvalsh(covariance(x)).flip(0).numpy()
    last = min(ranks[1], int((values > ROUNDING * values[0]).sum()))
    if last <= ranks[0]:
        return math.nan
    rank = np.arange(ranks[0], last + 1)
    slope, _ = np.polyfit(np.log(rank), np.log(values[rank - 1]), 1, w=rank**-0.5)  # the weights of residuals
    return -float(slope)


class Spectrum(Evaluation):
    """Effective rank and decay of the spectrum of h, and of z if there is a head, on whole images without augmentation.

    The images are validation images, or the pre-training images if there is no validation set. The metrics don't depend
    on the views of pre-training, so encoders that were trained with different views can be compared.
    """

    section_name = "spectrum"
    needs_labels = False
    uses_test = False
    whole_network = True

    images: int = Field(5000, ge=2, le=MOST_IMAGES)  # largest number of images to use
    ranks: Ranks = (6, 100)  # first and last rank of the eigenvalues that the decay is fitted to
    seed: Seed = 0  # seed of the choice of images

    def depends_on(self, config: Config, data: Dataset, device: torch.device) -> dict[str, Any]:  # noqa: ARG002
        """The pre-training images, where they are used."""
        return pretrained_on(data)

    def run(self, subject: Subject) -> Outcome:
        """The figures of each layer: spectrum_rank_h (1 to D) and spectrum_alpha_h."""
        rows, metrics = chosen_rows(subject, self.images, self.seed), {}
        for layer in (name for name in layer_names(subject.model) if name in ("h", "z")):
            x = features(subject.model, subject.data.images, rows, torch.float32, layer)
            metrics[f"spectrum_rank_{layer}"] = effective_rank(x)
            metrics[f"spectrum_alpha_{layer}"] = spectral_decay(x, self.ranks)
        return Outcome(metrics)
