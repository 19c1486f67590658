"""Claim work before it is done, so that two processes with the same home never do the same work at the same time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.tracking.store import Store
from simclr.errors import RunFailed, UserError
from simclr.progress import SILENT, Observer

POLL_SECONDS = 0.5  # how often a process that waits looks whether it should stop


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
    lock = FileLock(claim_file(store, key, digest), is_singleton=True)
    if not _acquired(lock, 0):
        running = [record for record in store.of_key(key, digest) if record.status == "RUNNING"]
        what = "another process is about to train this config"
        if running:
            what = f"run {running[0].short_id} is training this config in another process"
        if not wait:
            raise Busy(what)
        observer.say(f"{what}: waiting")
        while not _acquired(lock, POLL_SECONDS):
            if observer.stop():
                raise KeyboardInterrupt
    with _held(lock, store):
        yield


@contextmanager
def claim_name(store: Store, kind: str, name: str) -> Iterator[None]:
    """Be the only process that runs the study or search with this name. Raises Busy if there is another."""
    lock = FileLock(claim_file(store, kind, name))
    if not _acquired(lock, 0):
        raise Busy(f"another process is running the {kind} '{name}': wait until it ends, or choose another --name")
    with _held(lock, store):
        yield


@contextmanager
def _held(lock: FileLock, store: Store) -> Iterator[None]:
    """Send what an earlier process left of the same work, and release the lock at the end."""
    try:
        store.sender.adopt()
        yield
    finally:
        lock.release()


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
