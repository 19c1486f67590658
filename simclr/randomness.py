"""Random numbers that depend only on their purpose, never on what was drawn before.

Every draw is keyed by (seed, purpose, ...). A run that is resumed, split into micro-batches, or trained without one
augmentation therefore gets the same numbers for everything else. Numbers are drawn on the CPU, so they are the same on
every device.
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
    """A 63-bit seed for one purpose, e.g. `subseed(0, "view", step, 0, "flip")`."""
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
        if func in (aten.normal_.default, aten.uniform_.default):  # all of torch.nn.init uses one of these
            # The key includes the distribution: torchvision's networks draw again, over the defaults of the layers.
            key = (func, *args[0].shape)
            torch.default_generator.manual_seed(subseed(self.seed, *self.purpose, *key, self.drawn[key]))
            self.drawn[key] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def initial_weights(seed: int, *purpose: object) -> Iterator[None]:
    """A context in which new layers draw their n-th tensor of each shape from the seed (seed, purpose, shape, n).

    Networks that differ in depth, width, stem or head therefore get the same initial weights where their shapes agree.
    The global random state is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]), _DrawsByShape(seed, ("init", *purpose)):
        torch.default_generator.manual_seed(subseed(seed, "init", *purpose))  # for any other kind of draw
        yield
