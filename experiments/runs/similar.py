"""Search images for those that are most similar to a query, and write what was found."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis import image_grids
from analysis.matches import Match, Query, below, matches_page
from analysis.tables import write_csv
from experiments.runs.encoders import FoundEncoder
from simclr import device as devices
from simclr.data.images import Array, Decoding, Files, bad_images, decode_files, files_at, read_file, thumbnail
from simclr.data.source import UNLABELLED
from simclr.data.unreadable import reason
from simclr.errors import UserError, printable, similar_path
from simclr.evaluate.knn import nearest
from simclr.evaluate.subject import Subject, check_collapse, features, model_fingerprint
from simclr.files import written_whole
from simclr.model import Network
from simclr.progress import SILENT
from simclr.weights.encoder import Encoder
from simclr.weights.features import read_features

THUMBNAIL = 160  # longest side of a picture in pixels


class Bank(NamedTuple):
    """The images that are searched, and the network that gave their features."""

    model: Network
    layer: str
    decoding: Decoding  # of queries, and of the thumbnails except for their side
    files: Files
    features: Tensor  # files x D, on the device of the model
    classes: Sequence[str]  # of each file, or empty
    pixels: Callable[[int], Array] | None = None  # of each file, 3 x S x S, if the images are not files on the disk
    root: str = ""  # the folder that the images are in, if they are files of a folder


class Similar(NamedTuple):
    """An image of the bank that is similar to a query."""

    file: str
    similarity: float  # cosine similarity of the features, at most 1
    label: str | None  # its class, if it has one


class Found(NamedTuple):
    """What was found for a query, nearest first."""

    query: str
    similar: list[Similar]


def bank_of(subject: Subject, part: str | None = None) -> Bank:
    """The images of a part of the subject's data set, or all of them. Raises BadSettings if the encoder collapsed."""
    data, layer = subject.data, subject.protocol.layer
    rows = np.arange(len(data.labels)) if part is None else data.parts[part]
    everything = data.files()
    files = everything._replace(names=[everything.names[row] for row in rows.tolist()])
    on_disk = data.source is not None and bool(data.source.folder)
    with devices.memory_errors("use --device cpu", devices.MORE_MEMORY):
        check_collapse(subject)
        x = features(subject.model, data.images, rows, torch.float32, layer)
    return Bank(
        subject.model,
        layer,
        Decoding(data.side, subject.config.data.background, data.range),
        files,
        x,
        [data.classes[label] if label != UNLABELLED else "" for label in data.labels[rows]],
        None if on_disk else lambda row: data.images[rows[row]],
        data.source.folder if data.source is not None and on_disk else "",
    )


def bank_in(path: Path, found: FoundEncoder, device: str | None) -> Bank:
    """The images whose features are in a Parquet file of `simclr embed`. Raises UserError if another encoder's are."""
    read = read_features(path)
    encoder = Encoder(found.config, found.weights).to(devices.resolve(device or found.config.device))
    if read.encoder != model_fingerprint(encoder.model):
        whose = "of another encoder" if read.encoder else "without a note of their encoder"
        encoder_name = shlex.quote(found.run_id[:8] if found.run_id else str(found.path))
        raise UserError(
            f"{path} holds features {whose}: write it again with `simclr embed {encoder_name} FOLDER --out {path}`"
        )
    x = torch.from_numpy(read.features).to(encoder.model.mean.device)
    return Bank(
        encoder.model,
        "h",
        encoder.decoding,
        files_at(list(map(Path, read.names))),
        x,
        [""] * len(read.names),
        root=os.path.commonpath([str(Path(name).parent) for name in read.names]),
    )


def search(bank: Bank, queries: Sequence[Path], count: int) -> list[Found]:
    """The `count` images that are most similar to each image file, by cosine similarity of their features.

    If a query is in the bank itself, it is left out: the same file, or, where the bank's images are not files on the
    disk, an image of the same pixels. Its copies under other names stay. Raises UserError for queries that can't be
    read.
    """
    images = read_queries(queries, bank.decoding, bank.root)
    with devices.memory_errors("use --device cpu", devices.MORE_MEMORY):
        x = features(bank.model, images, np.arange(len(images)), torch.float32, bank.layer)
        near = nearest(bank.features, x, count + 1)
    found = []
    for query, pixels, similarities, rows in zip(queries, images, *(part.tolist() for part in near), strict=True):
        itself = next((row for row in rows if _is_query(bank, row, query, pixels)), None)
        others = [(row, value) for row, value in zip(rows, similarities, strict=True) if row != itself]
        if not others:
            raise UserError(f"there is no image to compare {query} with: search more images, with --among")
        similar = [
            Similar(bank.files.names[row], min(1.0, value), bank.classes[row] or None)  # float32 rounds 1 up
            for row, value in others[:count]
        ]
        found.append(Found(os.path.abspath(query), similar))  # noqa: PTH100 (absolute() would keep ..)
    return found


def read_queries(files: Sequence[Path], decoding: Decoding, among: str) -> Array:
    """The images in some files, as uint8 N x 3 x S x S. Raises UserError for those that can't be read.

    For a file that isn't there, the error suggests one of this name in the folder `among`, or of a similar name.
    """
    for file in files:
        if file.is_dir():
            raise UserError(f"{file} is a folder: expected image files")
        if not file.is_file():
            inside = (os.path.join(folder, file.name) for folder, _, names in os.walk(among) if file.name in names)
            near = next(inside, None) or similar_path(file)
            remedy = f"did you mean '{near}'?" if near else "expected image files"
            raise UserError(f"there is no file {file}: {remedy}")
    images = np.empty((len(files), 3, decoding.side, decoding.side), np.uint8)
    if bad := decode_files(files_at(files), images, decoding, SILENT, "").failed:
        reasons = "; ".join(f"{files[row]} ({why})" for row, why in bad.items())
        raise UserError(f"can't read as an image: {reasons}. Leave out what is damaged or not an image")
    return images


def _is_query(bank: Bank, row: int, query: Path, pixels: Array) -> bool:
    if bank.pixels is not None:
        return np.array_equal(bank.pixels(row), pixels)
    return os.path.realpath(bank.files.names[row]) == os.path.realpath(query)


def write_found(found: Sequence[Found], bank: Bank, out: Path, encoder: str) -> None:
    """Write what was found to a .csv table, an .html page, or a picture, all with the names of the files.

    In tables and pages, the names of files in the bank's folder are those below it. A page names the `encoder`, too.

    Pages and pictures show the images as they are on the disk, not as the encoder sees them. Raises UserError if they
    are not there any more.
    """
    if out.suffix == ".csv":
        with written_whole(out) as scratch:
            write_csv(_table(below_folder(found, bank.root)), scratch)
        return
    queries = _pictures([query for query, _ in found], read_file, bank.decoding)
    pictures = _pictures([each.file for _, similar in found for each in similar], bank.files.read, bank.decoding)
    shown = [
        Query(
            printable(query),
            queries[query],
            [Match(printable(file), pictures[file], similarity, label or "") for file, similarity, label in similar],
        )
        for query, similar in found
    ]
    with written_whole(out) as scratch:
        if out.suffix == ".html":
            title = f"Similar images{f' in {Path(bank.root).name}' if bank.root else ''}, by the encoder of {encoder}"
            scratch.write_text(matches_page(printable(title), shown, bank.root), "utf-8")
        else:
            image_grids.neighbours(shown, scratch)


def below_folder(found: Sequence[Found], root: str) -> list[Found]:
    """What was found, with the names of files in the folder `root` as those below it."""
    return [
        Found(below(root, query), [each._replace(file=below(root, each.file)) for each in similar])
        for query, similar in found
    ]


def _table(found: Sequence[Found]) -> pd.DataFrame:
    """One row for each similar image, whose rank is 1 for the nearest."""
    rows = [
        (printable(query), rank, printable(each.file), round(each.similarity, 6), each.label)
        for query, similar in found
        for rank, each in enumerate(similar, 1)
    ]
    return pd.DataFrame(rows, columns=["query", "rank", "file", "similarity", "class"])


def _pictures(names: Iterable[str], read: Callable[[str], bytes], decoding: Decoding) -> dict[str, NDArray[np.uint8]]:
    """The whole image of each file, shrunk: H x W x 3."""
    found: dict[str, NDArray[np.uint8]] = {}
    bad: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            found[name] = np.asarray(thumbnail(read(name), decoding._replace(side=THUMBNAIL)))
        except Exception as error:  # PIL raises many kinds
            bad[name] = f"{name} ({reason(error)})"
    if bad:
        remedy = "If they have moved, run simclr embed again. Or write only their names with --out FILE.csv"
        raise bad_images(list(bad.values()), len(found) + len(bad), remedy)
    return found
