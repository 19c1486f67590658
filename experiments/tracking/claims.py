"""Claim work before it is done, so that two processes with the same record never do the same work at the same time.

Within a home this takes a lock on a file. If the record is shared by several homes, it takes a lease there as well.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.tracking.leases import LEASE_SECONDS, Lease
from experiments.tracking.store import Store
from simclr.errors import RunFailed, UserError
from simclr.progress import SILENT, Observer

POLL_SECONDS = 0.5  # how often a process that waits checks whether it should stop
LOOK_SECONDS = 2.0  # how often it asks the record for leases


class Busy(UserError):  # noqa: N818 (it describes the work)
    """Another process is doing this work."""


@contextmanager
def claim_config(
    store: Store, key: str, digest: str, *, wait: bool = True, observer: Observer = SILENT
) -> Iterator[None]:
    """Be the only process that trains the config with this key on the data with this digest.

    If another process is training it, wait until that ends, and say so; without `wait`, raise Busy. Raises
    KeyboardInterrupt if the observer asks to stop meanwhile. Claims of the same process may be nested.
    """
    claim = Claim(store, key, digest, nested=True)
    if not claim.acquired():
        running = [record for record in store.of_key(key, digest) if record.status == "RUNNING"]
        what = "another process is about to train this config"
        if running:
            what = f"run {running[0].short_id} is training this config in another process"
        if not wait:
            raise Busy(what)
        observer.say(f"{what}: waiting")
        while not claim.acquired(wait=True):
            if observer.stop():
                raise KeyboardInterrupt
    with claim.held():
        yield


@contextmanager
def claim_name(
    store: Store,
    kind: str,
    name: str,
    observer: Observer = SILENT,
    remedy: str = "wait until it ends, or choose another --name",
) -> Iterator[None]:
    """Be the only process that runs the study or search with this name. Raises Busy, with a remedy, for another one.

    If a process on another machine has claimed it, wait until that renews its lease, or until the lease ends. Raises
    KeyboardInterrupt if the observer asks to stop meanwhile.
    """
    claim = Claim(store, kind, name)
    if not claim.acquired() and not claim.is_held_elsewhere:
        observer.say(
            f"a process on another machine has claimed the {kind} '{name}': waiting for up to {LEASE_SECONDS:.0f} s to "
            f"see whether it is still running"
        )
        while not claim.is_held_elsewhere and not claim.acquired(wait=True):
            if observer.stop():
                raise KeyboardInterrupt
    if claim.is_held_elsewhere:
        raise Busy(f"another process is running the {kind} '{name}': {remedy}")
    with claim.held():
        yield


def check_unclaimed(store: Store, kind: str, name: str, **options: Any) -> None:
    """Raise Busy if another process runs this study or search, now rather than later. `options` as for claim_name."""
    with claim_name(store, kind, name, **options):
        pass


class Claim:
    """Some work that only one process at a time may do."""

    def __init__(self, store: Store, *work: str, nested: bool = False) -> None:
        """If `nested`, this process may hold the same work already."""
        path = claim_file(store, *work)
        self.store, self.lock = store, FileLock(path, is_singleton=nested)
        self.lease = Lease(store, path.stem) if store.shared and not self.lock.is_locked else None
        self.is_held_elsewhere = False  # whether another process holds it, and lives

    def acquired(self, *, wait: bool = False) -> bool:
        """Whether the work could be claimed, at once or within a moment."""
        if not _acquired(self.lock, POLL_SECONDS if wait else 0):
            self.is_held_elsewhere = True
            return False
        try:
            free = self.lease is None or self.lease.acquired()
        except BaseException:
            self.lock.release()
            raise
        if not free:
            self.lock.release()
            self.is_held_elsewhere = self.lease is not None and self.lease.rival
            time.sleep(random.uniform(0.5, 1.5) * LOOK_SECONDS if wait else 0)  # not when others look
        return free

    @contextmanager
    def held(self) -> Iterator[None]:
        """Send what an earlier process left of the same work, and give the work back at the end."""
        try:
            self.store.sender.adopt()
            yield
        finally:
            try:
                if self.lease is not None:
                    self.lease.release()
            finally:
                self.lock.release()


def claim_file(store: Store, *work: str) -> Path:
    """The file whose lock stands for some work."""
    name = hashlib.blake2b("\n".join(work).encode(), digest_size=16).hexdigest()
    return store.folder / "locks" / f"{name}.lock"


def _acquired(lock: FileLock, seconds: float) -> bool:
    """Whether the lock could be acquired within some seconds."""
    try:
        Path(lock.lock_file).parent.mkdir(exist_ok=True)
        lock.acquire(seconds)
    except Timeout:
        return False
    except OSError as error:
        reason = f"can't write to {error.filename}: {error.strerror}"
        raise RunFailed(f"{reason}. Free some space, or make the folder writable") from error
    return True
