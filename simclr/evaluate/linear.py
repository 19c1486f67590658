"""Logistic regression on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

from simclr.evaluate.protocol import Linear
from simclr.evaluate.subject import Outcome, Subject
from simclr.progress import SILENT, Observer

ITERATIONS = 200  # at most, of a fit


PATH = 1e-4  # tolerance of the fits that only choose the L2 value; as scikit-learn's default


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """All of them shifted and scaled by the mean and standard deviation of each column of the first."""
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.max(), std, 1.0)  # a constant column carries nothing
    return [(x - mean) / std for x in (train, *others)]


def logits(x: Tensor, weights: Tensor) -> Tensor:
    """Scores of a linear classifier whose last row of `weights` ((D + 1) x classes) is the bias."""
    return torch.addmm(weights[-1], x, weights[:-1])


def fit_logistic(x: Tensor, y: Tensor, start: Tensor, l2: float, tolerance: float = 1e-6) -> Tensor:
    """Multinomial logistic regression by L-BFGS: the weights ((D + 1) x classes) that minimise
    sum of cross-entropies + l2 / 2 * |weights without bias|^2 (scikit-learn's C is 1 / l2), from `start`.

    Each weight is searched in units in which its curvature is about one: that of a model that holds all classes for
    equally likely. Where the columns of `x` are uncorrelated that takes far fewer steps. The gradient is written out,
    with classes as rows: on a CPU five times as fast as autograd's, whose product x.T @ (N x classes) and softmax along
    short rows take most of the time. `tolerance` is of the largest derivative, of the mean cross-entropy.
    """
    n, classes, rows = len(x), start.shape[1], torch.arange(len(x), device=x.device)
    curvature = torch.cat([x.square().mean(0), x.new_ones(1)]) * (1 - 1 / classes) / classes
    curvature[:-1] += l2 / n
    unit = curvature.clamp(min=1e-6 * curvature.max().item()).rsqrt()
    weights = start.T / unit
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=ITERATIONS, history_size=20, tolerance_grad=tolerance, line_search_fn="strong_wolfe"
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


def hits(scores: Tensor, y: Tensor, k: int = 1) -> Tensor:
    """Whether a row's label is among its k highest scores: float N."""
    return (scores.topk(min(k, scores.shape[1]), dim=1).indices == y.unsqueeze(1)).any(1).float()


def accuracy(scores: Tensor, y: Tensor, k: int = 1) -> float:
    """Fraction of rows whose label is among the k highest scores."""
    return hits(scores, y, k).mean().item()


def accuracies(scores: Tensor, y: Tensor, name: str) -> Outcome:
    """Top-1, and top-5 where there are more than five classes, with the predictions."""
    metrics = {f"{name}_top1": accuracy(scores, y)}
    if scores.shape[1] > 5:
        metrics[f"{name}_top5"] = accuracy(scores, y, 5)
    return Outcome(metrics, {f"{name}_top1": scores.argmax(1)})


def linear_classifier(
    train: Tensor,
    train_labels: Tensor,
    val: Tensor,
    val_labels: Tensor,
    classes: int,
    settings: Linear,
    observer: Observer = SILENT,
) -> tuple[Tensor, float]:
    """Weights fitted on train and validation together with the L2 value that was best on validation; that value."""
    _, l2, weights = choose_l2(train, train_labels, val, val_labels, classes, settings, observer)
    both, labels = torch.cat([train, val]), torch.cat([train_labels, val_labels])
    return fit_logistic(both, labels, weights, l2), l2


def choose_l2(
    train: Tensor,
    train_labels: Tensor,
    val: Tensor,
    val_labels: Tensor,
    classes: int,
    settings: Linear,
    observer: Observer = SILENT,
) -> tuple[float, float, Tensor]:
    """The best accuracy on validation over the L2 values, the value, and the weights fitted on train with it.

    Walks the grid from strong to weak, each fit started where the two before lead; of equal accuracies the strongest
    wins.
    """
    grid, weights = settings.grid(), train.new_zeros(train.shape[1] + 1, classes)
    before = best_weights = weights
    best, chosen = -1.0, grid[0]
    for done, l2 in enumerate(grid, 1):
        before, weights = weights, fit_logistic(train, train_labels, 2 * weights - before, l2, tolerance=PATH)
        score = accuracy(logits(val, weights), val_labels)
        if score > best:
            best, chosen, best_weights = score, l2, weights
        observer.progress("linear classifier", done, len(grid))
    return best, chosen, best_weights


def prepared(settings: Linear, train: Tensor, *others: Tensor) -> list[Tensor]:
    """Standardised if so set, and turned to the principal axes of the first, where fits are fast: no accuracy changes,
    for the penalty does not see the turn."""
    scaled = standardise(train, *others) if settings.standardise else [train, *others]
    axes = torch.linalg.eigh(scaled[0].T @ scaled[0])[1]
    return [x @ axes for x in scaled]


def best_on_validation(subject: Subject) -> float:
    """Accuracy on validation of the classifier fitted on train, at the best L2 value: what a search may look at."""
    settings, train, val = subject.protocol.linear, subject.train, subject.val
    x, held = prepared(settings, train[0], val[0])
    return choose_l2(x, train[1], held, val[1], len(subject.data.classes), settings, subject.observer)[0]


def linear(subject: Subject) -> Outcome:
    """Test accuracy of the linear classifier, and the L2 value that was chosen."""
    settings, (train, val, test) = subject.protocol.linear, (subject.train, subject.val, subject.test)
    x, held, queries = prepared(settings, train[0], val[0], test[0])
    classes = len(subject.data.classes)
    weights, l2 = linear_classifier(x, train[1], held, val[1], classes, settings, subject.observer)
    outcome = accuracies(logits(queries, weights), test[1], "linear")
    return outcome._replace(metrics=outcome.metrics | {"linear_l2": l2})
