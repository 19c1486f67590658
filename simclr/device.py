"""The device and the arithmetic that a run uses."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .errors import BadSettings, UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
MMAP_THRESHOLD = 2**25  # bytes; the most that glibc would choose itself


def resolve(name: str) -> torch.device:
    """`auto` (the accelerator if there is one, else the CPU) or a device by name. Raises UserError if it is absent."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # meta has nothing to copy
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device '{name}' can't be used here ({reason}): try --device auto or --device cpu") from None
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on a device, on CUDA without waiting for what the device is at.

    CUDA stages memory that is not pinned before it goes on; Apple's GPU may read it after it was freed (pytorch issue
    189690).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def is_out_of_memory(error: RuntimeError) -> bool:
    """torch.OutOfMemoryError is CUDA's; other allocators (Apple's, the CPU's, the CPU's on Windows) say it in words."""
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


def keep_freed_memory() -> None:
    """Have glibc keep what tensors on the CPU leave behind, for those that follow, where it would give it back at once.

    Getting it again costs a page fault each 4 KiB: about a tenth of a training step (docs/results.md). What is larger
    than MMAP_THRESHOLD goes back all the same. Where there is no glibc, nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        glibc = ctypes.CDLL(None)
        glibc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        glibc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_memory() -> None:
    """Give back what the accelerator's allocator holds for later (Apple's is the system's own memory)."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None and not shares_memory(device):
        torch.accelerator.empty_cache()


def shares_memory(device: torch.device) -> bool:
    """Whether a device's memory is the whole system's, of which nothing is planned."""
    return device.type in ("cpu", "mps")


def system_memory() -> float:
    """Bytes of the machine's memory; infinite where the system does not say, as Windows does not."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Out of memory, on whatever device, becomes a RunFailed (BadSettings) with a remedy."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise BadSettings(f"out of memory: {remedy} ({str(error).splitlines()[0]})") from None


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def precision_on(name: str, device: torch.device) -> str:
    """What `auto` is on a device: bf16 where it is fast, else fp16 on CUDA, else fp32; other names are themselves."""
    if name != "auto":
        return name
    return "bf16" if has_fast_bf16(device) else "fp16" if device.type == "cuda" else "fp32"


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision_on(name, device)]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to a dtype, off for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@contextmanager
def whole_float32() -> Iterator[None]:
    """float32 convolutions with all their bits: cuDNN would round their inputs to TF32's ten."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
