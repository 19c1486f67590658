"""Figures that are rows of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.matches import Query
from analysis.style import COLORS, save, shorten


def image_rows(rows: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Draw rows of images (each N x H x W x 3 in [0, 1]) with their label on the left."""
    columns = max(len(images) for images in rows.values())
    figure, grid = _image_grid(len(rows), columns, 0.8 * columns + 1.2, 0.85 * len(rows))
    for cells, (label, images) in zip(grid, rows.items(), strict=True):
        for cell, image in zip(cells, images, strict=False):
            cell.imshow(image.clip(0, 1), interpolation="nearest")
        cells[0].set_ylabel(label.replace("_", " "), rotation=0, ha="right", va="center")
    save(figure, path)


def neighbours(queries: Sequence[Query], path: Path) -> None:
    """Draw each query with the images that are most similar to it, their similarities, classes and file names."""
    columns = 1 + max(len(query.matches) for query in queries)
    lines = 3 if any(match.label for query in queries for match in query.matches) else 2
    figure, grid = _image_grid(len(queries), columns, columns, (1.1 + 0.12 * lines) * len(queries))
    for (cell, *others), query in zip(grid, queries, strict=True):
        cell.imshow(query.picture, interpolation="nearest")
        cell.set_xlabel(f"query\n{_file_name(query.file)}", fontsize=7, weight="bold", color=COLORS[1])
        for other, match in zip(others, query.matches, strict=False):
            other.imshow(match.picture, interpolation="nearest")
            texts = [f"{match.similarity:.3f}", shorten(match.label, 14), _file_name(match.file)]
            other.set_xlabel("\n".join(filter(None, texts)), fontsize=7)
    save(figure, path)


def _file_name(file: str) -> str:
    return shorten(Path(file).name, 14)


def _image_grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, NDArray[Any]]:
    """A figure of a size in inches with a grid of axes (rows x columns) for images, without ticks and frames.

    Images are at the top of their axes, so that rows of wide ones start at the same height.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for cell in grid.flat:
        cell.set(xticks=[], yticks=[], anchor="N")
        cell.spines[:].set_visible(False)
    return figure, grid
