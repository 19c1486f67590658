"""Random numbers as a function of what they are for, never of what was drawn before.

Every draw is keyed by (seed, purpose, ...). A run resumed at any step, cut into any micro-batches, or with one
operation removed, sees for everything else exactly what it would have seen. Draws are made on the CPU, so that they
are the same on every device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


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


class _DrawsByShape(TorchDispatchMode):
    def __init__(self, seed: int, purpose: tuple[object, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed, self.purpose = seed, purpose
        self.drawn: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.normal_.default, aten.uniform_.default):  # what torch.nn.init comes down to
            # By kind too: layers first draw by their own rule, and torchvision's networks by another over them.
            key = (func, *args[0].shape)
            torch.default_generator.manual_seed(subseed(self.seed, *self.purpose, *key, self.drawn[key]))
            self.drawn[key] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def initial_weights(seed: int, *purpose: object) -> Iterator[None]:
    """Layers built within draw the n-th tensor of a shape from a seed of (seed, purpose, shape, n).

    So networks of other depths, widths, stems or heads begin with the same weights where shapes agree. The global
    random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]), _DrawsByShape(seed, ("init", *purpose)):
        torch.default_generator.manual_seed(subseed(seed, "init", *purpose))  # of whatever else a layer may draw
        yield
