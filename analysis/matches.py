"""A page of images that are similar to others."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
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


def below(root: str, file: str) -> str:
    """The name of a file without the folder `root`, if that is around it."""
    return os.path.relpath(file, root) if root and file.startswith(os.path.join(root, "")) else file


def matches_page(title: str, queries: Sequence[Query], root: str = "") -> str:
    """A self-contained HTML page with each query and its matches. Every text is shown literally.

    Names of files below the folder `root` are shown without it. Absolute names are links to the files.
    """

    def parts(file: str) -> list[str]:
        """The name in parts, between which a line may end."""
        return re.split(r"(?<=[/_-])", below(root, file))

    def link_to(file: str) -> str:
        return Path(file).as_uri() if Path(file).is_absolute() else ""

    return render("matches.html.jinja", title=title, queries=queries, source=jpeg, parts=parts, link_to=link_to)
