"""Devices, their memory and arithmetic."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

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
