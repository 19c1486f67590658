"""Deleting runs: with all of their files, and never what others need or what is being trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.tracking import deleting
from experiments.tracking.claims import Busy, claim_name
from experiments.tracking.deleting import bytes_of, delete, find_deletable
from experiments.tracking.store import Record, Store
from experiments.tracking.writing import Tracker, copy_run, start_run
from simclr.errors import RunFailed, UserError
from simclr.train.loop import Interrupted


def finished(store: Store, name: str, kind: str = "pretrain", parent: str | None = None) -> Record:
    """A run with 7 bytes of weights and a checkpoint of 3 bytes."""
    with start_run(store, name, kind, {}, parent=parent).finishing(Interrupted) as tracker:
        tracker.artifact("model.safetensors", lambda path: path.write_text("weights"))
    record = tracker.record()
    (record.folder / "checkpoint").write_text("abc")
    return record


def names_of(records: list[Record]) -> list[str]:
    return [record.name for record in records]


def test_a_run_is_hidden_and_its_files_are_gone(store: Store) -> None:
    kept, gone = finished(store, "kept"), finished(store, "gone")
    assert 10 <= bytes_of(gone) < 1000  # and the lock
    (weights, checkpoint) = gone.artifact("model.safetensors"), gone.folder / "checkpoint"
    delete(find_deletable(["gone"], store), store)
    assert names_of(Store(store.folder).records()) == ["kept"]
    assert not weights.exists()
    assert not checkpoint.exists()
    assert kept.artifact("model.safetensors").read_text() == "weights"
    assert (kept.folder / "checkpoint").read_text() == "abc"
    with pytest.raises(UserError, match=r"no run, study or search has the name 'gon'.*`simclr runs` lists all"):
        find_deletable(["gon"], store)


def test_a_study_goes_with_its_runs_and_others_keep_what_they_use(store: Store) -> None:
    alone = finished(store, "alone")
    first, second = finished(store, "first", "study"), finished(store, "second", "study")
    own = finished(store, "own", parent=first.id)
    copy = copy_run(store, alone, "cell", {}, parent=first.id)
    with pytest.raises(UserError, match=rf"run own \({own.short_id}\) belongs to the study first .* simclr delete "):
        find_deletable([own.id], store)
    copy_run(store, own, "cell", {}, parent=second.id)
    with pytest.raises(UserError, match=rf"run alone \({alone.short_id}\) is also used by the study first"):
        find_deletable(["alone"], store)
    with pytest.raises(UserError, match=r"run own .* is also used by the study second"):
        find_deletable(["first"], store)
    delete(find_deletable(["second"], store), store)
    found = find_deletable(["first", "first"], store)
    assert names_of(found)[-1] == "first"  # last, so that it can be deleted again if the process is killed
    assert {record.id for record in found} == {first.id, own.id, copy.id}
    later = finished(store, "later", parent=first.id)
    with pytest.raises(UserError, match=r"later .* has been added meanwhile"):
        delete(found, store)
    assert own.artifact("model.safetensors").exists()
    delete([later, *found], store)
    assert names_of(store.records()) == ["alone"]


def test_a_name_of_several_runs_needs_an_id(store: Store) -> None:
    one, two = finished(store, "same"), finished(store, "same")
    with pytest.raises(UserError, match=rf"2 runs are called same: give the ids .* {two.short_id}, {one.short_id}"):
        find_deletable(["same"], store)
    assert find_deletable([one.short_id], store) == [one]


def test_files_that_can_not_be_deleted_leave_their_runs_on_record(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [finished(store, name) for name in ("first", "second", "third")]
    with monkeypatch.context() as patch:
        rmtree = shutil.rmtree

        def fail(folder: Path) -> None:
            if runs[1].id in str(folder):
                raise PermissionError(13, "not yours", str(folder))
            rmtree(folder)

        patch.setattr(deleting.shutil, "rmtree", fail)
        with pytest.raises(
            RunFailed, match=r"can't delete the files of run second .* not yours.* run the command again"
        ):
            delete(runs, store)
    assert names_of(store.records()) == ["third", "second"]
    delete(find_deletable(["second", "third"], store), store)
    assert store.records() == []
    assert not any(run.folder.exists() for run in runs)


def test_a_folder_on_another_disk_is_deleted_with_the_link_to_it(store: Store, tmp_path: Path) -> None:
    record = finished(store, "run")
    record.folder.rename(tmp_path / "disk")
    record.folder.symlink_to(tmp_path / "disk", target_is_directory=True)
    delete(find_deletable(["run"], store), store)
    assert not (tmp_path / "disk").exists()
    assert not record.folder.is_symlink()


@pytest.mark.parametrize("setting", ["init", "distill.teacher"])
def test_weights_that_an_unfinished_run_starts_from_stay(store: Store, setting: str) -> None:
    weights = finished(store, "weights").artifact("model.safetensors")
    tracker = start_run(store, "needy", "pretrain", {setting: f"{weights}@0123"})
    tracker.finish("KILLED")
    with pytest.raises(UserError, match=r"run weights .* has weights that the unfinished needy .* needs"):
        find_deletable(["weights"], store)
    tracker.finish("FINISHED")
    assert names_of(find_deletable(["weights"], store)) == ["weights"]


@pytest.mark.parametrize(("kind", "began"), [("study", "at work"), ("search", "before it was renamed")])
def test_nothing_is_deleted_while_a_study_or_search_runs_which_may_use_it(store: Store, kind: str, began: str) -> None:
    found = [finished(store, "run")]
    start_run(store, "at work", kind, {}, {"search": began} if kind == "search" else {})
    with claim_name(store, kind, began), pytest.raises(Busy, match=f"'{began}': wait until it ends"):
        delete(found, store)
    delete(found, store)  # its process was killed
    assert names_of(store.records()) == ["at work"]


def test_a_run_that_is_being_trained_is_not_deleted(store: Store) -> None:
    record = finished(store, "run")
    found = find_deletable(["run"], store)
    with Tracker(store, record.id).finishing(Interrupted), pytest.raises(Busy, match=r"run run .* is running"):
        delete(found, store)
    Tracker(store, record.id)._begin()  # as by a process of another home, whose lock is not here
    with pytest.raises(Busy, match=r"is running in another process: stop it, or wait"):
        delete(found, store)
    assert record.artifact("model.safetensors").exists()
