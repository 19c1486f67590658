"""Each path is read by the loader of its format, or described for what it is."""

import re

import numpy as np
import pyarrow.parquet
import pytest

from simclr.data import store
from simclr.data.formats import FORMATS, format_of
from simclr.data.suffixes import IMAGE_SUFFIXES, OTHER_SUFFIXES, OTHERS
from tests.simclr.data.helpers import (
    error_message,
    make_tar,
    make_zip,
    open_and_listen,
    open_data,
    plain,
    write,
    write_class_folder,
)

FILES = {
    "table": ["a.csv", "A.TSV"],
    "archive": ["a.zip", "a.tar", "a.tar.gz", "a.TGZ", "a.tar.zst"],
    "parquet": ["a.parquet"],
    "arrays": ["a.npz", "a.npy"],
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_known_by_their_suffix(name, tmp_path):
    assert {format_of(write(tmp_path / file, b"x")) for file in FILES[name]} == {name}


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ({"a/1.png": 5, "b/2.png": 5}, "folder"),
        ({}, "folder"),
        ({"train-0.tar": 1, "train-1.tar": 1}, "archive"),
        ({"data/train-0.parquet": 1, "README.md": 1, "logo.png": 1}, "parquet"),
        ({"x_train.npy": 1, "y_train.npy": 1}, "arrays"),
        ({"1.png": 1, "2.png": 1, "features.parquet": 1}, "folder"),
        ({".git/a.parquet": 1, "1.png": 1}, "folder"),
        ({f"{i}.{kind}": 1 for i in range(5) for kind in ("png", "npy")}, "folder"),
        ({"1.jp2": 1, "2.jp2": 1, "embeddings.npy": 1}, "folder"),
        ({"1.xyz": 1, "2.xyz": 1, "embeddings.npy": 1}, "folder"),
        ({"cat/1.png": 1, "cat/state.json": 1, "state.json": 1}, "folder"),
        ({"state.json": 1, "dataset_info.json": 1, "data.arrow": 1}, "hub"),
        ({"train-0.tar.gz": 1, "._train-0.tar.gz": 1, "LICENSE": 1, "logo.png": 1}, "archive"),
    ],
)
def test_folders_are_known_by_what_they_hold(inside, expected, tmp_path):
    (tmp_path / "data").mkdir()
    for name in inside:
        write(tmp_path / "data" / name, b"x")
    assert format_of(tmp_path / "data") == expected


DESCRIBED = {
    "a.jpg": (plain(1), "is a single image: give the folder that it is in"),
    "a.pdf": (b"%PDF-1.7", "is a PDF"),
    "beans.py": (b"import datasets", "is a Python script, such as Hugging Face's for a data set"),
    "a.mp4": (b"\0\0\0\x20ftyp", "is a video"),
    "a.pkl": (b"\x80\x04", "could run code when it is read"),
    "a.rar": (b"Rar!", "is an archive of a kind that can't be read"),
    "a.zip": (b"\n<!DOCTYPE html><html>", "is a web page, perhaps saved instead of the image"),
    "a.parquet": (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
    "a.xyz": (b"what", "is a file of an unknown kind"),
    "photo": (plain(1), "is a single image: give"),
    "b.jpg": (b"\n<!DOCTYPE html><html>", "is a single image: give"),
    "empty.csv": (b"", "is empty"),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_other_files_are_described_for_what_they_are(name, home, tmp_path):
    content, expected = DESCRIBED[name]
    message = error_message(home, dir=write(tmp_path / name, content))
    assert expected in message
    if "single image" in expected:
        assert message == f"{tmp_path / name} is a single image: give the folder that it is in"
        return
    assert message.startswith(f"{tmp_path / name} is a file, not a folder: it ")
    assert all(row.about in message for row in FORMATS.values())


def test_an_archive_is_known_by_its_content_if_its_name_says_nothing(home, tmp_path):
    members = {f"{name}/{i}.png": plain(i) for i, name in enumerate("abababab")}
    assert open_data(home, dir=write(tmp_path / "download", make_zip(members)), side=8).classes == ("a", "b")
    assert open_data(home, dir=write(tmp_path / "files.php?id=1", make_tar(members)), side=8).classes == ("a", "b")


@pytest.mark.parametrize("name", ["a.zip", "a.npz", "a.parquet"])
def test_what_was_understood_is_said_each_time(name, home, tmp_path, monkeypatch):
    images = [plain(i // 2) for i in range(12)]
    if name == "a.zip":
        write(tmp_path / name, make_zip({f"photos/{'ab'[i % 2]}/{i}.png": image for i, image in enumerate(images)}))
    elif name == "a.npz":
        np.savez(tmp_path / name, images=np.full((12, 8, 8), np.arange(12)[:, None, None] // 2, np.uint8))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [0, 1] * 6}), tmp_path / name)
    _, first = open_and_listen(home, dir=tmp_path / name, side=8)
    monkeypatch.setattr(store, "fill", None)
    _, second = open_and_listen(home, dir=tmp_path / name, side=8)
    assert second == first
    understood = {
        "a.zip": "using the folder photos/",
        "a.npz": "images from 'images'",
        "a.parquet": "images from column",
    }[name]
    assert any(understood in note for note in second)
    assert any(
        "of 12 images, 12 are of one colour, 12 are identical to another one (6 spare copies; " in note
        for note in second
    )


def test_what_is_missing_is_said(home, tmp_path):
    assert f"there is no folder {tmp_path / 'none'}" in error_message(home, dir=tmp_path / "none")
    assert "add --data-dir" in error_message(home)


def test_a_setting_without_effect_is_an_error(home, tmp_path):
    write_class_folder(tmp_path / "photos")
    path = write(tmp_path / "a.npy", b"x")
    assert "data.labels has no effect" in error_message(home, dir=path, labels=tmp_path / "a.csv")
    assert "data.labels is not a setting of the data set 'digits'" in error_message(home, "digits", labels=path)
    assert open_data(home, dir=tmp_path / "photos", side=8).classes == ("cat", "dog", "emu")


def test_remedies_are_stated_for_all_other_files():
    assert not OTHER_SUFFIXES & IMAGE_SUFFIXES
    assert ".001" not in OTHER_SUFFIXES
    assert {".safetensors", ".mkv", ".hdf5", ".zst", ".npy", ".csv"} <= OTHER_SUFFIXES
    assert all(re.fullmatch("is .*: [a-z].*", about) for about in OTHERS.values())
