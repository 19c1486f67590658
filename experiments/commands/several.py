"""A command in several processes: how it starts them, and what those after the first one show, which is nothing."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn, Self

import typer

from experiments.commands.terminal import SIGNALS
from simclr.errors import Deserted, RunFailed, UserError
from simclr.progress import Observer

Processes = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Number of processes that train the run together on this machine, each on a GPU of its own: a number, or "
        "auto for one per GPU. The result is the same as in one process. For several machines, use torchrun.",
        show_default="1",
    ),
]
MOST = 4096  # processes of one machine
STOP_SECONDS = 600  # in which a process that is asked to stop finishes its step and saves a checkpoint


def starts_processes(asked: str) -> bool:
    """Run this command in several processes, if that is asked for and this isn't one of them. Returns whether it did.

    Raises UserError for a number that can't be. If the processes fail, raises typer.Exit if one of them has said why,
    and RunFailed if none has.
    """
    import torch

    from simclr import processes

    if asked != "auto" and not (asked.isascii() and asked.isdigit() and 1 <= int(asked) <= MOST):
        raise UserError(f"--processes '{asked}': expected auto, or a number from 1 to {MOST}")
    count = max(1, torch.accelerator.device_count()) if asked == "auto" else int(asked)
    if processes.started():
        if count != (here := processes.on_this_machine()):
            raise UserError(f"--processes {asked}, but torchrun started {here} on this machine: leave out --processes")
        return False
    if count > 1:
        _start(count)
    return count > 1


def _start(count: int) -> None:
    """Run the command line of this process in this many others, which find each other through the loopback
    interface."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from simclr.data.workers import cores

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    for name in (name for _, name in socket.if_nameindex() if name.startswith("lo")):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    config = LaunchConfig(
        1,
        1,
        count,
        run_id="simclr",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=STOP_SECONDS,
    )
    logging.disable(logging.CRITICAL)  # the launcher reports failures at length
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except ChildFailedError as error:
        _fail({rank: failure.exitcode for rank, failure in error.failures.items()}, count)
    except SignalException as stopped:
        raise typer.Exit(128 + stopped.sigval) from None
    finally:
        logging.disable(logging.NOTSET)


def _fail(codes: Mapping[int, int], count: int) -> NoReturn:
    """End with the exit code of the process that has said what failed, or say which one was killed."""
    if said := [code for code in codes.values() if code > 0 and code != Deserted.exit_code]:
        raise typer.Exit(said[0])
    killed = {rank: code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM} or codes
    rank, code = next(iter(killed.items()))
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else "lost the others"
    raise RunFailed(
        f"process {rank} of {count} {how}, perhaps because memory ran out: to continue from the last checkpoint, run "
        f"the same command with --resume"
    )


class Follower(Observer):
    """Shows nothing, and asks to stop after SIGINT or SIGTERM. Use it as a context manager."""

    def __init__(self) -> None:
        self._stopping = False

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, *_: Any) -> None:
        self._stopping = True

    def stop(self) -> bool:
        return self._stopping
