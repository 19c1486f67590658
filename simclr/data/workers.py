"""Do work on many files in parallel: in as many workers as cores and memory allow, threads or processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from simclr.device import control_groups
from simclr.errors import RunFailed

T = TypeVar("T")

WORKER_MEMORY = 512 << 20  # bytes of available memory for each worker: enough for a picture of 100 megapixels
CHUNK = 64  # items that a worker takes at a time
CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # version 2, 1


def number_of_workers() -> int:
    """One worker for each core that this process may use, if each has WORKER_MEMORY bytes of memory; at least one."""
    memory = available_memory()
    return cores() if memory is None else max(1, min(cores(), memory // WORKER_MEMORY))


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process can still use: what the machine has left, and what its control groups allow.

    None where the system does not say (it is not Linux). `root` holds proc and sys.
    """
    try:
        lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
        left = [int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"]
    except OSError:
        return None
    for folder in control_groups(root):
        left += _left_in_group(folder)
    return min(left, default=None)


def _left_in_group(folder: Path) -> list[int]:
    for limit, used in CGROUP_FILES:
        try:
            limits, uses = (folder / limit).read_text().strip(), int((folder / used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:  # it is the other version, or has no limit
            continue
        if limits != "max":
            return [int(limits) - uses + int(stat.get("inactive_file", 0))]  # the kernel gives up cached files
    return []


def in_chunks(function: Callable[[range], T], total: int, *, processes: bool) -> Iterator[tuple[int, T]]:
    """Call a function on parts of `range(total)`, in parallel. Yields, in order, the end of each part and the result.

    With `processes` the calls are made in forked processes where the system has them, else in threads. Their results
    must be picklable then. Raises RunFailed if such a process is killed.
    """
    workers = number_of_workers()
    size = max(1, min(CHUNK, total // (32 * workers)))  # small ones, so that all workers end at the same time
    chunks = [range(start, min(start + size, total)) for start in range(0, total, size)]
    processes = processes and workers > 1 and "fork" in multiprocessing.get_all_start_methods()
    with _pool(function, workers, processes) as pool:
        try:
            results = pool.map(_call if processes else function, chunks)
            for chunk, result in zip(chunks, results, strict=True):
                yield chunk.stop, result  # type: ignore[misc]
        except BrokenProcessPool:
            raise RunFailed(
                "a process that decodes images was killed, probably because memory ran out: close other programs, or "
                "make very large images smaller, and run the command again"
            ) from None


def _pool(function: Callable[[range], object], workers: int, processes: bool) -> Executor:
    if not processes:
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _start_worker, (function,))


_function: Callable[[range], object]  # what a worker process does; it is inherited, so it need not be picklable


def _start_worker(function: Callable[[range], object]) -> None:
    """Prepare a process that was just forked."""
    global _function
    _function = function
    gc.freeze()  # a collection would write to, and so copy, all memory that is shared with the other process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it handles Ctrl-C
    sys.stdout = sys.stderr = None  # another thread may have held their locks
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it was killed. It would keep that one's lock files otherwise."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(chunk: range) -> object:
    return _function(chunk)
