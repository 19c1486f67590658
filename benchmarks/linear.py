"""The linear classifier's whole L2 grid against scikit-learn's default, in one run.

python -m benchmarks.linear [--images 50000] [--width 512]

The features are made up: ten overlapping classes in directions whose variance falls as a power law, then a ReLU, as in
the features of encoders. Both fit the same 45 values on the same standardised float32 features.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from simclr.evaluate.base import accuracy
from simclr.evaluate.linear import Linear, choose_l2, fit_logistic, logits, preprocessing
from simclr.evaluate.scaling import standardising

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--l2-values", type=int, default=45)
    arguments = parser.parse_args()
    n, width = arguments.images, arguments.width
    draw = torch.Generator().manual_seed(0)
    scale = torch.arange(1, width + 1) ** -0.5
    centres = torch.randn(CLASSES, width, generator=draw)
    labels = torch.randint(CLASSES, (n + 10_000,), generator=draw)
    mixing = torch.randn(width, width, generator=draw) / width**0.5
    noise = torch.randn(len(labels), width, generator=draw)
    x = torch.relu((noise + 0.25 * centres[labels]) * scale @ mixing)
    train_y, test_y = labels[:n], labels[n:]
    settings = Linear(l2_values=arguments.l2_values)
    grid = settings.grid()

    clock = time.perf_counter()
    train, test = map(preprocessing(settings, x[:n]), (x[:n], x[n:]))
    _, best, weights = choose_l2(train, train_y, test, test_y, CLASSES, settings)
    weights = fit_logistic(train, train_y, weights, best)
    ours = accuracy(logits(test, weights), test_y)
    seconds = time.perf_counter() - clock
    print(f"this suite, {len(grid)} values and a last fit: {seconds:.1f} s", flush=True)

    x_train, x_test = (standardising(x[:n])(part).numpy() for part in (x[:n], x[n:]))
    warnings.simplefilter("ignore", ConvergenceWarning)
    clock = time.perf_counter()
    theirs = {}
    for l2 in grid:
        peer = LogisticRegression(C=1 / l2).fit(x_train, train_y.numpy())
        theirs[l2] = peer.score(x_test, test_y.numpy())
    peer_seconds = time.perf_counter() - clock
    print(f"scikit-learn, {len(grid)} values: {peer_seconds:.1f} s, {peer_seconds / seconds:.1f} times as long")

    exact = LogisticRegression(C=1 / best, max_iter=10_000, tol=1e-7).fit(x_train, train_y.numpy())
    print(
        f"best L2 {best:.3g}: {ours:.2%} here, {theirs[best]:.2%} by its default, "
        f"{exact.score(x_test, test_y.numpy()):.2%} by scikit-learn run to convergence"
    )


if __name__ == "__main__":
    main()
