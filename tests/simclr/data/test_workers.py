"""Work is spread over as many workers as cores and memory allow, and no worker outlives the process that started it."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from simclr.data import images, workers
from simclr.data.images import Decoding, Files, decode_files
from simclr.data.store import allocate
from simclr.data.workers import WORKER_MEMORY, available_memory, in_chunks, number_of_workers
from simclr.errors import RunFailed
from simclr.progress import SILENT
from tests.simclr.data.helpers import encode, noise, plain

GIB = 1 << 30
pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system can't fork")


@pytest.fixture
def two_workers(monkeypatch):
    monkeypatch.setattr(workers, "number_of_workers", lambda: 2)


def write_system(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {12 * GIB // 1024} kB\n"}
NO_GROUP = MEMINFO | {"proc/self/cgroup": "0::/\n"}


def test_memory_is_what_the_machine_has_left(tmp_path):
    assert available_memory(write_system(tmp_path, NO_GROUP)) == 12 * GIB
    assert available_memory(tmp_path / "not Linux") is None


def group(folder, limit, used, cached, names=("memory.max", "memory.current")):
    stat = f"anon 5\ninactive_file {cached}\n"
    return {f"{folder}/{names[0]}": f"{limit}\n", f"{folder}/{names[1]}": f"{used}\n", f"{folder}/memory.stat": stat}


def test_memory_is_bounded_by_the_control_groups_around_the_process(tmp_path):
    inner, outer = "sys/fs/cgroup/pod/app", "sys/fs/cgroup/pod"
    files = MEMINFO | {"proc/self/cgroup": "0::/pod/app\n"} | group(inner, "max", GIB, 0)
    files |= group(outer, 4 * GIB, 3 * GIB, GIB // 2)
    assert available_memory(write_system(tmp_path, files)) == GIB + GIB // 2


def test_memory_is_bounded_by_the_first_version_of_control_groups_too(tmp_path):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    files = MEMINFO | {"proc/self/cgroup": "5:cpu:/\n9:memory:/docker/1f2e\n"}
    files |= group("sys/fs/cgroup/memory/docker/1f2e", 2 * GIB, GIB, 0, names)
    assert available_memory(write_system(tmp_path, files)) == GIB


@pytest.mark.parametrize(("memory", "expected"), [(100 * GIB, 8), (3 * WORKER_MEMORY, 3), (1, 1), (None, 8)])
def test_workers_are_bounded_by_cores_and_memory(memory, expected, monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(workers, "available_memory", lambda: memory)
    assert number_of_workers() == expected


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("total", [0, 1, 5, 1000])
def test_chunks_cover_everything_in_order(processes, total, two_workers):
    found = list(in_chunks(list, total, processes=processes))
    assert [row for _, rows in found for row in rows] == list(range(total))
    assert [end for end, _ in found] == [rows[-1] + 1 for _, rows in found]


def test_processes_decode_the_same_as_threads(tmp_path, rng, monkeypatch, two_workers):
    monkeypatch.setattr(images, "MANY", 10)
    contents = {f"{i}.png": encode(noise(rng, 20, 20, 3)) for i in range(30)} | {"bad.png": b"\0"}
    parent, pids = os.getpid(), multiprocessing.Array("i", 31)

    def read(name):
        pids[list(contents).index(name)] = os.getpid()
        return contents[name]

    outs = []
    for forkable in (True, False):
        outs.append(allocate(tmp_path / f"{forkable}.npy", (31, 3, 16, 16)))
        outcome = decode_files(Files(list(contents), read, forkable), outs[-1], Decoding(16), SILENT, "")
        assert outcome.failed == {30: "not an image"}
        assert (parent in pids[:]) is not forkable
    assert np.array_equal(*outs)


def test_process_that_is_killed_is_an_error(two_workers):
    with pytest.raises(RunFailed, match="memory ran out"):
        list(in_chunks(lambda rows: os.kill(os.getpid(), signal.SIGKILL), 5, processes=True))


def test_running_out_of_memory_in_a_process_is_raised(two_workers):
    def fail(rows):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(in_chunks(fail, 5, processes=True))


def test_workers_end_with_the_process_that_started_them(two_workers):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work(rows):
        sender.send(os.getpid())
        time.sleep(600)

    parent = context.Process(target=lambda: list(in_chunks(work, 2, processes=True)))
    parent.start()
    pids = [receiver.recv(), receiver.recv()]
    sender.close()
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    with pytest.raises(EOFError):  # once no process holds the other end of the pipe
        receiver.recv()
    assert len(set(pids)) == 2


def test_small_data_sets_need_no_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    out = allocate(tmp_path / "images.npy", (3, 3, 8, 8))
    decode_files(Files(list("abc"), lambda name: plain(9), forkable=True), out, Decoding(8), SILENT, "")
    assert (out == 9).all()
