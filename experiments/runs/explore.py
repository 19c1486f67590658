"""Write the explorer of an encoder's images: their map, classes, splits, errors, clusters and nearest images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize
from torch import Tensor

from analysis.explorer import (
    ALIKE,
    LEVELS,
    Column,
    Size,
    explorer_page,
    pixel_differences,
    small_pictures,
    thumbnail_side,
)
from analysis.matches import below
from analysis.tables import is_classification, metric_label, write_csv
from analysis.tsne import large_map
from experiments.runs.encoders import UNKNOWN_DATA, FoundEncoder
from experiments.runs.evaluate import predictions, prefix
from experiments.tracking.store import Store
from simclr import device as devices
from simclr.data.dataset import Dataset
from simclr.data.images import Array, Decoding, Files, bad_images, decode_files, open_image
from simclr.data.layout import FOLDER_NAMES
from simclr.data.source import UNLABELLED
from simclr.data.sources import median_side
from simclr.errors import UserError, printable
from simclr.evaluate.knn import Knn, nearest, vote
from simclr.evaluate.subject import Subject, check_collapse, features
from simclr.files import written_whole
from simclr.randomness import permutation

NEIGHBOURS = 20  # images that are listed as the nearest of each, and that vote on its class
AT_ONCE = 2048  # images that are embedded between two reports of progress
MOST_FOLDERS = 200  # that can be a colour
CLUSTERS = 10  # where there are no classes
SLOW = 5000  # images from which on the map takes more than some seconds
PERPLEXITY = 30  # of the map, and less where there are fewer than 90 images
SPLITS = {"pretrain": "no label", "train": "train", "val": "validation", "test": "test"}  # parts by rising priority


class Placement(NamedTuple):
    """Where N images are on the map, and what is near: rows that share a cluster and a place follow each other."""

    rows: Array  # N, in the data set
    points: NDArray[np.float64]  # N x 2
    method: str  # that gave the points
    clusters: Array  # N, from 0
    similarities: NDArray[np.float32]  # N x K, to the nearest images, nearest first
    near: NDArray[np.int64]  # N x K: these, as numbers from 0 to N - 1


def explore(
    found: FoundEncoder,
    subject: Subject,
    store: Store,
    out: Path,
    *,
    table: Path | None = None,
    copies: Path | None = None,
    transfer: str | None,
    images: int,
    clusters: int | None,
    seed: int,
) -> str:
    """Write the explorer of at most `images` images of the subject's data set, and return how many it has.

    `table` gets what the page knows of each image, for other programs, and `copies` the pairs of copies. `transfer`
    names images other than the encoder's own, and `clusters` is by default the number of classes. Raises UserError for
    fewer than four images or fewer than `clusters`, and if all features are the same.
    """
    data, total = subject.data, len(subject.data.labels)
    rows = np.sort(permutation(total, seed, "explore").numpy()[:images])
    clusters = clusters or (len(data.classes) if len(data.classes) > 1 else min(CLUSTERS, len(rows)))
    if len(rows) < max(4, clusters):
        raise UserError(f"{data.title} has {len(rows)} images: expected {max(4, clusters)} or more, for a map")
    files = data.files()
    with devices.memory_errors("use --device cpu, or fewer --images", "use fewer --images"):
        placed = _lay_out(subject, rows, clusters, seed)
    own = transfer is None or data.identity == found.digest
    columns = [
        *_columns(data, placed, own=own and found.digest in (data.identity, UNKNOWN_DATA)),
        *(_recorded(found, subject, store, placed.rows) if own else ()),
        Column("cluster", [str(number + 1) for number in range(clusters)], placed.clusters, f"k-means, k = {clusters}"),
    ]
    if not data.classes:
        columns.insert(0, columns.pop())  # what the page shows first
    run = found.config.run_name()
    images_of = f"{len(rows):,} of the {total:,} images of {data.title}"
    features_of = f"the features {subject.protocol.layer} that the encoder of {run} computes for them"
    notes = [f"{images_of}, and {features_of}.", *_notes(placed, columns)]
    shown = files._replace(names=[files.names[row] for row in placed.rows.tolist()])
    pictures = _thumbnails(subject, shown, placed.rows)
    page = explorer_page(
        f"{data.title}, seen by {run}",
        list(map(printable, notes)),
        list(map(printable, shown.names)),
        columns,
        placed.points,
        placed.near,
        placed.similarities,
        pictures,
        _sizes(subject, shown),
    )
    with written_whole(out) as scratch:
        scratch.write_text(page, "utf-8")
    if table is not None or copies is not None:
        names = np.array([printable(below(data.source.folder if data.source else "", name)) for name in shown.names])
        small = small_pictures(pictures)
        _write(table, lambda: _table(names, columns, placed, small))
        _write(copies, lambda: _copies(names, placed, small))
    return f"{len(rows):,} of {total:,} images" if len(rows) < total else f"{total:,} images"


def _write(path: Path | None, table: Callable[[], pd.DataFrame]) -> None:
    if path is not None:
        with written_whole(path) as scratch:
            write_csv(table(), scratch)


def _notes(placed: Placement, columns: list[Column]) -> Iterator[str]:
    """How to read the page."""
    yield (
        f"The map is a {placed.method}. Images that lie close together are similar, but the sizes of groups and the "
        f"distances between them mean little. The lists of nearest images, duplicates and outliers come from the "
        f"cosine similarity of the features, and not from the map."
    )
    yield from (f"{column.name}: {column.about}." for column in columns if column.about)


def _table(names: NDArray[np.str_], columns: list[Column], placed: Placement, small: NDArray[np.int16]) -> pd.DataFrame:
    """What each image is, in the order of the data set, and how similar (in [-1, 1]) the nearest ones on the page are.

    A high similarity to the nearest one and a low difference to its pixels are those of a possible copy, and a low mean
    similarity is that of an outlier.
    """
    values = {
        column.name: np.array([*map(printable, column.categories), ""])[column.codes]  # -1 is the last
        for column in columns
    }
    nearest_ones = {
        "nearest": names[placed.near[:, 0]],
        "similarity": placed.similarities[:, 0].astype(float).round(6),
        "pixel difference": pixel_differences(small, slice(None), placed.near[:, 0]),
        "mean similarity": placed.similarities.mean(1, dtype=float).round(6),
    }
    return pd.DataFrame({"file": names} | values | nearest_ones).iloc[placed.rows.argsort()]


def _copies(names: NDArray[np.str_], placed: Placement, small: NDArray[np.int16]) -> pd.DataFrame:
    """The pairs of images that the page calls copies, each once, in the order of the data set."""
    order = placed.rows.argsort()
    names, small, number = names[order], small[order], order.argsort()
    here, there = number.repeat(placed.near.shape[1]), number[placed.near.ravel()]
    similarity = placed.similarities.ravel().astype(float).round(6)
    pairs = pd.DataFrame({"a": np.minimum(here, there), "b": np.maximum(here, there), "similarity": similarity})
    pairs = pairs[pairs["similarity"] >= ALIKE].drop_duplicates(["a", "b"]).sort_values(["a", "b"])
    pairs["pixel difference"] = pixel_differences(small, pairs["a"], pairs["b"])
    pairs = pairs[pairs["pixel difference"] < LEVELS]
    return pairs.assign(file=names[pairs["a"]], copy=names[pairs["b"]])[
        ["file", "copy", "similarity", "pixel difference"]
    ]


def _lay_out(subject: Subject, rows: Array, clusters: int, seed: int) -> Placement:
    check_collapse(subject)
    x = _features(subject, rows)
    directions = normalize(x.cpu().numpy())
    time = ", which takes a minute or two" if len(rows) >= SLOW else ""
    subject.observer.say(f"making a map of {len(rows):,} images{time}")
    try:
        points, method = large_map(directions, seed, min(PERPLEXITY, (len(rows) - 1) / 3))
    except ValueError as error:
        raise UserError(str(error)) from None
    cluster = KMeans(clusters, n_init=1, random_state=seed).fit_predict(directions)
    order = np.lexsort((points[:, 0], cluster))
    x = x[torch.from_numpy(order).to(x.device)]
    similarities, near = _others(*nearest(x, x, min(NEIGHBOURS, len(rows) - 1) + 1))
    return Placement(rows[order], points[order], f"t-SNE map ({method})", cluster[order], similarities, near)


def _features(subject: Subject, rows: Array) -> Tensor:
    """Features of the images in `rows`, with reports of progress."""
    parts = []
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        parts.append(features(subject.model, subject.data.images, some, torch.float32, subject.protocol.layer))
        subject.observer.progress("embedding", start + len(some), len(rows))
    return torch.cat(parts)


def _others(similarities: Tensor, index: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What `nearest` found for each image (N x K + 1) without the image itself: N x K."""
    keep = index != torch.arange(len(index), device=index.device).unsqueeze(1)
    keep[keep.all(1), -1] = False  # where K + 1 copies of an image hide it
    return tuple(part[keep].reshape(len(index), -1).cpu().numpy() for part in (similarities, index))  # type: ignore[return-value]


def _columns(data: Dataset, placed: Placement, *, own: bool) -> Iterator[Column]:
    """Classes, the splits of the encoder's own images, and what the nearest images say about the class."""
    labels, count = data.labels[placed.rows], placed.near.shape[1]
    if data.classes:
        yield Column("class", data.classes, labels)
    if not data.classes or data.origin not in ("", FOLDER_NAMES):  # otherwise folders are the classes
        names = data.files().names
        yield from _folders([names[row] for row in placed.rows.tolist()])
    if own and any(len(data.parts[part]) for part in ("train", "val", "test")):
        splits = np.full(len(data.labels), -1)
        for code, part in enumerate(SPLITS):
            splits[data.parts[part]] = code
        yield Column("split", list(SPLITS.values()), splits[placed.rows])
    if len(data.classes) > 1:
        about = f"the class that kNN predicts from the {count} nearest of the other images shown here"
        yield from _errors(
            f"{count} nearest", data, labels, _vote(data, labels[placed.near], placed.similarities), about
        )


def _folders(names: list[str]) -> Iterator[Column]:
    """The folders of images, if there are several, below the one that all are in."""
    folders = [str(Path(name).parent) for name in names]
    kinds = sorted(set(folders))
    if 1 < len(kinds) <= MOST_FOLDERS:
        root = os.path.commonpath(kinds)
        yield Column("folder", [os.path.relpath(kind, root) for kind in kinds], np.searchsorted(kinds, folders))


def _vote(data: Dataset, labels: Array, similarities: NDArray[np.float32]) -> Array:
    """The class that each image's nearest images (labels and similarities N x K) vote for, -1 if none has a class."""
    given = torch.from_numpy(similarities), torch.from_numpy(labels)
    scores = vote(*given, len(data.classes), Knn().temperature).numpy()
    return np.where(scores.any(1), scores.argmax(1), UNLABELLED)


def _recorded(found: FoundEncoder, subject: Subject, store: Store, rows: Array) -> Iterator[Column]:
    """What `simclr eval` recorded about the test images, for the layer of the subject."""
    data = subject.data
    start = f"eval/{prefix(subject.protocol.layer)}"
    record = None if found.run_id is None else store.get(found.run_id)
    for metric in sorted(record.metrics) if record else ():
        name = metric.removeprefix(start)
        if record is None or not metric.startswith(start) or "/" in name or not is_classification(name):
            continue
        try:
            predicted, truth = predictions(record, metric.removeprefix("eval/"))
        except UserError as error:
            subject.observer.note(f"the errors of {metric} are left out: {error}")
            continue
        if np.array_equal(truth, data.labels[data.parts["test"]]):  # otherwise it was measured on other images
            everywhere = np.full(len(data.labels), UNLABELLED)
            everywhere[data.parts["test"]] = predicted
            about = "test images, as recorded by simclr eval"
            yield from _errors(metric_label(name), data, data.labels[rows], everywhere[rows], about)


def _errors(name: str, data: Dataset, labels: Array, predicted: Array, about: str) -> Iterator[Column]:
    """Whether predictions are right, and what they are. -1 stands for what is not known."""
    known = (labels != UNLABELLED) & (predicted != UNLABELLED)
    yield Column(f"error, {name}", ["right", "wrong"], np.where(known, labels != predicted, -1), about)
    yield Column(f"predicted, {name}", data.classes, predicted)


def _sizes(subject: Subject, files: Files) -> list[Size | None]:
    """The size of each image file, or None where the images are not files on the disk."""
    source = subject.data.source
    if source is None or not source.folder:
        return [None] * len(files.names)
    found: list[Size | None] = []
    for name in files.names:
        data = Path(name).read_bytes()
        with open_image(data) as image:  # which decodes no pixels
            found.append((*image.size, len(data)))
    return found


def _thumbnails(subject: Subject, files: Files, rows: Array) -> NDArray[np.uint8]:
    """Square pictures of the images, N x S x S x 3: as stored, or from the files if those have a finer resolution."""
    data = subject.data
    side = thumbnail_side(len(rows), median_side(files))
    pictures = np.empty((len(rows), 3, side, side), np.uint8)
    if side > data.side:
        decoding = Decoding(side, subject.config.data.background, data.range)
        if bad := decode_files(files, pictures, decoding, subject.observer, "reading pictures").failed:
            raise bad_images(
                [f"{files.names[row]} ({reason})" for row, reason in bad.items()], len(rows), "Restore them"
            )
        return pictures.transpose(0, 2, 3, 1)
    return np.stack(
        [np.asarray(Image.fromarray(data.images[row].transpose(1, 2, 0)).resize((side, side))) for row in rows]
    )
