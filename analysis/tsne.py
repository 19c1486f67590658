"""Maps of features in two dimensions, and how far they can be trusted."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import sklearn
from numpy.typing import NDArray
from scipy import stats
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

MANY = 10_000  # points above which openTSNE is used where it is installed


def tsne(features: NDArray[Any], seed: int, perplexity: float = 30) -> tuple[NDArray[np.float64], str]:
    """t-SNE (N x 2) of the directions of features (N x D: distances are those of the kNN), and what computed it.

    Starts from the first two principal components; one seed gives one map on one machine. Raises ValueError for a
    perplexity that is not in (0, N).
    """
    n = len(features)
    if not 0 < perplexity < n:
        raise ValueError(
            f"perplexity {perplexity:g} with {n} images: it must be positive and below their number, "
            f"so take more images or a lower perplexity (30 is usual)"
        )
    directions = normalize(features)
    if n > MANY:
        try:
            import openTSNE
        except ImportError:
            pass
        else:
            points = openTSNE.TSNE(perplexity=perplexity, initialization="pca", random_state=seed).fit(directions)
            return np.asarray(points, np.float64), f"openTSNE {openTSNE.__version__}"
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(directions)
    return np.asarray(points, np.float64), f"scikit-learn {sklearn.__version__}"


class Agreement(NamedTuple):
    """The share of points, in [0, 1], whose nearest neighbours have their label: in the map and in the features."""

    points: float
    features: float


def neighbour_agreement(
    points: NDArray[Any], features: NDArray[Any], labels: NDArray[np.integer], k: int = 10
) -> Agreement:
    """Leave-one-out kNN accuracy on a map (N x 2, Euclidean) and on its features (N x D, cosine), of N labels.

    Each image is classified by the majority of its k nearest others (of a tie, the lowest label). The first says what
    can be seen, the second what is there. A k above N - 1 means N - 1.
    """

    def accuracy(x: NDArray[Any], metric: str) -> float:
        nearest = NearestNeighbors(n_neighbors=min(k, len(x) - 1), metric=metric).fit(x).kneighbors()[1]
        return float((stats.mode(labels[nearest], axis=1).mode == labels).mean())

    return Agreement(accuracy(points, "euclidean"), accuracy(features, "cosine"))
