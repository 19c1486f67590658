"""One run in several processes: what they exchange, with torch.distributed. A single process exchanges nothing."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from simclr.device import is_out_of_memory
from simclr.errors import Deserted, RunFailed, UserError

T = TypeVar("T")

# How long a process waits for the others: the first one may have to decode a large data set meanwhile. If a process
# ends, the program that started them notices at once.
PATIENCE = timedelta(days=2)
RETRY_SECONDS = 0.1  # how often a process checks whether the first one is ready


@dataclass(frozen=True)
class World:
    """Where this process stands among those that train a run together."""

    count: int = 1
    rank: int = 0
    pretended: bool = False  # the others are not there, because memory is planned for them


_world = World()


def count() -> int:
    """The number of processes that train the run together."""
    return _world.count


def rank() -> int:
    """The number of this process, from 0."""
    return _world.rank


def is_first() -> bool:
    """Whether this is the process that decodes, records and writes."""
    return _world.rank == 0


def on_this_machine() -> int:
    """How many of the processes run on this machine."""
    return 1 if count() == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", count()))


def started() -> bool:
    """Whether this is one of several processes that torchrun started."""
    return dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def restarts() -> int:
    """How often torchrun has started all processes again because one of them ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def restartable() -> bool:
    """Whether torchrun starts all processes again if one of them ends. Not all of them may know that it already did."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextmanager
def joined() -> Iterator[None]:
    """A context in which this process works together with the others that torchrun started, if it did.

    If several of them fail, one ends with its error, and the others with Deserted.
    """
    if not started():
        yield
        return
    if (local := int(os.environ["LOCAL_RANK"])) < torch.accelerator.device_count():
        torch.accelerator.set_device_index(local)
    store, number, size = next(rendezvous("env://"))
    store = _of_this_round(store, number, size)
    dist.init_process_group(store=store, rank=number, world_size=size, timeout=PATIENCE)
    try:
        with _as(World(size, number)):
            yield
    except (UserError, RunFailed, KeyboardInterrupt) as error:
        if isinstance(error, Deserted) or store.add("failed", 1) > 1:
            raise Deserted(f"{type(error).__name__}: {error}") from error
        raise
    dist.destroy_process_group()


def _of_this_round(store: Any, number: int, size: int) -> Any:
    """The part of torchrun's store for the processes that it started together with this one.

    When torchrun starts all processes again, it keeps its store, with the addresses of processes that have ended. Its
    count of restarts can't tell them apart, because it differs between machines. So the first process begins a new
    round and admits the others. A process that joins an earlier round by mistake is not admitted, and tries again.
    """
    if number == 0:
        name = f"round {store.add('rounds', 1)}"
        for other in range(1, size):
            store.set(f"{name} admits {store.get(f'{name} has {other}').decode()}", "")
        return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    own = uuid.uuid4().hex
    while True:
        name = f"round {store.add('rounds', 0)}"
        store.set(f"{name} has {number}", own)
        if store.check([f"{name} admits {own}"]):  # to wait for it instead would print a warning after each timeout
            return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
        time.sleep(RETRY_SECONDS)


@contextmanager
def pretended(processes: int) -> Iterator[None]:
    """A context in which memory is planned for the first of this many processes."""
    with _as(World(processes, pretended=True)):
        yield


@contextmanager
def _as(world: World) -> Iterator[None]:
    global _world
    before, _world = _world, world
    try:
        yield
    finally:
        _world = before


def share(total: int) -> slice:
    """The part of `total` rows that belongs to this process. All parts have one size."""
    size = total // _world.count
    return slice(_world.rank * size, (_world.rank + 1) * size)


def deal(items: Sequence[T]) -> Iterator[T]:
    """The items of this process: every n-th one of n processes, from its own number on."""
    return islice(items, _world.rank, None, _world.count)


def gather(own: Tensor, dim: int = 0) -> Tensor:
    """The tensors of all processes, which have one shape, joined in the order of the processes. It has no graph."""
    if _world.count == 1:
        return own
    own = own.contiguous()
    parts = [torch.empty_like(own) for _ in range(_world.count)]
    _exchange(dist.all_gather, parts, own)
    return torch.cat(parts, dim)


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes. They travel together, so they must have one dtype."""
    if _world.count == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    _exchange(dist.all_reduce, flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def map_rows(function: Callable[[Any], Tensor], rows: Any) -> Tensor:
    """The results of a function that maps row numbers to one result per row. Each process computes a part."""
    if _world.count == 1:
        return function(rows)
    padded = np.resize(rows, -(-len(rows) // _world.count) * _world.count)  # repeats rows until all parts have one size
    return gather(function(padded[share(len(padded))]))[: len(rows)]


def any_says(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if _world.count == 1:
        return flag
    votes = torch.tensor([int(flag)])
    add_up([votes])
    return bool(votes.item())


def first_says(function: Callable[[], T]) -> T:
    """What a function returns in the first process. The others wait for it and don't call theirs."""
    if _world.count == 1:
        return function()
    message = [function() if is_first() else None]
    _exchange(dist.broadcast_object_list, message)
    return message[0]  # type: ignore[return-value]


@contextmanager
def first_alone() -> Iterator[None]:
    """A context that the first process leaves before the others enter it."""
    if not is_first():
        first_says(lambda: None)
    yield
    if is_first():
        first_says(lambda: None)


def agree(facts: Mapping[str, Any], remedy: str) -> None:
    """Raise UserError, with a remedy, unless all processes have the same facts. It names the first that differs."""
    if _world.count == 1:
        return
    everyones: list[Any] = [None] * _world.count
    _exchange(dist.all_gather_object, everyones, dict(facts))
    for number, theirs in enumerate(everyones):
        for name in [*everyones[0], *theirs]:
            mine, other = everyones[0].get(name), theirs.get(name)
            if mine != other:
                raise UserError(
                    f"the processes of this run disagree: {name} is {mine} in process 0 and {other} in process "
                    f"{number}. {remedy}"
                )


def _exchange(collective: Callable[..., Any], *arguments: Any) -> None:
    """Exchange something with the other processes. Raises Deserted if one of them is not there any more."""
    if _world.pretended:
        return
    try:
        collective(*arguments)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise Deserted(str(error).splitlines()[0]) from error
