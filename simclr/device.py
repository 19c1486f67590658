"""The device that a run uses, its memory, and the precision of its arithmetic."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from simclr.errors import BadSettings, UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
MMAP_THRESHOLD = 2**25  # bytes, the largest value that glibc chooses by itself
BUSY = 1.5  # load per core above which other programs must be running too, because one run doesn't cause it


def resolve(name: str) -> torch.device:
    """The device with this name. `auto` is the accelerator if there is one, else the CPU.

    Raises UserError if the device can't be used.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # fails on the meta device, which holds no data
    except (RuntimeError, AssertionError, ImportError):  # torch imports the module of some kinds
        raise UserError(f"device '{name}' is not available here: use --device auto or --device cpu") from None
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to a device. CUDA does not wait for its queued work.

    This is safe on CUDA, which copies unpinned memory to a buffer before it returns. Apple's GPU may read the memory
    after it was freed (pytorch issue 189690), so it does wait.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that memory ran out.

    Only CUDA raises torch.OutOfMemoryError. The allocators of Apple's GPU and of the CPU say it in the message.
    """
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in str(error) for phrase in phrases)


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed CPU tensors for later tensors, instead of returning it to the system.

    Getting memory again costs a page fault for every 4 KiB, about a tenth of a training step (docs/results/cpu.md).
    Blocks larger than MMAP_THRESHOLD are still returned. Without glibc this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        glibc = ctypes.CDLL(None)
        glibc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        glibc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_memory() -> None:
    """Return the cached memory of a CUDA-like accelerator to the device. Does nothing on Apple's GPU and the CPU."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None and not shares_memory(device):
        torch.accelerator.empty_cache()


def shares_memory(device: torch.device) -> bool:
    """Whether a device uses the system's memory, for which no memory is planned."""
    return device.type in ("cpu", "mps")


def system_memory() -> float:
    """The bytes of memory that this process may use: all of the machine's, or less where a container limits it.

    It is infinity where the system doesn't report it (Windows).
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    return min([machine, *container_limits()])


def container_limits(root: Path = Path("/")) -> list[int]:
    """The memory limits in bytes of this process's control groups (see `control_groups`), as far as they are set."""
    files = (folder / name for folder in control_groups(root) for name in ("memory.max", "memory.limit_in_bytes"))
    return [int(text) for file in files if file.is_file() and (text := file.read_text().strip()).isdigit()]


def control_groups(root: Path = Path("/")) -> Iterator[Path]:
    """The folders of this process's control groups and of those around them, by which Linux limits its memory.

    Containers are such groups, of version 1 or 2. `root` holds proc and sys.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:  # such as "0::/user.slice/session.scope" or "9:memory:/docker/1f2e"
        _, controllers, path = group.split(":", 2)
        if controllers in ("", "memory"):
            top = root / "sys/fs/cgroup" / controllers
            folder = top / path.lstrip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top))


T = TypeVar("T")


def within_memory(work: Callable[[int], T], size: int) -> T:
    """What `work(size)` returns. If it runs out of memory, it starts over with half the size, as often as needed.

    Raises the error of the device if the memory is too small for a size of 1.
    """
    while True:
        try:
            return work(size)
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        size //= 2
        release_memory()


def place(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device if it takes at most a quarter of what is free there, otherwise as it is."""
    if shares_memory(device) or tensor.nbytes > torch.accelerator.get_memory_info(device)[0] / 4:
        return tensor
    return tensor.to(device)


MORE_MEMORY = "free some memory, or use a machine that has more"


@contextmanager
def memory_errors(remedy: str, on_cpu: str | None = None) -> Iterator[None]:
    """A context in which running out of memory, on any device, raises BadSettings with a remedy.

    `on_cpu` is the remedy if the CPU's memory ran out, where that differs.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if on_cpu is not None and "CPUAllocator" in str(error):
            remedy = on_cpu
        raise BadSettings(f"out of memory: {remedy} ({str(error).splitlines()[0]})") from None


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def can_compute(precision: str, device: torch.device) -> bool:
    """Whether `auto` may stand for this precision on the device: fp32, or what the hardware is fast at."""
    return precision in ("fp32", precision_on("auto", device)) or (precision == "fp16" and device.type == "cuda")


def precision_on(name: str, device: torch.device) -> str:
    """The precision to use on a device. `auto` is bf16 if that is fast, else fp16 on CUDA, else fp32."""
    if name != "auto":
        return name
    return "bf16" if has_fast_bf16(device) else "fp16" if device.type == "cuda" else "fp32"


PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype for `autocast` with this precision."""
    return PRECISIONS[precision_on(name, device)]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """An autocast context for a dtype, which is disabled for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@contextmanager
def full_float32() -> Iterator[None]:
    """A context in which float32 keeps its 24 bits on CUDA too. By default, cuDNN convolves with TF32's 11.

    It must last until the backward pass has ended, which reads the switches too.
    """
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@contextmanager
def threads(count: int) -> Iterator[None]:
    """A context in which torch computes with this many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(device: torch.device) -> str:
    """A short description of a device for messages."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads != 1)}" if device.type == "cpu" else device.type
