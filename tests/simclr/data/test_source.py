"""What is remembered of a folder of many files saves looking at each, and every change that shows is noticed."""

import os
import shutil

import pytest

from simclr.data import source
from simclr.data.source import fingerprint_files, fingerprint_folder, recheck
from tests.simclr.data.helpers import write

HOUR = 3_600_000_000_000  # nanoseconds


def age(path):
    """Make a file or folder an hour older."""
    date = path.stat().st_mtime_ns - HOUR
    os.utime(path, ns=(date, date))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of 20 files, of which every fourth one is looked at."""
    monkeypatch.setattr(source, "LOOKED_AT", 5)
    for i in range(20):
        age(write(tmp_path / "photos" / f"{i % 2}" / f"{i:02}.jpg", bytes(10)))
    for own in ("0", "1"):
        age(tmp_path / "photos" / own)
    return tmp_path / "photos"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))


@pytest.fixture
def looked_at(monkeypatch):
    """The files whose sizes and dates were looked at, in order."""
    found, stat = [], os.stat

    def count(path, **options):
        found.append(str(path))
        return stat(path, **options)

    monkeypatch.setattr(source.os, "stat", count)
    return found


def test_files_are_looked_at_once_and_then_a_sample_of_them(folder, home, looked_at):
    every = names(folder)
    first = fingerprint_folder(folder, every, home)
    assert first == fingerprint_files(folder, every)
    looked_at.clear()
    assert fingerprint_folder(folder, every, home) == first
    files = [path for path in looked_at if path.endswith(".jpg")]
    assert files == [str(folder / name) for name in names(folder)[::4]]


def test_small_folders_are_looked_at_completely_and_nothing_is_remembered(folder, home):
    few = names(folder)[:9]
    assert fingerprint_folder(folder, few, home) == fingerprint_files(folder, few)
    assert not home.exists()


CHANGES = {
    "added": lambda folder: write(folder / "0" / "new.jpg", b"x"),
    "removed": lambda folder: (folder / "0" / "02.jpg").unlink(),
    "renamed": lambda folder: (folder / "0" / "02.jpg").rename(folder / "0" / "03.jpg"),
    "replaced": lambda folder: write(folder / "new", b"x").rename(folder / "0" / "02.jpg"),
    "all overwritten": lambda folder: [write(folder / name, b"x") for name in names(folder)],
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change, folder, home):
    before = fingerprint_folder(folder, names(folder), home)
    CHANGES[change](folder)
    after = fingerprint_folder(folder, names(folder), home)
    assert after != before
    assert after == fingerprint_files(folder, names(folder))


def test_a_file_that_is_overwritten_in_place_is_noticed_by_a_recheck(folder, home):
    before = fingerprint_folder(folder, names(folder), home)
    write(folder / "0" / "02.jpg", b"x")
    assert fingerprint_folder(folder, names(folder), home) == before  # as --help says
    recheck(home)
    assert fingerprint_folder(folder, names(folder), home) == fingerprint_files(folder, names(folder)) != before


def test_a_folder_that_has_just_changed_is_not_remembered(folder, home):
    write(folder / "0" / "new.jpg", b"x")
    fingerprint_folder(folder, names(folder), home)
    assert not home.exists()


def test_what_is_remembered_may_be_lost_or_damaged(folder, home):
    expected = fingerprint_folder(folder, names(folder), home)
    (path,) = (home / "cache" / "remembered").iterdir()
    path.write_bytes(b"\xff")
    assert fingerprint_folder(folder, names(folder), home) == expected
    shutil.rmtree(home)
    recheck(home)
    assert fingerprint_folder(folder, names(folder), home) == expected
