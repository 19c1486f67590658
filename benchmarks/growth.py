"""How time and memory grow with the number of images: kNN, the linear classifier's grid, t-SNE and decoding.

`measure` runs a case in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch

from benchmarks.decoding import suite_seconds, write_small
from benchmarks.linear import fit_grid, made_up
from benchmarks.sections import Row
from simclr.device import keep_freed_memory
from simclr.evaluate.knn import knn_predict
from simclr.evaluate.linear import Linear

QUERIES = 1000
WIDTH = 512  # of the features
MIB = 2**20
Prepared = Callable[[], object]  # what is timed


def knn(images: int) -> Prepared:
    """kNN (k 200) of 1,000 queries with features of 512 dimensions."""
    draw = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, WIDTH, generator=draw) for n in (images, QUERIES))
    labels = torch.arange(images) % 10
    return lambda: knn_predict(bank, labels, queries, 10, [200], 0.1)


def linear(images: int) -> Prepared:
    """The linear classifier at 45 L2 values with a last fit, on features of 512 dimensions."""
    x, labels = made_up(images, WIDTH)
    return lambda: fit_grid(x, labels, images, Linear())


def tsne(images: int) -> Prepared:
    """t-SNE of features of 512 dimensions in ten clusters."""
    from analysis.tsne import tsne as embed

    x, _ = made_up(images, WIDTH)
    features = x[:images].numpy()
    return lambda: embed(features, 0)


def decoding(images: int) -> Prepared:
    """Opening a folder of small JPEG files for the first time, with all checks."""
    folder = TemporaryDirectory()
    write_small(Path(folder.name, "images"), images)
    return lambda: suite_seconds(Path(folder.name, "images"), Path(folder.name))


CASES: dict[str, tuple[Callable[[int], Prepared], Sequence[int]]] = {
    "kNN, 1,000 queries": (knn, (10_000, 100_000, 1_000_000)),
    "linear classifier, 45 L2 values": (linear, (12_500, 25_000, 50_000)),
    "t-SNE": (tsne, (12_500, 25_000, 50_000)),
    "decoding": (decoding, (5_000, 10_000, 20_000)),
}


def case(prepare: Callable[[int], Prepared], images: int) -> tuple[float, float]:
    """Seconds, and the most MiB that this process holds above what it held before."""
    keep_freed_memory()
    timed, process = prepare(images), psutil.Process()
    _forget_peak()
    before, clock = process.memory_info().rss, time.perf_counter()
    timed()
    seconds = time.perf_counter() - clock
    return seconds, max(0, _peak() - before) / MIB


STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def _forget_peak() -> None:
    """Let the peak of this process's memory begin anew, without what the preparation took. Only Linux can."""
    if FORGET.exists():
        FORGET.write_text("5")


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    import resource

    if STATUS.exists():
        return 1024 * int(STATUS.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(name: str, shrink: int = 1) -> list[Row]:
    """The rows of a case at each size (divided by `shrink`), with how time grows from one size to the next."""
    prepare, sizes = CASES[name]
    rows: list[Row] = []
    for images in (size // shrink for size in sizes):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, memory = pool.submit(case, prepare, images).result()
        row: Row = {"what": name, "images": images, "seconds": seconds, "MiB": memory}
        if rows:
            more = math.log(images / rows[-1]["images"])
            row["time grows as images to the power"] = math.log(seconds / rows[-1]["seconds"]) / more
        rows.append(row)
    return rows
