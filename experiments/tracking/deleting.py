"""Delete runs from the record, with their files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.tracking.claims import Busy
from experiments.tracking.naming import all_called
from experiments.tracking.store import Record, Store
from simclr.errors import UserError


def find_deletable(names: Sequence[str], store: Store) -> list[Record]:
    """The runs with these names or ids, and all runs of those that are studies or searches, which come after these.

    Raises UserError for names of no run or of several, and for runs that others refer to.
    """
    records = store.records()
    found = {record.id: record for record in (_only(name, records, store) for name in names)}
    while more := [each for each in records if each.parent in found and each.id not in found]:
        found = {each.id: each for each in more} | found
    _check_free(found, records)
    return list(found.values())


def folders_of(record: Record) -> list[Path]:
    """The folders on this machine that hold files of this run alone: its checkpoints and its artifacts."""
    store = record.store
    folders = {record.folder, store.lock_file(record.id).parent}
    if store.artifacts is not None:
        folders.add(store.artifact_folder(store.artifacts, record.id).parent)
    return sorted(folder for folder in folders if folder.is_dir())


def bytes_of(record: Record) -> int:
    """How much disk the files of a run take."""
    files = (file for folder in folders_of(record) for file in folder.rglob("*"))
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def delete(records: Sequence[Record], store: Store) -> None:
    """Delete runs in the given order, which `find_deletable` gives: their files for good, their records as MLflow does.

    MLflow hides them. Nothing is deleted if one of them is being trained (Busy), or if others refer to them by now
    (UserError).
    """
    with _locked(records):
        now = store.records()
        known = {record.id for record in records}
        if running := [each for each in now if each.id in known and each.status == "RUNNING"]:
            raise _busy(running[0])
        if new := [each for each in now if each.parent in known and each.id not in known]:
            raise UserError(f"run {new[0].name} ({new[0].short_id}) has been added meanwhile: run the command again")
        _check_free({record.id: record for record in records}, now)
        for record in records:
            store.sender.call(store.client.delete_run, record.id)
            for folder in folders_of(record):
                shutil.rmtree(folder)


def _only(name: str, records: Sequence[Record], store: Store) -> Record:
    """The run that a name means. Those of studies and searches count if there is no other."""
    called = all_called(name, records, store.folder, "run, study or search")
    called = [record for record in called if record.parent is None] or called
    if len(called) > 1:
        ids = ", ".join(record.short_id for record in called)
        raise UserError(f"{len(called)} runs are called {name}: give the ids of those to delete, among {ids}")
    return called[0]


def _check_free(found: dict[str, Record], records: Sequence[Record]) -> None:
    """Raise UserError if runs to delete belong to a study or search that stays, or if such a one uses them."""
    names = {record.id: record for record in records}
    for record in records:
        holder = names.get(record.parent or "")
        if holder is None or holder.id in found:
            continue
        own = f"the {holder.kind} {holder.name} ({holder.short_id})"
        if record.id in found:
            raise UserError(f"run {record.name} ({record.short_id}) belongs to {own}, and is only deleted with that")
        if (used := found.get(record.tags.get("copied_from", ""))) is not None:
            raise UserError(f"run {used.name} ({used.short_id}) is also used by {own}: delete that first, or with it")


@contextmanager
def _locked(records: Sequence[Record]) -> Iterator[None]:
    """Keep other processes of this home from training these runs. Raises Busy if one does."""
    with ExitStack() as stack:
        for record in records:
            path = record.store.lock_file(record.id)
            if not path.parent.exists():
                continue
            try:
                stack.enter_context(FileLock(path, timeout=0))
            except Timeout:
                raise _busy(record) from None
        yield


def _busy(record: Record) -> Busy:
    return Busy(f"run {record.name} ({record.short_id}) is running in another process: stop it, or wait until it ends")
