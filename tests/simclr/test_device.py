"""Devices, their memory and arithmetic."""

from __future__ import annotations

import platform
import subprocess
import sys

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
def test_precision_is_what_the_hardware_is_good_at(
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
        torch.OutOfMemoryError("CUDA says it by kind"),
        RuntimeError("MPS backend out of memory (MPS allocated: 7 GB). Tried to allocate 1 GB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried 9"),
    ],
    ids=["cuda", "mps", "cpu", "cpu on windows"],
)
def test_out_of_memory_is_known_on_every_device(error: RuntimeError) -> None:
    with pytest.raises(BadSettings, match="out of memory: take less"), devices.memory_errors("take less"):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), devices.memory_errors("take less"):
        raise RuntimeError("shapes differ")


def test_a_device_that_holds_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="device 'meta' can't be used here"):
        devices.resolve("meta")


KEPT = """
import ctypes, sys
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has it")
def test_freed_memory_is_kept_for_the_next_tensors() -> None:
    """By glibc's own account, since kernels count page faults each in their way."""

    def account(how: str) -> list[int]:
        """Bytes that a block of 24 MiB took outside the heap, and that the heap gave back when it was freed."""
        done = subprocess.run([sys.executable, "-c", KEPT, how], cwd=ROOT, capture_output=True, text=True, check=True)
        return [int(text) for text in done.stdout.split()]

    assert account("kept") == [0, 0]
    assert account("not kept")[0] >= 24 * 2**20
