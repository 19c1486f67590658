"""A folder is listed once, without what is no file. What it holds is understood from the names."""

import os

import pytest

from simclr.data import images
from simclr.data.folder import list_files
from simclr.errors import UserError
from tests.simclr.data.helpers import error_message, open_data, values, write, write_class_folder


def test_all_visible_files_are_listed_in_order(tmp_path):
    for name in ("b/x.png", "a.png", "b/c/y.txt", ".hidden/z.png", "b/.DS_Store", "b/Thumbs.db", "@eaDir/a.png"):
        write(tmp_path / name, b"")
    assert list_files(tmp_path) == (["a.png", "b/c/y.txt", "b/x.png"], [])


@pytest.mark.parametrize("target", ["..", "../..", "../../.."])
def test_links_that_lead_back_are_followed_once(target, tmp_path):
    folder = tmp_path / "above" / "photos"
    write(folder / "a" / "1.png", b"")
    write(folder.parent / "outside.png", b"")
    for name in ("up1", "up2"):
        (folder / "a" / name).symlink_to(target)
    names, notes = list_files(folder)
    assert names == ["a/1.png"]
    assert notes == ["left out a/up1, a/up2: links to folders that are read already"]


def test_a_link_to_a_folder_elsewhere_is_followed_and_folders_keep_their_names(tmp_path):
    write(tmp_path / "elsewhere" / "1.png", b"")
    write(tmp_path / "photos" / "z" / "2.png", b"")
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "a").symlink_to(tmp_path / "photos" / "z")
    names, notes = list_files(tmp_path / "photos")
    assert names == ["cat/1.png", "z/2.png"]
    assert notes == ["left out a: links to folders that are read already"]


def test_pipes_are_left_out_and_broken_links_listed(tmp_path):
    write(tmp_path / "1.png", b"")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "gone.png").symlink_to("gone")
    names, (note,) = list_files(tmp_path)
    assert names == ["1.png", "gone.png", "self.png"]
    assert note == "left out pipe.png: neither files nor folders, but pipes, sockets or devices"


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    write(tmp_path / "secret" / "1.png", b"")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"can't read the folder .*secret: Permission denied"):
        list_files(tmp_path)


def test_splits_by_any_name_are_the_parts(home, tmp_path):
    root = tmp_path / "photos" / "dataset"
    write_class_folder(root / "Training", each=5)
    write_class_folder(root / "Validation", each=1, first=100)
    write_class_folder(root / "Testing", each=2, first=200)
    write(root / "Training" / "cat" / "notes.txt", b"not an image")
    (root / "Training" / "empty").mkdir()
    data = open_data(home, dir=tmp_path / "photos", side=8)
    assert data.classes == ("cat", "dog", "emu")
    assert values(data, "train") == list(range(15))
    assert values(data, "val") == [100, 101, 102]
    assert values(data, "test") == list(range(200, 206))


def test_unlabelled_folders_are_no_classes(home, tmp_path):
    write_class_folder(tmp_path / "photos", each=4)
    data = open_data(home, dir=tmp_path / "photos", side=8, unlabelled=True)
    assert data.classes == ()
    assert values(data, "pretrain") == list(range(12))
    assert "data.unlabelled is not a setting of the data set 'digits'" in error_message(home, "digits", unlabelled=True)


def test_a_file_that_is_too_large_for_an_image_is_not_read(home, tmp_path, monkeypatch):
    write_class_folder(tmp_path / "photos", each=4)
    write(tmp_path / "photos" / "cat" / "large.png", b"0" * 5000)
    monkeypatch.setattr(images, "LARGEST_FILE", 4000)
    message = error_message(home, dir=tmp_path / "photos", side=8)
    assert "1 of 13 files" in message
    assert "has 5,000 bytes, more than an image may have" in message
