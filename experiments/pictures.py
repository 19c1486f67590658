"""Pictures of what an encoder has learned."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from analysis import plots
from analysis.embedding import neighbour_agreement
from analysis.embedding import tsne as embed
from simclr.data import UNLABELLED
from simclr.errors import UserError, unknown
from simclr.protocol import Subject, features


def tsne(subject: Subject, out: Path, *, part: str, images: int, perplexity: float, seed: int, thumbnails: bool) -> str:
    """Draw the map of a part's features (at most `images` of them) to out.png and out.svg, its points to out.csv.

    Returns what it shows, and how often neighbours have one class, on the map and in the features (labels needed).
    """
    data, layer = subject.data, subject.protocol.layer
    if part not in data.parts:
        raise unknown("part", part, data.parts)
    rows = data.parts[part]
    if not len(rows):
        full = ", ".join(name for name in data.parts if len(data.parts[name]))
        raise UserError(f"'{data.name}' has no images in part '{part}': choose from {full}")
    rows = rows[:: -(-len(rows) // images)]
    x = features(subject.model, data.images, rows, torch.float32, layer).cpu().numpy()
    labels = data.labels[rows]
    try:
        points, how = embed(x, seed, perplexity)
    except ValueError as error:
        raise UserError(str(error)) from None
    labelled = len(data.classes) > 1 and bool((labels != UNLABELLED).all())
    note = (
        f"{len(rows)} {part} images of {data.name}, {layer} ({x.shape[1]}-d); t-SNE, perplexity {perplexity:g}, {how}"
    )
    if labelled:
        share = neighbour_agreement(points, x, labels)
        note += (
            f"\n10 nearest neighbours name the class: {share.points:.1%} on the map, {share.features:.1%} in {layer}"
        )
    pictures = data.images[rows].transpose(0, 2, 3, 1) if thumbnails else None
    plots.scatter(points, labels, data.classes, [out.with_suffix(s) for s in (".png", ".svg")], pictures, note)
    names = [data.classes[label] if label != UNLABELLED else "" for label in labels]
    table = pd.DataFrame({"row": rows, "class": names, "x": points[:, 0], "y": points[:, 1]})
    table.to_csv(out.with_suffix(".csv"), index=False)
    return note
