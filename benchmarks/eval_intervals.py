"""How often the intervals of `simclr eval`, `measures` and `search` contain the true value, in simulations.

python -m benchmarks.eval_intervals [--studies 1000]

Accuracies on n images are computed exactly, from the binomial distribution, and so is the highest of several trials
that are equally good. All else is simulated with the functions that make the reports. Prints a table in Markdown: the
lowest and the highest share, in percent, over the true values of each case.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np
import scipy
from numpy.random import Generator
from numpy.typing import NDArray

from analysis.agreement import kendall
from analysis.statistics import (
    accuracy_interval,
    balanced_interval,
    images_interval,
    mean_interval,
    paired_difference,
)

ACCURACIES = (0.3, 0.5, 0.7, 0.9, 0.97)
IMAGES = (20, 100, 2000)
ENCODERS = (5, 8, 20, 40)
CORRELATIONS = (0.3, 0.6)  # of two answers to the same image, as images are hard or easy
CLASSES, TRAINED, WIDTH = 10, 100, 16  # of made-up features: normal around the mean of their class
Row = tuple[str, str, list[float]]  # an interval, a case, and the shares of its true values


def of_accuracy(n: int, truth: float, trials: int = 1) -> float:
    """The share of intervals of the best accuracy of some `trials` that contain the true one, which all share."""
    counts = np.arange(n + 1)
    chances = np.diff(scipy.stats.binom.cdf(counts, n, truth) ** trials, prepend=0)
    low, high = np.array([accuracy_interval(int(count), n) for count in counts]).T
    return float(chances[(low <= truth) & (truth <= high)].sum())


def held(truth: float, intervals: Iterable[tuple[float, float]]) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def of_balanced(draw: Generator, sizes: NDArray[np.int64], accuracies: NDArray[np.float64], studies: int) -> float:
    labels, intervals = np.repeat(np.arange(len(sizes)), sizes), []
    for _ in range(studies):
        correct = draw.random(len(labels)) < np.repeat(accuracies, sizes)
        value = float(np.mean(np.bincount(labels, correct) / sizes))
        intervals.append(balanced_interval(value, correct, labels))
    return held(float(accuracies.mean()), intervals)


def answered(
    draw: Generator, answers: int, n: int, truth: float, correlation: float, studies: int
) -> list[NDArray[np.float64]]:
    """The shares of right answers to n images, in each study. The chance of a right answer is beta-distributed."""
    agreement = (1 - correlation) / correlation
    chances = draw.beta(agreement * truth, agreement * (1 - truth), (studies, n))
    return list(draw.binomial(answers, chances) / answers)


def of_answers(draw: Generator, answers: int, n: int, studies: int, *, own: bool = True) -> list[float]:
    """The shares for means over several answers to each image, from the images' `own` means or as if it were one."""
    return [
        held(
            truth,
            (
                images_interval(shares) if own else accuracy_interval(shares.sum(), n)
                for shares in answered(draw, answers, n, truth, correlation, studies)
            ),
        )
        for truth, correlation in product(ACCURACIES, CORRELATIONS)
    ]


def of_means(draw: Generator, population: NDArray[np.float64], n: int, studies: int) -> float:
    """The share of Student's intervals of n values that contain the mean of the `population` they are drawn from."""
    drawn = draw.choice(population, (studies, n))
    return held(float(population.mean()), ((each.low, each.high) for each in map(mean_interval, drawn)))


def few_shot_accuracies(draw: Generator, shots: int, draws: int) -> NDArray[np.float64]:
    """The accuracies on the same 200 test images of some draws of labelled images: the nearest mean direction."""
    centres = draw.normal(size=(CLASSES, WIDTH))
    train = centres[:, None] + draw.normal(size=(CLASSES, TRAINED, WIDTH))
    test, truth = np.repeat(centres, 20, axis=0) + draw.normal(size=(200, WIDTH)), np.repeat(np.arange(CLASSES), 20)
    rows = draw.random((draws, CLASSES, TRAINED)).argsort(2)[..., :shots]  # without repetition
    means = train[np.arange(CLASSES)[:, None], rows].mean(2)
    means /= np.linalg.norm(means, axis=2, keepdims=True)
    found: NDArray[np.float64] = np.array([((test @ mean.T).argmax(1) == truth).mean() for mean in means])
    return found


def precisions(draw: Generator, queries: int) -> NDArray[np.float64]:
    """The average precisions of some queries in a gallery of 20 images of each class."""
    centres = draw.normal(size=(CLASSES, WIDTH))
    labels, truth = np.repeat(np.arange(CLASSES), 20), draw.integers(CLASSES, size=queries)
    gallery, query = (centres[each] + draw.normal(size=(len(each), WIDTH)) for each in (labels, truth))
    order = (-query @ (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).T).argsort(1)
    right = labels[order] == truth[:, None]
    found: NDArray[np.float64] = (right * right.cumsum(1) / np.arange(1, 201)).sum(1) / 20
    return found


def of_confirmed(draw: Generator, trials: int, studies: int) -> float:
    """The share for a gain over three fresh seeds of the best of some trials, which differ as much as seeds do."""
    own = draw.normal(size=(studies, trials))
    best = (own + draw.normal(size=own.shape)).argmax(1)  # by one run of each
    gains, seeds = own[np.arange(studies), best], draw.normal(size=(studies, 1, 3))  # a seed moves both runs alike
    fresh = seeds + draw.normal(size=(studies, 2, 3))
    found = [paired_difference(runs[1] + gain, runs[0]) for runs, gain in zip(fresh, gains, strict=True)]
    return float(np.mean([each.low <= gain <= each.high for each, gain in zip(found, gains, strict=True)]))


def of_order(draw: Generator, n: int, correlation: float, studies: int) -> float:
    """The share for Kendall's tau of n pairs of normal values, whose true one follows from their correlation."""
    covariance = [[1.0, correlation], [correlation, 1.0]]
    found = (kendall(*pairs.T) for pairs in draw.multivariate_normal([0, 0], covariance, (studies, n)))
    return held(2 / math.pi * math.asin(correlation), ((each.low, each.high) for each in found))


def measured(studies: int) -> Iterator[Row]:
    draw = np.random.default_rng(0)
    for n in IMAGES:
        yield "accuracy", f"{n} images", [of_accuracy(n, truth) for truth in ACCURACIES]
    for trials in (10, 30):
        shares = [of_accuracy(2000, truth, trials) for truth in ACCURACIES]
        yield "not used: best of a search", f"{trials} trials, 2000 images", shares
    for sizes in ([200] * 10, [300, *[30] * 9], [500, 10]):
        accuracies = (np.full(len(sizes), 0.7), np.linspace(0.5, 0.95, len(sizes)), np.linspace(0.95, 0.5, len(sizes)))
        shares = [of_balanced(draw, np.array(sizes), each, studies) for each in accuracies]
        yield "balanced accuracy", f"classes of {' and '.join(map(str, dict.fromkeys(sizes)))} images", shares
    for n in IMAGES:
        yield "mean over 30 corruptions", f"{n} images", of_answers(draw, 30, n, studies)
        yield "not used: as if they were one", f"{n} images", of_answers(draw, 30, n, studies, own=False)
        yield "fine-tuning, mean over 3 seeds", f"{n} images", of_answers(draw, 3, n, studies)
        yield "contrastive accuracy, mean over 2 views", f"{n} images", of_answers(draw, 2, n, studies, own=False)
    for shots in (1, 5):
        population = few_shot_accuracies(draw, shots, studies)
        yield "few-shot accuracy", f"{shots} images per class, 100 draws", [of_means(draw, population, 100, studies)]
    population = precisions(draw, 5000)
    for n in IMAGES:
        yield "mean average precision", f"{n} queries", [of_means(draw, population, n, studies)]
    for n in ENCODERS:
        shares = [of_order(draw, n, correlation, studies) for correlation in (0.0, 0.5, 0.8, 0.95)]
        yield "Kendall's tau of `simclr measures`", f"{n} encoders", shares
    yield "gain of a confirmed search", "3 seeds", [of_confirmed(draw, trials, studies) for trials in (10, 30)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    error = 100 * math.sqrt(0.05 * 0.95 / studies)
    print("| interval | case | contains the true value (%) |\n|---|---|---|")
    for interval, case, shares in measured(studies):
        ends = dict.fromkeys(f"{100 * share:.1f}" for share in (min(shares), max(shares)))
        print(f"| {interval} | {case} | {' to '.join(ends)} |", flush=True)
    print(f"\n{studies} studies of each case that is simulated: 95 % has a standard error of {error:.1f} points.")


if __name__ == "__main__":
    main()
