"""Random numbers as a function of what they are for, never of what was drawn before.

Every draw is keyed by (seed, purpose, ...). A run resumed at any step, cut into any micro-batches, or with one
operation removed, sees for everything else exactly what it would have seen. Draws are made on the CPU, so that they
are the same on every device.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor


def subseed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, e.g. `subseed(0, "views", step, "flip")`."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(subseed(seed, *purpose))


def uniforms(shape: tuple[int, ...], seed: int, *purpose: object) -> Tensor:
    """Float32 numbers in [0, 1) for one purpose."""
    return torch.rand(shape, generator=generator(seed, *purpose))


def permutation(n: int, seed: int, *purpose: object) -> Tensor:
    """A permutation of 0 .. n-1 for one purpose."""
    return torch.randperm(n, generator=generator(seed, *purpose))
