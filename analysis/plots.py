"""Figures, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers; the line styles tell them apart in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")


def loss_curve(curves: Mapping[str, pd.DataFrame], chance: float, path: Path) -> None:
    """Loss against the step (columns step, value) for each run, with the chance level ln(2N - 1)."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for index, (name, curve) in enumerate(curves.items()):
        color, style = COLORS[index % len(COLORS)], STYLES[index % len(STYLES)]
        axes.plot(curve["step"], curve["value"], color=color, linestyle=style, label=name)
    axes.axhline(chance, color="0.5", linewidth=1)
    label = f"chance, ln(2N - 1) = {chance:.2f}"
    axes.annotate(label, (0.99, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.3")
    axes.set(xlabel="step", ylabel="NT-Xent loss", ylim=(0, 1.1 * chance))
    axes.legend(frameon=False, loc="lower left")
    _save(figure, path)


def image_rows(rows: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Rows of images (each N x H x W x 3 in [0, 1]) with a label on the left of each row."""
    columns = max(len(images) for images in rows.values())
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(0.8 * columns + 1.2, 0.85 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for cell in line:
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
        for cell, image in zip(line, images, strict=False):
            cell.imshow(image.clip(0, 1), interpolation="nearest")
        line[0].set_ylabel(label.replace("_", " "), rotation=0, ha="right", va="center")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)
