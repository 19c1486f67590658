"""A file is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from simclr.errors import RunFailed
from simclr.files import written_whole


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files can't grow beyond 4 KiB, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_gets_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "picture.png"
    with written_whole(path) as scratch:
        assert scratch.name == path.name
        scratch.write_bytes(b"new")
        assert not path.exists()
    assert content(tmp_path) == {"a/b/picture.png": b"new"}
    assert [entry.name for entry in path.parent.iterdir()] == ["picture.png"]
    expected = tmp_path / "other"
    expected.touch()
    assert path.stat().st_mode == expected.stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_file_as_it_was(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"old")
    for name in ("a.csv", "b.csv"):
        with pytest.raises(error), written_whole(tmp_path / name) as scratch:  # noqa: PT012
            scratch.write_bytes(b"half of")
            raise error
    assert content(tmp_path) == {"a.csv": b"old"}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_the_file_as_it_was_and_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"old")
    for name in ("a.csv", "b.csv"):
        with (
            pytest.raises(RunFailed, match=rf"can't write .*{name}: File too large. Free some space"),
            written_whole(tmp_path / name) as scratch,
        ):
            scratch.write_bytes(bytes(5000))
    assert content(tmp_path) == {"a.csv": b"old"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_can_not_be_written_to_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.csv", tmp_path / "folder"):
        with pytest.raises(RunFailed, match="choose another place"), written_whole(path) as scratch:
            scratch.write_bytes(b"new")
    assert content(tmp_path) == {"file": b""}


def test_folders_that_were_made_for_a_file_are_removed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "new/inner/a.csv"):
        assert 1 / 0
    assert content(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
    with written_whole(tmp_path / "new/inner/a.csv") as scratch:
        scratch.write_bytes(b"new")
    assert (tmp_path / "new/inner/a.csv").read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_killed_process_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")
    child = os.fork()
    if child == 0:
        with written_whole(path) as scratch:
            scratch.write_bytes(b"half of")
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name[0] != "."] == ["a.csv"]
