"""t-SNE maps of what an encoder has learned."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis import plots
from analysis.tables import write_csv
from analysis.tsne import neighbour_agreement, tsne
from experiments.runs.encoders import FoundEncoder
from experiments.tracking.store import Store
from experiments.tracking.writing import Tracker
from simclr import device as devices
from simclr.data.source import UNLABELLED
from simclr.errors import UserError, unknown
from simclr.evaluate.subject import Subject, check_collapse, features
from simclr.files import written_whole
from simclr.randomness import permutation


def keep(files: Mapping[str, Path], found: FoundEncoder, store: Store) -> None:
    """Keep files under other names with the run of an encoder, if it has one and the store can be written."""
    if found.run_id is not None and store.writable:
        tracker = Tracker(store, found.run_id)
        for name, path in files.items():
            tracker.artifact(name, lambda target, path=path: shutil.copyfile(path, target))  # type: ignore[misc]
        tracker.flush()


PARTS = {"pretrain": "training", "train": "labelled training", "val": "validation", "test": "test"}  # in captions


def draw_tsne(
    subject: Subject, out: Path, *, name: str, part: str, images: int, perplexity: float, seed: int, thumbnails: bool
) -> tuple[str, list[Path]]:
    """Draw a t-SNE map of the features of at most `images` images of a part, to out.png, out.svg and out.csv (points).

    `name` is that of the encoder, and the title of the map.
    Returns a caption and the files. With labels, the caption says how often neighbours share a class, on the map and in
    the features, which tells how far the map can be trusted.
    """
    data, layer = subject.data, subject.protocol.layer
    if part not in data.parts:
        raise unknown("part", part, data.parts)
    rows = data.parts[part]
    if not len(rows):
        full = " or ".join(name for name in data.parts if len(data.parts[name]))
        raise UserError(f"{data.title} has no labelled {part} images: add --part {full}")
    rows = np.sort(rows[permutation(len(rows), seed, "tsne").numpy()[:images]])
    with devices.memory_errors("use --device cpu", devices.MORE_MEMORY):
        check_collapse(subject)
        x = features(subject.model, data.images, rows, torch.float32, layer).cpu().numpy()
    labels = data.labels[rows]
    try:
        points, how = tsne(x, seed, perplexity)
    except ValueError as error:
        raise UserError(str(error)) from None
    labelled = len(data.classes) > 1 and bool((labels != UNLABELLED).all())
    shown = f"{len(rows)} {PARTS[part]} images of {data.title}, {layer} ({x.shape[1]}-d)"
    note = f"{shown}; t-SNE, perplexity {perplexity:g}, {how}"
    if labelled:
        share = neighbour_agreement(points, x, labels)
        note += (
            f"\nclass predicted correctly by 10 nearest neighbours: {share.points:.1%} on the map, "
            f"{share.features:.1%} in {layer}"
        )
    pictures = data.images[rows].transpose(0, 2, 3, 1) if thumbnails else None
    files = plots.files_of(out, ".png", ".svg", ".csv")
    names = [data.classes[label] if label != UNLABELLED else "" for label in labels]
    table = pd.DataFrame({"row": rows, "class": names, "x": points[:, 0], "y": points[:, 1]})
    with written_whole(files[0]) as png, written_whole(files[1]) as svg, written_whole(files[2]) as csv:
        plots.scatter(points, labels, data.classes, [png, svg], pictures, note, name)
        write_csv(table, csv)
    return note, files
