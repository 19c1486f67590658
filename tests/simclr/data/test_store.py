"""Images are decoded and measured once, exactly, and by one process. A store that exists is complete."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from simclr.data import images, store
from simclr.data.dataset import DataConfig, open_dataset
from simclr.data.images import decode
from simclr.data.store import allocate, compute_channel_statistics
from simclr.errors import RunFailed
from simclr.progress import Observer
from tests.simclr.data.helpers import (
    decoded,
    encode,
    error_message,
    make_cifar10,
    make_tar,
    noise,
    open_data,
    plain,
    publish,
    store_folders,
    values,
    write,
    write_class_folder,
)


def forbidden(*_):
    raise AssertionError("computed again")


# --- decoding once ----------------------------------------------------------------------------------------------------


def test_store_holds_the_decoded_images(home, tmp_path, rng):
    contents = [encode(noise(rng, 70, 90, 3)) for _ in range(8)]
    for i, content in enumerate(contents):
        write(tmp_path / "photos" / f"class{i % 2}" / f"{i}.png", content)
    data = open_data(home, dir=tmp_path / "photos")
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # class by class
    assert np.array_equal(data.images, np.stack([decoded(contents[i], 64) for i in order]))


def test_a_long_decoding_is_announced_once(home, tmp_path, monkeypatch):
    write_class_folder(tmp_path / "photos", each=4)
    monkeypatch.setattr(store, "MANY", 12)
    config = DataConfig(dataset="folder", dir=tmp_path / "photos", side=8)
    listener = Listener()
    for _ in range(2):
        open_dataset(config, home, listener)
    assert listener.said == ["decoding 12 images (only once)"]


def test_second_opening_decodes_nothing(home, tmp_path, monkeypatch):
    write_class_folder(tmp_path / "photos")
    first = open_data(home, dir=tmp_path / "photos", side=8)
    monkeypatch.setattr(images, "decode", forbidden)
    second = open_data(home, dir=tmp_path / "photos", side=8)
    assert np.array_equal(first.images, second.images)
    assert first.digest == second.digest
    assert open_data(home, dir=tmp_path / "photos", side=8, val_fraction=0.3, split_seed=3).digest == first.digest


def test_archive_is_verified_whenever_it_is_decoded(home, monkeypatch, rng):
    content = make_tar(make_cifar10(rng)[0])
    archive = write(home / "downloads" / publish(monkeypatch, "cifar10", content), content)
    digest = open_data(home, "cifar10").digest
    archive.write_bytes(content[:-10])
    assert open_data(home, "cifar10").digest == digest
    shutil.rmtree(home / "cache")
    assert f"{archive} has MD5" in error_message(home, "cifar10")


def test_writing_to_the_images_does_not_change_the_store(home, tmp_path):
    write_class_folder(tmp_path / "photos")
    open_data(home, dir=tmp_path / "photos", side=8).images[:] = 77
    assert 77 not in open_data(home, dir=tmp_path / "photos", side=8).images


@pytest.mark.parametrize("change", ["rewrite", "add", "remove", "rename"])
def test_change_in_the_folder_is_noticed(change, home, tmp_path):
    root = tmp_path / "photos"
    write_class_folder(root)
    before = open_data(home, dir=root, side=8)
    expected = set(range(30))
    if change == "rewrite":  # with the same name and size
        path = root / "cat" / "005.png"
        modified = path.stat().st_mtime
        assert path.stat().st_size == len(plain(200))
        write(path, plain(200))
        os.utime(path, (modified + 10,) * 2)
        expected = expected - {5} | {200}
    elif change == "add":
        write(root / "cat" / "new.png", plain(200))
        expected |= {200}
    elif change == "remove":
        (root / "cat" / "000.png").unlink()
        expected -= {0}
    else:
        (root / "cat" / "000.png").rename(root / "dog" / "moved.png")
    after = open_data(home, dir=root, side=8)
    assert set(values(after)) == expected
    assert after.digest != before.digest


def test_folders_with_the_same_listing_are_different_data_sets(home, tmp_path):
    for folder, first in (("one", 0), ("two", 100)):
        write_class_folder(tmp_path / folder, each=10, first=first)
        for path in (tmp_path / folder).rglob("*.png"):
            os.utime(path, (1_000_000_000,) * 2)  # as if unpacked from an archive; names and sizes are the same too
    one, two = (open_data(home, dir=tmp_path / folder, side=8) for folder in ("one", "two"))
    assert values(two) == list(range(100, 130))
    assert one.digest != two.digest


def test_digest_depends_on_the_content_and_not_on_the_path(home, tmp_path):
    write_class_folder(tmp_path / "photos")
    shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    digest = open_data(home, dir=tmp_path / "photos", side=8).digest
    assert open_data(tmp_path / "home2", dir=tmp_path / "elsewhere" / "copy", side=8).digest == digest
    assert open_data(home, dir=tmp_path / "photos", side=16).digest != digest


class Listener(Observer):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def cut(path, size):
    os.truncate(path, size)


def garbage(path, size):
    path.write_bytes(np.random.default_rng(size).bytes(size))


def replace(path, *texts):
    content = path.read_bytes()
    for old, new in texts:
        assert old in content
        content = content.replace(old, new, 1)
    path.write_bytes(content)


DAMAGES = {
    "images cut": lambda folder: cut(folder / "images.npy", 1000),
    "images empty": lambda folder: cut(folder / "images.npy", 0),
    "images gone": lambda folder: (folder / "images.npy").unlink(),
    "images longer": lambda folder: replace(folder / "images.npy", (b"\n", b" \n")),
    "images garbage": lambda folder: garbage(folder / "images.npy", 5000),
    "images of another side": lambda folder: np.save(folder / "images.npy", np.zeros((30, 3, 4, 4), np.uint8)),
    "labels cut": lambda folder: cut(folder / "labels.npy", 150),
    "labels gone": lambda folder: (folder / "labels.npy").unlink(),
    "labels garbage": lambda folder: garbage(folder / "labels.npy", 368),
    "labels out of range": lambda folder: np.save(folder / "labels.npy", np.full(30, 3)),
    "fewer labels": lambda folder: np.save(folder / "labels.npy", np.zeros(29, int)),
    "labels of another kind": lambda folder: np.save(folder / "labels.npy", np.array([{}] * 30), allow_pickle=True),
    "meta cut": lambda folder: cut(folder / "meta.json", 10),
    "meta gone": lambda folder: (folder / "meta.json").unlink(),
    "meta garbage": lambda folder: garbage(folder / "meta.json", 100),
    "meta a list": lambda folder: (folder / "meta.json").write_text("[1]"),
    "meta incomplete": lambda folder: replace(folder / "meta.json", (b'"digest"', b'"other"')),
    "meta of wrong types": lambda folder: replace(folder / "meta.json", (b'"bounds": {', b'"bounds": 3, "x": {')),
    "all gone": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_store_is_made_anew_with_a_message(damage, home, tmp_path):
    write_class_folder(tmp_path / "photos")
    before = open_data(home, dir=tmp_path / "photos", side=8)
    (folder,) = (home / "cache").glob("folder-*")
    DAMAGES[damage](folder)
    listener = Listener()
    config = DataConfig(dataset="folder", dir=tmp_path / "photos", side=8)
    after = open_dataset(config, home, listener)
    (said,) = [text for text in listener.said if "damaged" in text]
    assert said.startswith(f"the decoded images in {folder} are damaged (")
    assert said.endswith("so they are decoded again")
    assert after.digest == before.digest
    assert values(after) == list(range(30))
    assert store_folders(home) == [folder.name]
    open_dataset(config, home, listener)
    assert sum("damaged" in text for text in listener.said) == 1


def test_store_that_may_not_be_read_is_kept(home, tmp_path, monkeypatch):
    write_class_folder(tmp_path / "photos")
    open_data(home, dir=tmp_path / "photos", side=8)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.np, "load", refuse)
    monkeypatch.setattr(store, "fill", forbidden)
    assert "check the permissions" in error_message(home, dir=tmp_path / "photos", side=8)


# --- files that can't be read -----------------------------------------------------------------------------------------


def test_bad_images_are_counted_and_named(home, tmp_path, rng):
    write_class_folder(tmp_path / "photos", each=4)
    write(tmp_path / "photos" / "cat" / "text.jpg", b"\0I am no image")
    write(tmp_path / "photos" / "dog" / "cut.png", encode(noise(rng, 30, 30, 3))[:900])
    message = error_message(home, dir=tmp_path / "photos", side=8)
    assert (
        "2 of 14 files can't be read as images: cat/text.jpg (not an image); dog/cut.png (damaged: its end is missing"
        in message
    )
    assert "--on-bad-image skip" in message
    assert store_folders(home) == []


def test_skipping_bad_images_keeps_the_others_with_their_labels_and_parts(home, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 5 * 3 * 8 * 8)  # 5 images at a time
    root = tmp_path / "photos"
    labels = write_class_folder(root / "train", each=6)
    labels |= write_class_folder(root / "val", each=2, first=100)
    labels |= write_class_folder(root / "test", each=3, first=200)
    for name in ("train/cat/000.png", "train/dog/003.png", "train/emu/zzz.png", "val/cat/000.png", "test/emu/002.png"):
        write(root / name, b"broken")
    data = open_data(home, dir=root, side=8, on_bad_image="skip")
    assert values(data, "train") == [value for value in range(18) if value not in (0, 9)]
    assert values(data, "val") == list(range(101, 106))
    assert values(data, "test") == list(range(200, 208))
    assert len(data.images) == len(data.labels) == 29
    for image, label in zip(data.images, data.labels, strict=True):
        assert labels[int(image[0, 0, 0])] == label
        assert len(np.unique(image)) == 1


def test_skipping_bad_images_gives_the_digest_of_a_folder_without_them(home, tmp_path):
    write_class_folder(tmp_path / "photos", each=4)
    digest = open_data(home, dir=tmp_path / "photos", side=8).digest
    write(tmp_path / "photos" / "cat" / "bad.png", b"x")
    assert open_data(home, dir=tmp_path / "photos", side=8, on_bad_image="skip").digest == digest


def test_skipped_files_are_told_from_others_whose_names_begin_alike(home, tmp_path):
    """A second download of photo.jpg is photo.jpg (1).jpg."""
    labels = write_class_folder(tmp_path / "photos", each=9)
    write(tmp_path / "photos" / "cat" / "000.png (1).png", b"damaged")
    data = open_data(home, dir=tmp_path / "photos", side=8, group=r"(\d)\.", on_bad_image="skip", val_fraction=0.2)
    names = [str(Path(name).relative_to(tmp_path / "photos")) for name in data.files().names]
    read = [
        (f"{data.classes[label]}/{int(image[0, 0, 0]) % 9:03d}.png")
        for image, label in zip(data.images, data.labels, strict=True)
    ]
    assert names == read
    assert len(names) == len(labels)
    assert [int(image[0, 0, 0]) % 9 for image in data.images] == data.units.tolist()


def test_store_of_an_earlier_version_is_made_again(home, tmp_path):
    """It had bad files as texts, in which a name can't be told from the reason."""
    write_class_folder(tmp_path / "photos", each=4)
    write(tmp_path / "photos" / "cat" / "bad.png", b"x")
    settings = {"dir": tmp_path / "photos", "side": 8, "on_bad_image": "skip"}
    first = open_data(home, **settings)
    (name,) = store_folders(home)
    path = home / "cache" / name / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bad": ["cat/bad.png (not an image)"]}))
    assert open_data(home, **settings).skipped == first.skipped


def test_store_made_with_skip_is_an_error_without_it(home, tmp_path):
    write_class_folder(tmp_path / "photos", each=4)
    write(tmp_path / "photos" / "cat" / "bad.png", b"x")
    open_data(home, dir=tmp_path / "photos", side=8, on_bad_image="skip")
    assert "1 of 13 files" in error_message(home, dir=tmp_path / "photos", side=8)


@pytest.mark.parametrize("test_images", [0, 2])
def test_skipping_every_image_to_train_on_is_an_error(test_images, home, tmp_path):
    for i in range(4):
        write(tmp_path / "photos" / "train" / "cat" / f"{i}.jpg", b"broken")
    write_class_folder(tmp_path / "photos" / "test", classes=("cat",), each=test_images)
    message = error_message(home, dir=tmp_path / "photos", side=8, on_bad_image="skip")
    assert f"4 of {4 + test_images} files" in message
    assert store_folders(home) == []


# --- interruptions, other processes, full disks -----------------------------------------------------------------------


def test_exception_while_decoding_leaves_nothing_behind(home, tmp_path, monkeypatch):
    labels = write_class_folder(tmp_path / "photos")
    last = plain(29)

    def interrupt(content, how):
        if content == last:
            raise KeyboardInterrupt
        return decode(content, how)

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_data(home, dir=tmp_path / "photos", side=8)
    assert store_folders(home) == []
    assert values(open_data(home, dir=tmp_path / "photos", side=8)) == sorted(labels)


@pytest.fixture
def fork():
    """A context whose processes start with this one's modules, which saves importing torch again."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system can't fork")
    return multiprocessing.get_context("fork")


def test_process_killed_while_decoding_leaves_no_store(home, tmp_path, monkeypatch, fork):
    labels = write_class_folder(tmp_path / "photos")
    decoding, last = fork.Event(), plain(29)

    def hang(content, how):
        if content == last:
            decoding.set()
            time.sleep(600)
        return decode(content, how)

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", hang)
        process = fork.Process(target=open_data, args=(home,), kwargs={"dir": tmp_path / "photos", "side": 8})
        process.start()
    while not decoding.wait(0.1):
        assert process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [name[0] for name in store_folders(home)] == ["."]  # the unfinished one
    assert values(open_data(home, dir=tmp_path / "photos", side=8)) == sorted(labels)
    assert len(store_folders(home)) == 1


def test_second_process_waits_for_the_first_to_decode(home, tmp_path, monkeypatch, fork):
    labels = write_class_folder(tmp_path / "photos")
    decoding, waiting = fork.Event(), fork.Event()
    receiver, sender = fork.Pipe(duplex=False)

    def lock(path):
        waiting.set()
        return FileLock(path)

    def open_second():
        store.FileLock, images.decode = lock, forbidden
        decoding.wait()
        sender.send(open_data(home, dir=tmp_path / "photos", side=8).digest)

    def decode_when_the_second_waits(content, how):
        decoding.set()
        while not waiting.wait(0.1):
            assert process.is_alive()
        return decode(content, how)

    process = fork.Process(target=open_second, daemon=True)
    process.start()
    monkeypatch.setattr(images, "decode", decode_when_the_second_waits)
    data = open_data(home, dir=tmp_path / "photos", side=8)
    process.join()
    assert process.exitcode == 0
    assert receiver.recv() == data.digest
    assert values(data) == sorted(labels)
    assert len(store_folders(home)) == 1


def test_full_disk_is_an_error_that_leaves_nothing_behind(home, tmp_path):
    resource = pytest.importorskip("resource")
    write_class_folder(tmp_path / "photos")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a longer file fails, as on a full disk
    try:
        with pytest.raises(RunFailed, match="free some space") as caught:
            open_data(home, dir=tmp_path / "photos", side=32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(home / "cache") in str(caught.value)
    assert store_folders(home) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system can't reserve disk space")
def test_disk_space_is_reserved_before_anything_is_written(tmp_path):
    array = allocate(tmp_path / "images.npy", (100, 3, 64, 64))
    assert (tmp_path / "images.npy").stat().st_blocks * 512 >= array.nbytes


# --- channel statistics -----------------------------------------------------------------------------------------------


def test_channel_statistics_are_those_of_numpy(rng, monkeypatch):
    pixels = (noise(rng, 50, 3, 9, 9) * np.array([1, 0.5, 0.1]).reshape(3, 1, 1)).astype(np.uint8)
    rows = np.array([0, 3, 4, *range(10, 50)])
    mean, std = compute_channel_statistics(pixels, rows)
    assert np.allclose(mean, (pixels[rows] / 255).mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(std, (pixels[rows] / 255).std((0, 2, 3)), atol=1e-6)
    monkeypatch.setattr(store, "CHUNK", 7 * 3 * 9 * 9)  # 7 images at a time
    assert compute_channel_statistics(pixels, rows) == (mean, std)


def test_standard_deviation_of_one_colour_is_not_zero():
    for value in range(256):
        mean, std = compute_channel_statistics(np.full((1, 3, 4, 4), value, np.uint8), np.array([0]))
        assert np.allclose(mean, value / 255, atol=1e-6)
        assert min(std) > 0


def test_statistics_are_computed_once_for_each_choice_of_rows(home, monkeypatch):
    first, other = (open_data(home, "digits", split_seed=seed) for seed in (0, 1))
    for data in (first, other):
        computed = compute_channel_statistics(data.images, data.parts["pretrain"])
        assert (data.mean, data.std) == tuple(map(tuple, computed))
    assert first.mean != other.mean
    monkeypatch.setattr(store, "compute_channel_statistics", forbidden)
    again = open_data(home, "digits")
    assert (again.mean, again.std) == (first.mean, first.std)
    with pytest.raises(AssertionError, match="computed again"):
        open_data(home, "digits", split_seed=2)


@pytest.mark.parametrize("content", ["", "\0\0\0\0", "[]", '{"mean": [0.5]}', '{"mean": [1, 2, 3], "std": "abc"}'])
def test_damaged_statistics_are_computed_again_with_a_message(content, home):
    before = open_data(home, "digits")
    (path,) = (home / "cache").rglob("statistics-*.json")
    complete = path.read_text()
    path.write_text(content)
    listener = Listener()
    after = open_dataset(DataConfig(dataset="digits"), home, listener)
    (said,) = listener.said
    assert f"{path} is damaged" in said
    assert (after.mean, after.std) == (before.mean, before.std)
    assert path.read_text() == complete


def test_statistics_are_computed_where_they_cannot_be_saved(home, monkeypatch):
    expected = open_data(home, "digits")
    (path,) = (home / "cache").rglob("statistics-*.json")
    path.unlink()

    def read_only(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(store.Path, "write_text", read_only)
    data = open_data(home, "digits")
    assert (data.mean, data.std) == (expected.mean, expected.std)
    assert not path.exists()
