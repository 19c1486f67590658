"""t-SNE maps of features, and how well they keep the neighbours."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import sklearn
from numpy.typing import NDArray
from scipy import stats
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

SAME = 1e-6  # difference of two unit vectors that float32 can't tell from rounding
LARGEST_MAP = 10_000  # features of a `large_map` that t-SNE itself places
NEAREST = 10  # of those, which place another
OPENTSNE_ABOVE = 10_000  # openTSNE is faster than scikit-learn on more points than this


def tsne(features: NDArray[Any], seed: int, perplexity: float = 30) -> tuple[NDArray[np.float64], str]:
    """The t-SNE map (N x 2) of normalized features (N x D), and the name of the library that computed it.

    Distances between normalized features rank neighbours as cosine similarity does, which kNN uses. The map starts from
    the first two principal components. The same seed gives the same map on the same machine. Uses openTSNE for more
    than OPENTSNE_ABOVE points if it is installed. Raises ValueError unless 0 < perplexity < N, and if all features have
    the same direction, which crashes scikit-learn.
    """
    n = len(features)
    if not 0 < perplexity < n:
        raise ValueError(
            f"perplexity {perplexity:g} with {n} images: expected more than 0 and less than {n}, such as "
            f"{min(30, n / 4):.3g}. Use another perplexity, or more images"
        )
    directions = normalize(features)
    if np.ptp(directions, axis=0).max() <= SAME:
        raise ValueError(
            f"the features of all {n} images are the same, so there is no map of them: the encoder has collapsed, or "
            f"the images are equal"
        )
    if n > OPENTSNE_ABOVE:
        try:
            import openTSNE
        except ImportError:
            pass
        else:
            points = openTSNE.TSNE(perplexity=perplexity, initialization="pca", random_state=seed).fit(directions)
            return np.asarray(points, np.float64), f"openTSNE {openTSNE.__version__}"
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(directions)
    return np.asarray(points, np.float64), f"scikit-learn {sklearn.__version__}"


def large_map(features: NDArray[Any], seed: int, perplexity: float = 30) -> tuple[NDArray[np.float64], str]:
    """As `tsne`, but of at most LARGEST_MAP features, which are drawn by the seed.

    Each of the others is put at the median of its NEAREST nearest features among those (Kobak and Berens 2019, "The art
    of using t-SNE for single-cell transcriptomics"), which takes seconds where t-SNE takes many minutes.
    """
    order = np.random.default_rng(seed).permutation(len(features))
    drawn, others = np.sort(order[:LARGEST_MAP]), order[LARGEST_MAP:]
    mapped, how = tsne(features[drawn], seed, perplexity)
    points = np.empty((len(features), 2))
    points[drawn] = mapped
    if len(others):
        search = NearestNeighbors(n_neighbors=min(NEAREST, len(drawn)), metric="cosine").fit(features[drawn])
        points[others] = np.median(mapped[search.kneighbors(features[others])[1]], axis=1)
        how += f" of {len(drawn):,} images; the others are at the median of their {NEAREST} nearest"
    return points, how


class Agreement(NamedTuple):
    """Accuracy in [0, 1] of classifying points by their nearest neighbours, on the map and in the features."""

    points: float
    features: float


def neighbour_agreement(
    points: NDArray[Any], features: NDArray[Any], labels: NDArray[np.integer], k: int = 10
) -> Agreement:
    """Leave-one-out kNN accuracy on a map (N x 2, Euclidean) and on its features (N x D, cosine), given N labels.

    Each image gets the most frequent label of its k nearest other images (the lowest label in a tie). A k above N - 1
    counts as N - 1. A lower accuracy on the map shows how much of the structure is lost there.
    """

    def accuracy(x: NDArray[Any], metric: str) -> float:
        nearest = NearestNeighbors(n_neighbors=min(k, len(x) - 1), metric=metric).fit(x).kneighbors()[1]
        return float((stats.mode(labels[nearest], axis=1).mode == labels).mean())

    return Agreement(accuracy(points, "euclidean"), accuracy(features, "cosine"))
