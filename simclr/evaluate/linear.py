"""Logistic regression on frozen features."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from simclr.errors import UserError
from simclr.evaluate.base import Evaluation, Outcome, accuracies, accuracy
from simclr.evaluate.scaling import Transform, standardising, unchanged
from simclr.evaluate.subject import BaseProtocol, Subject
from simclr.progress import SILENT, Observer
from simclr.settings import MOST_VALUES

MAX_ITERATIONS = 200  # of L-BFGS in one fit
PATH_TOLERANCE = 1e-4  # for the fits that only select the L2 value; scikit-learn's default


Penalty = Annotated[float, Field(gt=0, le=1e20)]  # with more, its square overflows in float32


class Linear(Evaluation):
    """Multinomial logistic regression by L-BFGS. L2 values are log-spaced between two bounds (paper, B.8.1).

    The L2 value is chosen on validation; the classifier is then fitted on training and validation images together.
    """

    section_name = "linear"
    takes_crops = True
    scales_features = True

    standardise: bool = True  # whether each feature is scaled to mean 0 and deviation 1 over the training images
    l2_max: Penalty = 1e5  # largest penalty to try
    l2_min: Penalty = 1e-6  # smallest penalty to try
    # Number of penalties to try; the best on validation is used.
    l2_values: int = Field(45, ge=1, le=MOST_VALUES)

    @model_validator(mode="after")
    def _check_range(self) -> Linear:
        if self.l2_min > self.l2_max:
            raise ValueError(f"linear.l2_min = {self.l2_min:g} must not exceed linear.l2_max = {self.l2_max:g}")
        return self

    def grid(self) -> list[float]:
        """Factors of the L2 penalty on the sum of the cross-entropies, strongest first."""
        grid: list[float] = np.geomspace(self.l2_max, self.l2_min, self.l2_values).tolist()
        return grid

    def check(self, subject: Subject) -> None:
        """Raise UserError if features would be standardised twice, which changes nothing."""
        if self.standardise and subject.protocol.features == "standardised":
            raise UserError(
                "features = standardised has no effect on the linear classifier, which standardises features itself: "
                "leave it out, or choose evaluations without that classifier, such as --knn"
            )

    def chooses(self, protocol: BaseProtocol) -> str:  # noqa: ARG002
        fixed = "which --set linear.l2_values=1 --set linear.l2_max=1 fixes"
        return f"the L2 penalty ({fixed}) of the linear classifier" if self.l2_values > 1 else ""

    def run(self, subject: Subject) -> Outcome:
        """Test accuracy, and the L2 value that was chosen."""
        train, val, test = subject.train, subject.val, subject.test
        prepare = preprocessing(self, train[0])
        x, held_out, queries = prepare(train[0]), prepare(val[0]), prepare(test[0])
        classes = len(subject.data.classes)
        weights, l2 = fit_linear(x, train[1], held_out, val[1], classes, self, subject.observer)
        outcome = accuracies(logits(queries, weights), test[1], "linear")
        return outcome._replace(metrics=outcome.metrics | {"linear_l2": l2})

    def validation_accuracy(self, subject: Subject) -> float:
        """Accuracy on validation of the classifier fitted on train, at the best L2 value. Searches may look at it."""
        train, val = subject.train, subject.val
        prepare = preprocessing(self, train[0])
        x, held_out = prepare(train[0]), prepare(val[0])
        return choose_l2(x, train[1], held_out, val[1], len(subject.data.classes), self, subject.observer)[0]


def preprocessing(settings: Linear, train: Tensor) -> Transform:
    """Standardises features if the settings ask for it, and rotates them to the principal axes of some (N x D).

    Fits converge faster there. The rotation changes no accuracy, because the L2 penalty is invariant to it.
    """
    scale = standardising(train) if settings.standardise else unchanged(train)
    scaled = scale(train)
    axes = torch.linalg.eigh(scaled.T @ scaled)[1]
    return lambda x: scale(x) @ axes


def logits(x: Tensor, weights: Tensor) -> Tensor:
    """Scores of a linear classifier. The last row of `weights` ((D + 1) x classes) is the bias."""
    return torch.addmm(weights[-1], x, weights[:-1])


def fit_logistic(x: Tensor, y: Tensor, start: Tensor, l2: float, tolerance: float = 1e-6) -> Tensor:
    """Fit multinomial logistic regression by L-BFGS, from the weights `start`.

    Returns the weights ((D + 1) x classes) that minimise the sum of the cross-entropies + l2 / 2 * |weights without
    bias|^2. scikit-learn's C is 1 / l2. `tolerance` bounds the largest derivative of the mean cross-entropy.

    Each weight is searched in units in which its curvature is about one, that of a model for which all classes are
    equally likely. If the columns of `x` are uncorrelated, this takes far fewer steps. The gradient is written out with
    classes as rows. On a CPU this is five times as fast as autograd, which spends most of its time on x.T @ (N x
    classes) and on a softmax along short rows.
    """
    n, classes, rows = len(x), start.shape[1], torch.arange(len(x), device=x.device)
    curvature = torch.cat([x.square().mean(0), x.new_ones(1)]) * (1 - 1 / classes) / classes
    curvature[:-1] += l2 / n
    unit = curvature.clamp(min=1e-6 * curvature.max().item()).rsqrt()
    weights = start.T / unit
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=MAX_ITERATIONS, history_size=20, tolerance_grad=tolerance, line_search_fn="strong_wolfe"
    )

    @torch.no_grad()
    def closure() -> Tensor:
        slope, bias = (weights * unit).split([x.shape[1], 1], dim=1)
        scores = torch.addmm(bias.T, x, slope.T).T.contiguous()  # classes x N
        total = scores.logsumexp(0)
        loss: Tensor = (total - scores[y, rows]).mean() + l2 / (2 * n) * slope.square().sum()
        residual = (scores - total).exp_()
        residual[y, rows] -= 1
        gradient = torch.cat([residual @ x + l2 * slope, residual.sum(1, keepdim=True)], 1) / n
        weights.grad = gradient * unit
        return loss

    optimizer.step(closure)
    fitted: Tensor = (weights * unit).T
    return fitted


def choose_l2(
    train: Tensor,
    train_labels: Tensor,
    val: Tensor,
    val_labels: Tensor,
    classes: int,
    settings: Linear,
    observer: Observer = SILENT,
) -> tuple[float, float, Tensor]:
    """Return the best validation accuracy over the L2 values, that L2 value, and its weights fitted on train.

    The grid runs from strong to weak penalties. Each fit starts at the linear extrapolation of the two before it. If
    accuracies are equal, the strongest penalty wins.
    """
    grid, weights = settings.grid(), train.new_zeros(train.shape[1] + 1, classes)
    before = best_weights = weights
    best, chosen = -1.0, grid[0]
    for done, l2 in enumerate(grid, 1):
        before, weights = weights, fit_logistic(train, train_labels, 2 * weights - before, l2, tolerance=PATH_TOLERANCE)
        score = accuracy(logits(val, weights), val_labels)
        if score > best:
            best, chosen, best_weights = score, l2, weights
        observer.progress("linear classifier", done, len(grid))
    return best, chosen, best_weights


def fit_linear(
    train: Tensor,
    train_labels: Tensor,
    val: Tensor,
    val_labels: Tensor,
    classes: int,
    settings: Linear,
    observer: Observer = SILENT,
) -> tuple[Tensor, float]:
    """Choose the L2 value on validation, then fit on train and validation. Returns the weights and the value."""
    _, l2, weights = choose_l2(train, train_labels, val, val_labels, classes, settings, observer)
    both, labels = torch.cat([train, val]), torch.cat([train_labels, val_labels])
    return fit_logistic(both, labels, weights, l2), l2
