"""Devices: precision, errors when memory runs out, and freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simclr import device as devices
from simclr.errors import BadSettings, UserError
from tests.helpers import ROOT

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "fast", "dtype"),
    [
        (CPU, True, torch.bfloat16),
        (CPU, False, torch.float32),
        (CUDA, True, torch.bfloat16),
        (CUDA, False, torch.float16),
    ],
    ids=str,
)
def test_auto_precision_is_fast_on_the_hardware(
    device: torch.device, fast: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    assert devices.resolve_precision("auto", device) == dtype
    assert devices.resolve_precision("fp32", device) == torch.float32


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA has a class for it"),
        RuntimeError("MPS backend out of memory (MPS allocated: 7 GB). Tried to allocate 1 GB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried 9"),
    ],
    ids=["cuda", "mps", "cpu", "cpu on windows"],
)
def test_out_of_memory_errors_of_every_device_are_recognised(error: RuntimeError) -> None:
    with pytest.raises(BadSettings, match="out of memory: take less"), devices.memory_errors("take less"):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), devices.memory_errors("take less"):
        raise RuntimeError("shapes differ")


def test_the_cpu_is_no_remedy_where_its_own_memory_ran_out() -> None:
    cpu, cuda = "DefaultCPUAllocator: can't allocate memory: you tried 9 bytes", "CUDA out of memory"
    for text, remedy in ((cpu, "free some"), (cuda, "use the cpu")):
        with pytest.raises(BadSettings, match=remedy), devices.memory_errors("use the cpu", "free some"):
            raise RuntimeError(text)


def test_devices_that_cannot_be_used_are_rejected() -> None:
    for name in ("meta", "cuda:99", "toaster", "hpu", ""):
        with pytest.raises(
            UserError, match=f"device '{name}' is not available here: use --device auto or --device cpu"
        ):
            devices.resolve(name)
    assert devices.resolve("cpu") == CPU


# Prints how many bytes a block of 24 MiB took outside the heap, and how many the heap returned when it was freed.
# `keep_freed_memory` does not use torch, which is replaced here because importing it takes seconds.
FREED = """
import ctypes, sys
from unittest.mock import MagicMock
sys.modules["torch"] = MagicMock()
from simclr.device import keep_freed_memory
class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
glibc = ctypes.CDLL(None)
glibc.mallinfo2.restype = Mallinfo2
glibc.malloc.restype, glibc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
glibc.free.restype, glibc.free.argtypes = None, [ctypes.c_void_p]
if sys.argv[1] == "kept":
    keep_freed_memory()
before = glibc.mallinfo2()
block = glibc.malloc(24 * 2**20)
during = glibc.mallinfo2()
glibc.free(block)
print(during.hblkhd - before.hblkhd, during.arena - glibc.mallinfo2().arena)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(("how", "outside"), [("kept", 0), ("not kept", 24 * 2**20)])
def test_freed_memory_is_kept_for_later_tensors(how: str, outside: int) -> None:
    done = subprocess.run([sys.executable, "-c", FREED, how], cwd=ROOT, capture_output=True, text=True, check=True)
    took, returned = map(int, done.stdout.split())
    assert outside <= took <= outside + 2**16
    assert returned == 0


@pytest.mark.parametrize(
    ("group", "files", "limits"),
    [
        ("0::/", {"memory.max": "4294967296"}, [2**32]),
        ("0::/a/b", {"a/memory.max": "4096", "a/b/memory.max": "max"}, [4096]),
        ("9:memory:/docker/1f2e\n8:cpu:/", {"memory/memory.limit_in_bytes": "8192"}, [8192]),
        ("0::/", {}, []),
    ],
    ids=["a container", "a group inside another", "version 1", "no limit"],
)
def test_the_memory_of_the_system_is_at_most_what_its_control_groups_allow(
    group: str, files: dict[str, str], limits: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in ({"proc/self/cgroup": group} | {f"sys/fs/cgroup/{name}": t for name, t in files.items()}).items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert devices.container_limits(tmp_path) == limits
    monkeypatch.setattr(devices, "container_limits", lambda: [])
    machine = devices.system_memory()
    monkeypatch.setattr(devices, "container_limits", lambda: limits)
    assert devices.system_memory() == min([machine, *limits])


def test_work_that_does_not_fit_is_done_in_halves() -> None:
    sizes = []

    def work(size: int) -> int:
        sizes.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size

    assert devices.within_memory(work, 13) == 3
    assert sizes == [13, 6, 3]
    with pytest.raises(torch.OutOfMemoryError):
        devices.within_memory(lambda size: work(size + 3), 5)


@pytest.mark.parametrize(("free", "there"), [(4000, True), (3999, False)])
def test_images_are_placed_on_an_accelerator_if_they_take_a_quarter_of_what_is_free(
    free: int, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _: (free, 2**30))
    images = torch.zeros(1000, dtype=torch.uint8)
    assert devices.place(images, torch.device("meta")).device.type == ("meta" if there else "cpu")
    assert devices.place(images, CPU) is images
