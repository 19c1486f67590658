"""Archives are read in place as the folders in them would be, whatever packed them, and write nothing anywhere."""

import bz2
import gzip
import io
import lzma
import multiprocessing
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest

from simclr.data import archives
from simclr.data.archives import open_archive
from tests.simclr.data.helpers import (
    error_message,
    make_zip,
    open_and_listen,
    open_data,
    plain,
    store_folders,
    values,
    write,
    write_class_folder,
)


def make_plain_tar(members, form=tarfile.PAX_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


PACKED = {
    "a.zip": make_zip,
    "a.tar": make_plain_tar,
    "gnu.tar": lambda members: make_plain_tar(members, tarfile.GNU_FORMAT),
    "a.tar.gz": lambda members: gzip.compress(make_plain_tar(members)),
    "a.tgz": lambda members: gzip.compress(make_plain_tar(members)),
    "a.tar.bz2": lambda members: bz2.compress(make_plain_tar(members)),
    "a.tar.xz": lambda members: lzma.compress(make_plain_tar(members)),
    "a.tar.zst": lambda members: pyarrow.compress(make_plain_tar(members), "zstd", asbytes=True),
}


def members_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("prefix", ["", "./", "photos/"])
def test_an_archive_gives_what_its_folder_gives(name, prefix, home, tmp_path):
    for first, split in ((0, "train"), (100, "Testing")):
        write_class_folder(tmp_path / "photos" / split, each=4, first=first)
    members = {f"{prefix}{own}": content for own, content in members_of(tmp_path / "photos").items()}
    archive = write(tmp_path / name, PACKED[name](members | {f"{prefix}__MACOSX/train/._1.png": b"x"}))
    data, folder = (open_data(home, dir=path, side=8) for path in (archive, tmp_path / "photos"))
    assert data.digest == folder.digest
    assert data.classes == folder.classes == ("cat", "dog", "emu")
    assert {part: rows.tolist() for part, rows in data.parts.items()} == {
        part: rows.tolist() for part, rows in folder.parts.items()
    }


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_names_that_lead_outside_are_data(name, home, tmp_path):
    members = {f"cat/{i}.png": plain(i) for i in range(5)} | {f"dog/{i}.png": plain(10 + i) for i in range(5)}
    outside = Path("/outside-of-the-tests-of-simclr")
    evil = {"../../evil.png": plain(99), f"{outside}/evil.png": plain(20), "..\\evil.png": plain(99)}
    archive = write(tmp_path / "in" / name, PACKED[name](members | evil))
    assert values(open_data(home, dir=archive, side=8)) == [*range(5), *range(10, 15), 20]
    assert not outside.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "home"}
    assert {path.name for path in (tmp_path / "in").iterdir()} == {name}
    assert {path.name for path in home.iterdir()} == {"cache"}
    assert all(path.name.startswith(("folder-", ".folder-")) for path in (home / "cache").iterdir())


def test_hard_links_are_read_and_other_special_members_left_out(home, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(10):
            info = tarfile.TarInfo(f"cat/{i}.png")
            info.size = len(plain(i))
            tar.addfile(info, io.BytesIO(plain(i)))
        for kind, name in (
            (tarfile.LNKTYPE, "dog/0.png"),
            (tarfile.SYMTYPE, "dog/1.png"),
            (tarfile.FIFOTYPE, "dog/2.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "cat/7.png"
            tar.addfile(info)
    data, notes = open_and_listen(home, dir=tmp_path / "a.tar", side=8)
    assert "left out 2 members of a.tar that are not regular files, such as dog/1.png" in notes
    assert values(data) == [0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9]
    assert data.classes == ("cat", "dog")


def test_a_table_in_an_archive_is_not_used_and_said(home, tmp_path):
    members = {f"in/{i}.png": plain(i) for i in range(6)} | {"labels.csv": b"id,label\n"}
    archive = write(tmp_path / "a.zip", make_zip(members))
    _, notes = open_and_listen(home, dir=archive, side=8)
    assert any("labels.csv in a.zip is not used for labels" in text for text in notes)


def test_a_folder_of_packed_shards_is_read_without_hidden_files(home, tmp_path):
    for i in range(2):
        members = {
            f"{own}.{kind}": content
            for own in range(6 * i, 6 * i + 6)
            for kind, content in (("png", plain(own)), ("cls", b"%d" % (own % 2)))
        }
        write(tmp_path / "shards" / f"train-{i}.tar.gz", gzip.compress(make_plain_tar(members)))
        write(tmp_path / "shards" / f"._train-{i}.tar.gz", b"resource fork")
    assert values(open_data(home, dir=tmp_path / "shards", side=8)) == list(range(12))


def test_bombs_are_refused_by_their_declared_sizes(home, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FREE", 10_000)
    blank = b"\0" * 2_000_000
    bomb = write(tmp_path / "bomb.zip", make_bomb({"cat/1.png": blank}))
    assert "claims to unpack to 2,000,000" in error_message(home, dir=bomb)
    monkeypatch.setattr(archives, "LARGEST_FILE", 1_000_000)
    assert "more than an image may have" in error_message(home, dir=bomb)
    assert "more than an image may have" in error_message(
        home, dir=write(tmp_path / "large.tar", make_plain_tar({"cat/1.png": blank}))
    )
    packed = write(tmp_path / "bomb.tar.xz", lzma.compress(make_plain_tar({"cat/1.png": blank})))
    assert "too many for its size" in error_message(home, dir=packed)
    assert not store_folders(home)


def make_bomb(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("name", PACKED)
def test_damaged_archives_are_errors(name, home, tmp_path):
    content = PACKED[name]({f"cat/{i}.png": plain(i) for i in range(20)})
    for damaged in (content[: len(content) // 2], content[:40], b"nothing of the kind" * 100, content * 2):
        if name == "a.zip" and damaged == content * 2:
            continue  # a zip archive is read from its end
        message = error_message(home, dir=write(tmp_path / name, damaged))
        assert str(tmp_path / name) in message or "can't read" in message
        assert "download" in message or "read" in message


def test_a_damaged_member_is_an_image_that_cannot_be_read(home, tmp_path):
    content = bytearray(make_zip({f"cat/{i}.png": plain(i) for i in range(10)}))
    content[100] ^= 255
    message = error_message(home, dir=write(tmp_path / "a.zip", bytes(content)), side=8)
    assert "1 of 10 files can't be read as images: cat/0.png (Bad CRC-32" in message


def test_files_of_one_name_in_an_archive_are_counted(home, tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(12):
            archive.writestr(f"{'ab'[i % 2]}/{i}.png", plain(i))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/0.png", plain(50))
    data, notes = open_and_listen(home, dir=write(tmp_path / "a.zip", file.getvalue()), side=8)
    assert "1 files of a.zip have the same name as another: the last one is used" in notes
    assert values(data) == [*range(1, 12), 50]


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
@pytest.mark.parametrize("start", [b"Rar!\x1a\7\1\0", b"7z\xbc\xaf\x27\x1c", b"\x04\x22\x4d\x18"])
def test_other_archives_are_not_read_whatever_their_name(name, start, home, tmp_path):
    message = error_message(home, dir=write(tmp_path / name, start + bytes(3000)))
    assert "is neither a zip nor a tar archive, despite its name" in message


def test_unknown_compression_is_refused(home, tmp_path):
    content = bytearray(make_zip({"cat/1.png": plain(1)}))
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(signature) + offset] = 93  # Zstandard
    message = error_message(home, dir=write(tmp_path / "a.zip", bytes(content)))
    assert "compressed in a way that can't be read (method 93 of zip): unpack it" in message


def test_encrypted_archives_are_refused(home, tmp_path):
    content = bytearray(make_zip({"cat/1.png": plain(1)}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    assert "is encrypted: unpack it" in error_message(home, dir=write(tmp_path / "a.zip", bytes(content)))


def test_an_archive_without_images_is_an_error(home, tmp_path):
    archive = write(tmp_path / "a.zip", make_zip({"inner.zip": b"PK", "README.md": b"x"}))
    assert "no images in" in error_message(home, dir=archive)


def test_members_are_read_by_several_threads_at_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    members = {f"{i}.png": bytes([i]) * (1000 + i) for i in range(200)}
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        files = open_archive(write(tmp_path / name, PACKED[name](members)), tmp_path, [])
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(files.read, members)) == list(members.values())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork")
def test_members_are_read_by_forked_processes_at_once(tmp_path):
    members = {f"{i}.png": bytes([i]) * (10_000 + i) for i in range(200)}
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        files = open_archive(write(tmp_path / name, PACKED[name](members)), tmp_path, [])
        first = next(iter(members))
        assert files.read(first) == members[first]  # before the fork, so that the file is open
        with multiprocessing.get_context("fork").Pool(4, _inherit, (files,)) as pool:
            assert pool.map(_read_inherited, members, chunksize=1) == list(members.values())


def _inherit(files):
    global _inherited
    _inherited = files


def _read_inherited(name):
    return _inherited.read(name)
