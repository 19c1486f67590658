"""A page of images that are similar to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.templates import jpeg, render


class Match(NamedTuple):
    """An image that is similar to a query: its file, a picture (H x W x 3), the cosine similarity, its class or ""."""

    file: str
    picture: NDArray[np.uint8]
    similarity: float
    label: str


class Query(NamedTuple):
    """An image that others were compared with: its file, a picture (H x W x 3), and its matches, nearest first."""

    file: str
    picture: NDArray[np.uint8]
    matches: Sequence[Match]


def matches_page(title: str, queries: Sequence[Query]) -> str:
    """A self-contained HTML page with each query and its matches. Every text is shown literally."""
    return render("matches.html.jinja", title=title, queries=queries, source=jpeg)
