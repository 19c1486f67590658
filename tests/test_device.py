"""Devices, their memory and arithmetic."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from simclr import device as devices

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


FAULTS = """
import resource, sys, torch
from simclr.device import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def work():
    a = torch.ones(2**21)
    b = a + 1
    return a * b
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has it")
def test_freed_memory_is_kept_for_the_next_tensors() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], cwd=ROOT, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert 10 * faults("kept") < faults("not kept")
