"""Delete runs from the record, with their files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.tracking.claims import Busy, check_unclaimed
from experiments.tracking.naming import all_called
from experiments.tracking.starts import starts_among
from experiments.tracking.store import GROUPS, Record, Store
from simclr.errors import RunFailed, UserError

CONFIRMS = "confirms"  # the tag of a study with fresh seeds that names the search whose best trials it trains


def find_deletable(names: Sequence[str], store: Store) -> list[Record]:
    """The runs with these names or ids, and all runs of those that are studies or searches, which come last.

    The study that confirms a search belongs to it.

    Raises UserError for names of no run or of several, for runs that others refer to, and (Busy) for those that are
    being trained.
    """
    records = store.records()
    found = {record.id: record for record in (_only(name, records, store) for name in names)}
    searches = {each.tags.get("search", each.name) for each in found.values() if each.kind == "search"}
    found |= {each.id: each for each in records if each.tags.get(CONFIRMS) in searches}
    while more := [each for each in records if each.parent in found and each.id not in found]:
        found |= {each.id: each for each in more}
    _check_free(found, records)
    return sorted(found.values(), key=lambda record: record.kind in GROUPS)


def started_from(records: Sequence[Record], store: Store) -> list[Record]:
    """The other runs that started from the weights of some. They stay complete, but can't be compared with these."""
    gone = {record.id for record in records}
    runs = [run for run in store.records(kind="pretrain") if run.id not in gone]
    return [run for run in runs if starts_among(run, records, ["init"])]


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


def delete(records: Sequence[Record], store: Store, before: Callable[[Record], None] = lambda record: None) -> None:
    """Delete runs in the given order, which `find_deletable` gives: their files for good, their records as MLflow does.

    MLflow hides them. `before` is called with each of them first. Nothing is deleted if one of them is being trained
    (Busy), or if others refer to them by now (UserError). If files can't be deleted, their run stays on record, so that
    it can be deleted again (RunFailed).
    """
    with _locked(records):
        now = store.records()
        known = {record.id for record in records}
        if new := [each for each in now if each.parent in known and each.id not in known]:
            raise UserError(f"run {new[0].name} ({new[0].short_id}) has been added meanwhile: run the command again")
        _check_free({record.id: record for record in records}, now)
        for study in [each for each in now if each.kind in GROUPS and each.status == "RUNNING"]:
            _check_ended(study, store)
        for record in records:
            before(record)
            store.sender.call(store.client.delete_run, record.id)
    for position, record in enumerate(records):  # when the locks, which are files of the runs, are released
        try:
            for folder in folders_of(record):
                _remove(folder)
        except OSError as error:
            for left in records[position:]:
                store.sender.call(store.client.restore_run, left.id)
            raise RunFailed(
                f"can't delete the files of run {record.name} ({record.short_id}): {error}. The runs whose files are "
                f"left are still on record: run the command again when they can be deleted"
            ) from error


def _remove(folder: Path) -> None:
    """Delete a folder, and what a link in its place leads to."""
    shutil.rmtree(folder.resolve())
    if folder.is_symlink():
        folder.unlink()


def _check_ended(study: Record, store: Store) -> None:
    """Raise Busy if a study or search runs: it may use any run. One that was killed may still be called RUNNING."""
    name = study.tags.get("search", study.name)  # which a search began with
    check_unclaimed(store, study.kind, name, remedy="wait until it ends, as it may use the runs to delete")


def _only(name: str, records: Sequence[Record], store: Store) -> Record:
    """The run that a name means. Those of studies and searches count if there is no other."""
    called = all_called(name, records, store.folder, "run, study or search")
    called = [record for record in called if record.parent is None] or called
    if len(called) > 1:
        ids = ", ".join(record.short_id for record in called)
        raise UserError(f"{len(called)} runs are called {name}: give the ids of those to delete, among {ids}")
    return called[0]


def _check_free(found: dict[str, Record], records: Sequence[Record]) -> None:
    """Raise UserError if runs to delete belong to a study or search that stays, or if others use them.

    Raises Busy if one of them is being trained.
    """
    by_id = {record.id: record for record in records}
    if running := [by_id[each] for each in found if each in by_id and by_id[each].status == "RUNNING"]:
        raise _busy(running[0])
    for record in records:
        unfinished = record.id not in found and record.status != "FINISHED"
        if unfinished and (needed := starts_among(record, found.values())):
            raise UserError(
                f"run {needed[0].name} ({needed[0].short_id}) has weights that the unfinished {record.name} "
                f"({record.short_id}) needs: resume or delete that first"
            )
        holder = by_id.get(record.parent or "")
        if holder is None or holder.id in found:
            continue
        own = f"the {holder.kind} {holder.name} ({holder.short_id})"
        if record.id in found:
            raise UserError(
                f"run {record.name} ({record.short_id}) belongs to {own}, and can only be deleted with it: "
                f"simclr delete {holder.short_id}"
            )
        if (used := found.get(record.tags.get("copied_from", ""))) is not None:
            raise UserError(f"run {used.name} ({used.short_id}) is also used by {own}: delete that first, or both")


@contextmanager
def _locked(records: Sequence[Record]) -> Iterator[None]:
    """Keep other processes of this home from training these runs. Raises Busy if one does.

    Nobody trains a finished run, and there are more of these than a process may have files open.
    """
    with ExitStack() as stack:
        for record in records:
            if record.status == "FINISHED" and record.kind not in GROUPS:
                continue
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
