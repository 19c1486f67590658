"""The linear classifier's whole L2 grid against scikit-learn's LogisticRegression, in one run.

python -m benchmarks.linear [--images 50000] [--width 512]

The features are made up: ten overlapping classes in directions whose variance falls as a power law, then a ReLU, as in
the features of encoders. Both fit the same 45 values on the same standardised float32 features. scikit-learn does so
twice: each value from scratch, and each from the weights of the one before (`warm_start`). By default it stops after
100 iterations, often before it has converged. The suite starts each fit from its neighbours and fits all values but the
best loosely, so the times are those of the whole grid, and not of a fit.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from simclr.evaluate.base import accuracy
from simclr.evaluate.linear import Linear, choose_l2, fit_logistic, logits, preprocessing
from simclr.evaluate.scaling import standardising

CLASSES = 10
TEST_IMAGES = 10_000


def made_up(images: int, width: int) -> tuple[Tensor, Tensor]:
    """Features and labels of so many training images, and of TEST_IMAGES more."""
    draw = torch.Generator().manual_seed(0)
    scale = torch.arange(1, width + 1) ** -0.5
    centres = torch.randn(CLASSES, width, generator=draw)
    labels = torch.randint(CLASSES, (images + TEST_IMAGES,), generator=draw)
    mixing = torch.randn(width, width, generator=draw) / width**0.5
    noise = torch.randn(len(labels), width, generator=draw)
    return torch.relu((noise + 0.25 * centres[labels]) * scale @ mixing), labels


def fit_grid(x: Tensor, labels: Tensor, images: int, settings: Linear) -> tuple[float, float]:
    """The suite's classifier at every value, and at the best one to the end: that value, and its accuracy."""
    train_y, test_y = labels[:images], labels[images:]
    train, test = map(preprocessing(settings, x[:images]), (x[:images], x[images:]))
    _, best, weights = choose_l2(train, train_y, test, test_y, CLASSES, settings)
    weights = fit_logistic(train, train_y, weights, best)
    return best, accuracy(logits(test, weights), test_y)


def compare(images: int, width: int, l2_values: int) -> dict[str, float]:
    """Seconds of both for the whole grid, and the accuracies at the value that the suite finds best."""
    settings = Linear(l2_values=l2_values)
    x, labels = made_up(images, width)
    clock = time.perf_counter()
    best, ours = fit_grid(x, labels, images, settings)
    seconds = time.perf_counter() - clock

    x_train, x_test = (standardising(x[:images])(part).numpy() for part in (x[:images], x[images:]))
    train_y, test_y = labels[:images].numpy(), labels[images:].numpy()
    warnings.simplefilter("ignore", ConvergenceWarning)
    clock = time.perf_counter()
    theirs = {l2: LogisticRegression(C=1 / l2).fit(x_train, train_y).score(x_test, test_y) for l2 in settings.grid()}
    peer_seconds = time.perf_counter() - clock
    clock, warm = time.perf_counter(), LogisticRegression(warm_start=True)
    for l2 in settings.grid():
        warm.set_params(C=1 / l2).fit(x_train, train_y).score(x_test, test_y)
    warm_seconds = time.perf_counter() - clock
    exact = LogisticRegression(C=1 / best, max_iter=10_000, tol=1e-7).fit(x_train, train_y).score(x_test, test_y)
    found = {"this suite, s": seconds, "scikit-learn, s": peer_seconds, "times as long": peer_seconds / seconds}
    found |= {"warm-started, s": warm_seconds, "warm, times": warm_seconds / seconds}
    return found | {"best L2": best, "accuracy": ours, "scikit-learn's": theirs[best], "to convergence": exact}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--l2-values", type=int, default=45)
    arguments = parser.parse_args()
    for name, value in compare(arguments.images, arguments.width, arguments.l2_values).items():
        print(f"{name:20} {value:.6g}")


if __name__ == "__main__":
    main()
