"""Rows of small images as one WebP file, which takes a tenth of the space of PNG for photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64  # pixels; larger images are shrunk
GAP = 2  # transparent pixels between images


def save_strip(rows: Sequence[NDArray[Any]], path: Path) -> None:
    """Write rows of equally many images (each N x H x W x 3 in [0, 1]), all at the same size, and apart."""
    side = min(SIDE, max(row.shape[1] for row in rows))
    columns = len(rows[0])
    sheet = Image.new("RGBA", (columns * (side + GAP) - GAP, len(rows) * (side + GAP) - GAP))
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            image = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
            how = Image.Resampling.LANCZOS if image.width > side else Image.Resampling.NEAREST
            sheet.paste(image.resize((side, side), how), (x * (side + GAP), y * (side + GAP)))
    sheet.save(path, quality=90)
