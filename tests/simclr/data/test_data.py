"""Sources are read as they lie, decoded once, exactly, and cut into disjoint parts; what is broken is named."""

import hashlib
import http.server
import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image, features

from simclr.data import images, shapes, sources
from simclr.data.dataset import DataConfig, channel_statistics, open_dataset
from simclr.data.download import DOWNLOADS, Download
from simclr.data.images import decode
from simclr.data.sources import DATASETS
from simclr.errors import RunFailed, UserError
from tests.helpers import ROOT

ENV = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def opened(home, dataset="folder", **settings):
    return open_dataset(DataConfig(dataset=dataset, **settings), home)


def refusal(home, dataset="folder", **settings):
    """The one-line message with which a data set is refused."""
    with pytest.raises(UserError) as caught:
        opened(home, dataset, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def encoded(array, kind="PNG", **options):
    """The bytes of an image file: H x W or H x W x C, or a PIL image."""
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def marked(value, side=8):
    """A PNG that is recognised after decoding by its one value; all of them are of one size in bytes."""
    return encoded(np.full((side, side, 3), value, np.uint8), compress_level=0)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def reference(content):
    """PIL's pixels of an encoded image, 3 x H x W."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def marks(dataset, part):
    """The values of `marked` images in a part."""
    return dataset.images[dataset.parts[part], 0, 0, 0].tolist()


def caches(home):
    """Finished and unfinished stores."""
    return sorted(p.name for p in (home / "cache").iterdir() if p.is_dir()) if (home / "cache").exists() else []


# --- archives ---------------------------------------------------------------------------------------------------------


def tar_bytes(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zip_bytes(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return file.getvalue()


def publish(monkeypatch, dataset, content, url=None):
    """State the content's checksum (and the address) as the data set's own; the archive's file name."""
    row = DOWNLOADS[dataset]
    monkeypatch.setitem(DOWNLOADS, dataset, Download(url or row.url, hashlib.md5(content).hexdigest()))
    return (url or row.url).rpartition("/")[2]


def cifar10_members(rng, each=4):
    """CIFAR-10's binary version with a few images a file; also the images and labels, train and test."""
    images, labels = noise(rng, 6 * each, 3, 32, 32), np.arange(6 * each) % 10
    records = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(-1, 3072)], 1).reshape(6, -1)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    members = {f"cifar-10-batches-bin/{n}": r.tobytes() for n, r in zip(names, records, strict=True)}
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    members["cifar-10-batches-bin/batches.meta.txt"] = ("\n".join(classes) + "\n\n").encode()
    members["cifar-10-batches-bin/readme.html"] = b"<html></html>"
    return dict(reversed(members.items())), images, labels, tuple(classes)


def test_cifar10_is_read_pixel_by_pixel_from_the_binary_archive(home, monkeypatch, rng):
    members, images, labels, classes = cifar10_members(rng)
    content = tar_bytes(members)
    put(home / "downloads" / publish(monkeypatch, "cifar10", content), content)
    found = opened(home, "cifar10", val_fraction=0.2)
    assert np.array_equal(found.images, images)
    assert np.array_equal(found.labels, labels)
    assert found.classes == classes
    assert found.parts["test"].tolist() == list(range(20, 24))
    assert sorted([*found.parts["train"], *found.parts["val"]]) == list(range(20))


def test_cifar100_uses_the_fine_label(home, monkeypatch, rng, tmp_path):
    images = noise(rng, 12, 3, 32, 32)
    coarse, fine = np.arange(12, dtype=np.uint8) % 3, np.arange(12, dtype=np.uint8) + 50
    records = np.concatenate([coarse[:, None], fine[:, None], images.reshape(-1, 3072)], 1)
    fine_names = [f"fine_{i}" for i in range(100)]
    content = tar_bytes(
        {
            "cifar-100-binary/train.bin": records[:8].tobytes(),
            "cifar-100-binary/test.bin": records[8:].tobytes(),
            "cifar-100-binary/fine_label_names.txt": "\n".join(fine_names).encode(),
            "cifar-100-binary/coarse_label_names.txt": b"a\nb\nc\n",
        }
    )
    put(tmp_path / "mine" / publish(monkeypatch, "cifar100", content), content)
    found = opened(home, "cifar100", dir=tmp_path / "mine")  # where --data-dir says that the archive is
    assert np.array_equal(found.images, images)
    assert np.array_equal(found.labels, fine)
    assert found.classes == tuple(fine_names)
    assert found.parts["test"].tolist() == list(range(8, 12))


def test_another_version_of_an_archive_is_refused_with_the_file_it_lacks(home, monkeypatch):
    content = tar_bytes({"cifar-10-batches-py/data_batch_1": b"a pickle"})
    archive = put(home / "downloads" / publish(monkeypatch, "cifar10", content), content)
    message = refusal(home, "cifar10")
    assert str(archive) in message
    assert "binary version" in message


def test_stl10_is_column_major_with_labels_from_one_and_images_without_labels_to_pretrain_on(home, monkeypatch, rng):
    train, test, unlabelled = (noise(rng, n, 3, 96, 96) for n in (10, 4, 5))
    labels = np.arange(1, 11, dtype=np.uint8)
    columns = {name: x.transpose(0, 1, 3, 2).tobytes() for name, x in (("train", train), ("test", test))}
    content = tar_bytes(
        {
            "stl10_binary/test_X.bin": columns["test"],
            "stl10_binary/test_y.bin": labels[:4][::-1].tobytes(),
            "stl10_binary/train_X.bin": columns["train"],
            "stl10_binary/train_y.bin": labels.tobytes(),
            "stl10_binary/unlabeled_X.bin": unlabelled.transpose(0, 1, 3, 2).tobytes(),
            "stl10_binary/class_names.txt": b"airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n",
            "stl10_binary/fold_indices.txt": b"0 1 2\n",
        }
    )
    put(home / "downloads" / publish(monkeypatch, "stl10", content), content)
    found = opened(home, "stl10", val_fraction=0.3)
    assert np.array_equal(found.images, np.concatenate([train, test, unlabelled]))
    assert found.labels.tolist() == [*range(10), 3, 2, 1, 0, *[-1] * 5]
    assert found.classes[0] == "airplane"
    assert len(found.classes) == 10
    assert found.parts["test"].tolist() == list(range(10, 14))
    assert len(found.parts["val"]) == 3
    free = set(range(14, 19))
    assert set(found.parts["pretrain"]) == set(found.parts["train"]) | free
    assert not free & {row for part in ("train", "val", "test") for row in found.parts[part]}


WNIDS = ("n02124075", "n01443537", "n07734744")  # not in alphabetical order, as in the real file


def tiny_imagenet(rng):
    """Tiny ImageNet's layout with 3 classes: its files, and the encoded images of train and val by name."""
    words = "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn07734744\tmushroom\n"
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": words.encode()}
    train, val = {}, {}
    for wnid in WNIDS:
        for i in range(3):
            gray = i == 1
            pixels = noise(rng, 8, 8) if gray else noise(rng, 8, 8, 3)
            image = Image.fromarray(pixels).resize((64, 64))
            train[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = encoded(image, "JPEG")
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t10\t63\t58\n".encode()
    for i in (10, 2, 0, 1):
        val[f"val/images/val_{i}.JPEG"] = encoded(Image.fromarray(noise(rng, 8, 8, 3)).resize((64, 64)), "JPEG")
    chosen = {10: 0, 2: 2, 0: 1, 1: 0}
    lines = [f"val_{i}.JPEG\t{WNIDS[c]}\t0\t32\t44\t62\n" for i, c in chosen.items()]
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = encoded(noise(rng, 64, 64, 3), "JPEG")
    labels = {name: WNIDS.index(name.split("/")[1]) for name in train}
    labels |= {f"val/images/val_{i}.JPEG": c for i, c in chosen.items()}
    return files | train | val, train, val, labels


@pytest.mark.parametrize("layout", ["zip", "unpacked", "unpacked in a folder"])
def test_tiny_imagenet_is_read_zipped_and_unpacked(layout, home, monkeypatch, rng, tmp_path):
    files, train, val, labels = tiny_imagenet(rng)
    where = tmp_path / "given"
    if layout == "zip":
        content = zip_bytes({"tiny-imagenet-200/": b""} | {f"tiny-imagenet-200/{n}": c for n, c in files.items()})
        put(where / publish(monkeypatch, "tiny-imagenet", content), content)
    else:
        root = where / "tiny-imagenet-200" if layout != "unpacked" else where
        for name, content in files.items():
            put(root / name, content)
    found = opened(home, "tiny-imagenet", dir=where, val_fraction=0.3)

    expected = [*sorted(train), *sorted(val)]  # and not the images of test/
    assert np.array_equal(found.images, np.stack([reference(files[name]) for name in expected]))
    assert found.labels.tolist() == [labels[name] for name in expected]
    assert found.classes == ("Egyptian cat", "goldfish", "mushroom")
    assert found.parts["test"].tolist() == list(range(9, 13))
    assert sorted([*found.parts["train"], *found.parts["val"]]) == list(range(9))


def test_tiny_imagenet_with_a_class_that_its_list_lacks_is_a_sentence(home, rng, tmp_path):
    files, *_ = tiny_imagenet(rng)
    for name, content in (files | {"wnids.txt": "\n".join(WNIDS[1:]).encode()}).items():
        put(tmp_path / "given" / name, content)
    with pytest.raises(UserError, match=f"of a class '{WNIDS[0]}' that its wnids.txt does not list"):
        opened(home, "tiny-imagenet", dir=tmp_path / "given", val_fraction=0.3)


@pytest.mark.parametrize("dataset", ["cifar10", "tiny-imagenet"])
def test_members_with_names_that_lead_outside_write_nothing_there(dataset, home, monkeypatch, rng, tmp_path):
    evil = {"../../evil.JPEG": b"x", f"{tmp_path}/evil.bin": b"x", "../evil.bin": b"x"}
    if dataset == "cifar10":
        content = tar_bytes(evil | cifar10_members(rng)[0])
    else:
        content = zip_bytes(evil | {f"tiny-imagenet-200/{n}": c for n, c in tiny_imagenet(rng)[0].items()})
    name = publish(monkeypatch, dataset, content)
    put(home / "downloads" / name, content)
    found = opened(home, dataset)
    assert len(found.images) == (24 if dataset == "cifar10" else 13)
    assert {p.name for p in (home / "downloads").iterdir()} == {name}
    assert {p.name for p in home.iterdir()} == {"downloads", "cache"}
    assert {p.name for p in tmp_path.iterdir()} == {"home"}


# --- downloads --------------------------------------------------------------------------------------------------------


class Server:
    """A web server on this machine that serves one file and notes the requests."""

    def __init__(self, content, mode="ranges"):
        self.requests = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.requests.append(asked)
                if mode == "garbage":
                    self.wfile.write(b"this is not HTTP\r\n\r\n")
                    return
                if mode == "missing":
                    self.send_error(404)
                    return
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and mode == "ranges" else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start : len(content) // 2 if mode == "cut" else None])

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/cifar-10-binary.tar.gz"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(content, mode="ranges"):
        servers.append(Server(content, mode))
        publish(monkeypatch, "cifar10", content, servers[-1].url)
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def archive(rng):
    return tar_bytes(cifar10_members(rng)[0])


ARCHIVE = "cifar-10-binary.tar.gz"


@pytest.mark.parametrize("mode", ["ranges", "whole"])
def test_an_archive_is_downloaded_once(mode, home, serve, archive):
    server, seen = serve(archive, mode), []
    config = DataConfig(dataset="cifar10")
    found = open_dataset(config, home, lambda *step: seen.append(step))
    assert len(found.images) == 24
    assert (home / "downloads" / ARCHIVE).read_bytes() == archive
    assert (f"downloading {ARCHIVE}", len(archive), len(archive)) in seen
    assert open_dataset(config, home).digest == found.digest
    assert server.requests == [None]
    assert not list(home.rglob("*.part"))


@pytest.mark.parametrize("mode", ["ranges", "whole"])
def test_a_partial_download_is_resumed_where_the_server_can_and_begun_again_where_not(mode, home, serve, archive):
    server = serve(archive, mode)
    put(home / "downloads" / f"{ARCHIVE}.part", archive[:5000])
    assert len(opened(home, "cifar10").images) == 24
    assert server.requests == ["bytes=5000-"]
    assert (home / "downloads" / ARCHIVE).read_bytes() == archive
    assert not list(home.rglob("*.part"))


def test_a_partial_download_that_was_already_complete_is_used(home, serve, archive):
    serve(archive)
    put(home / "downloads" / f"{ARCHIVE}.part", archive)
    assert len(opened(home, "cifar10").images) == 24


def test_a_connection_that_ends_early_is_an_error_and_the_next_run_resumes(home, serve, archive):
    serve(archive, "cut")
    message = refusal(home, "cifar10")
    assert "run again to resume" in message
    assert f"of {len(archive)} bytes" in message
    half = len(archive) // 2
    assert (home / "downloads" / f"{ARCHIVE}.part").stat().st_size == half
    server = serve(archive)
    assert len(opened(home, "cifar10").images) == 24
    assert server.requests == [f"bytes={half}-"]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_download_with_the_wrong_checksum_is_refused_and_named(resumed, home, serve, archive, monkeypatch):
    server = serve(archive)
    monkeypatch.setitem(DOWNLOADS, "cifar10", Download(server.url, "0" * 32))
    if resumed:
        put(home / "downloads" / f"{ARCHIVE}.part", b"other bytes")
    message = refusal(home, "cifar10")
    assert str(home / "downloads" / ARCHIVE) in message
    assert "0" * 32 in message
    assert "delete the file" in message
    assert not (home / "downloads" / ARCHIVE).exists()
    assert caches(home) == []


def test_an_archive_put_there_by_hand_with_the_wrong_checksum_is_refused_and_named(home, archive):
    path = put(home / "downloads" / ARCHIVE, archive)
    message = refusal(home, "cifar10")
    assert str(path) in message
    assert DOWNLOADS["cifar10"].md5 in message


def test_an_archive_is_verified_whenever_it_is_decoded(home, monkeypatch, archive):
    path = put(home / "downloads" / publish(monkeypatch, "cifar10", archive), archive)
    opened(home, "cifar10")
    path.write_bytes(archive[:-10])
    shutil.rmtree(home / "cache")
    assert str(path) in refusal(home, "cifar10")


@pytest.mark.parametrize("mode", ["no server", "missing", "garbage"])
def test_a_download_that_fails_names_the_address_and_where_to_put_the_file(mode, home, serve, archive, monkeypatch):
    if mode == "no server":
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # a port on which nobody listens
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/{ARCHIVE}"
            monkeypatch.setenv("no_proxy", "*")
            publish(monkeypatch, "cifar10", archive, url)
            message = refusal(home, "cifar10")
    else:
        url = serve(archive, mode).url
        message = refusal(home, "cifar10")
    assert url in message
    assert str(home / "downloads" / ARCHIVE) in message
    assert "--preset shapes" in message


# --- folders of images ------------------------------------------------------------------------------------------------


def class_folder(root, classes=("cat", "dog", "emu"), each=10, first=0):
    """root/<class>/<i>.png; the label of each image's mark."""
    label = {}
    for index, name in enumerate(classes):
        for i in range(each):
            mark = first + index * each + i
            put(root / name / f"{i:03d}.png", marked(mark))
            label[mark] = index
    return label


def test_a_folder_is_labelled_by_its_subfolders(home, tmp_path):
    label = class_folder(tmp_path / "photos")
    found = opened(home, dir=tmp_path / "photos", side=8)
    assert found.classes == ("cat", "dog", "emu")
    assert {int(image[0, 0, 0]): int(y) for image, y in zip(found.images, found.labels, strict=True)} == label
    assert sorted(mark for part in ("train", "val", "test") for mark in marks(found, part)) == sorted(label)
    assert found.has_labels


def test_train_val_and_test_folders_are_those_parts(home, tmp_path):
    root = tmp_path / "photos"
    class_folder(root / "train", each=4)
    class_folder(root / "val", classes=("dog",), each=3, first=100)
    class_folder(root / "test", classes=("emu", "cat"), each=2, first=200)
    found = opened(home, dir=root, side=8)
    assert found.classes == ("cat", "dog", "emu")
    assert sorted(marks(found, "train")) == sorted(marks(found, "pretrain")) == list(range(12))
    assert sorted(marks(found, "val")) == [100, 101, 102]
    assert sorted(marks(found, "test")) == [200, 201, 202, 203]
    assert found.labels[found.parts["val"]].tolist() == [1, 1, 1]
    assert {m: int(y) for m, y in zip(marks(found, "test"), found.labels[found.parts["test"]], strict=True)} == {
        200: 2,
        201: 2,
        202: 0,
        203: 0,
    }


def test_a_validation_part_is_held_out_of_train_where_there_is_only_a_test_folder(home, tmp_path):
    root = tmp_path / "photos"
    class_folder(root / "train", each=10)
    class_folder(root / "test", each=2, first=100)
    found = opened(home, dir=root, side=8, val_fraction=0.2)
    assert len(found.parts["val"]) == 6
    assert sorted(marks(found, "train") + marks(found, "val")) == list(range(30))
    assert sorted(marks(found, "test")) == list(range(100, 106))


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_flat_folder_has_no_labels_and_every_image_is_for_pretraining(inside, home, tmp_path):
    for i in range(20):
        put(tmp_path / "photos" / inside / f"{i}.png", marked(i))
    found = opened(home, dir=tmp_path / "photos", side=8)
    assert found.classes == ()
    assert set(found.labels.tolist()) == {-1}
    assert not found.has_labels
    assert [len(found.parts[part]) for part in ("train", "val", "test")] == [0, 0, 0]
    assert sorted(marks(found, "pretrain")) == list(range(20))


def test_files_in_folders_within_a_class_belong_to_that_class(home, tmp_path):
    root = tmp_path / "photos"
    class_folder(root, each=4)
    put(root / "dog" / "summer" / "beach" / "a.png", marked(90))
    found = opened(home, dir=root, side=8)
    assert dict(zip(found.images[:, 0, 0, 0].tolist(), found.labels.tolist(), strict=True))[90] == 1
    assert found.classes == ("cat", "dog", "emu")


def test_hidden_files_and_notes_beside_class_folders_are_ignored(home, tmp_path):
    root = tmp_path / "photos"
    class_folder(root, each=4)
    for name in (
        ".DS_Store",
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "dog/desktop.ini",
        "cat/._000.png",
        ".thumbnails/000.png",
        ".hidden.png",
        "README.txt",
    ):
        put(root / name, b"not an image")
    found = opened(home, dir=root, side=8)
    assert len(found.images) == 12
    assert found.classes == ("cat", "dog", "emu")


@pytest.mark.parametrize("dataset", ["shapes", "digits"])
def test_a_folder_for_an_embedded_data_set_is_refused(dataset, home, tmp_path):
    message = refusal(home, dataset, dir=str(tmp_path))
    assert message.startswith(f"the data set '{dataset}' is embedded and reads no folder: add --dataset folder")


def test_hidden_folders_within_a_class_are_ignored(home, tmp_path):
    class_folder(tmp_path / "photos", each=4)
    put(tmp_path / "photos" / "cat" / ".ipynb_checkpoints" / "000-checkpoint.png", marked(99))
    assert 99 not in opened(home, dir=tmp_path / "photos", side=8).images


def test_a_folder_that_is_not_there_is_refused(home, tmp_path):
    assert str(tmp_path / "none") in refusal(home, dir=tmp_path / "none")
    assert "--data-dir" in refusal(home)
    file = put(tmp_path / "file.png", marked(1))
    assert str(file) in refusal(home, dir=file)


@pytest.mark.parametrize("folders", [[""], ["cat", "dog"], ["train", "test"], [".hidden"]])
def test_a_folder_without_images_is_refused(folders, home, tmp_path):
    for name in folders:
        (tmp_path / "photos" / name).mkdir(parents=True)
    message = refusal(home, dir=tmp_path / "photos")
    assert "no images" in message
    assert str(tmp_path / "photos") in message


def test_images_beside_class_folders_are_refused_with_an_example(home, tmp_path):
    class_folder(tmp_path / "photos", each=2)
    put(tmp_path / "photos" / "loose.PNG", marked(1))
    assert "loose.PNG" in refusal(home, dir=tmp_path / "photos")


def test_too_few_images_to_train_and_validate_are_refused(home, tmp_path):
    class_folder(tmp_path / "two", classes=("cat", "dog"), each=1)
    assert str(2) in refusal(home, dir=tmp_path / "two", side=8)
    class_folder(tmp_path / "held", each=10)
    assert "val_fraction" in refusal(home, dir=tmp_path / "held", side=8, val_fraction=0.6)  # twice: val and test


def test_a_link_to_nowhere_is_an_unreadable_image(home, tmp_path):
    class_folder(tmp_path / "photos", each=10)
    (tmp_path / "photos" / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    assert "gone.png" in refusal(home, dir=tmp_path / "photos", side=8)
    assert len(opened(home, dir=tmp_path / "photos", side=8, on_bad_image="skip").images) == 30


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_a_grey_image_has_its_value_in_all_three_channels(rng):
    gray = noise(rng, 16, 16)
    assert np.array_equal(decode(encoded(gray), 16), np.stack([gray] * 3))


def test_a_palette_image_has_its_colours(rng):
    palette = Image.fromarray(noise(rng, 16, 16, 3)).quantize(16)
    for kind in ("PNG", "GIF"):
        assert np.array_equal(decode(encoded(palette, kind), 16), reference(encoded(palette)))


def test_a_two_tone_image_is_black_and_white(rng):
    bits = noise(rng, 16, 16) > 127
    assert np.array_equal(decode(encoded(Image.fromarray(bits)), 16), np.stack([bits * np.uint8(255)] * 3))


def test_the_colours_of_an_image_with_transparency_are_kept(rng):
    rgba = noise(rng, 16, 16, 4)
    assert np.array_equal(decode(encoded(rgba), 16), rgba[..., :3].transpose(2, 0, 1))
    la = noise(rng, 16, 16, 2)
    assert np.array_equal(decode(encoded(la), 16), np.stack([la[..., 0]] * 3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_16_bit_image_keeps_its_greys(kind):
    deep = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    found = decode(encoded(deep, kind), 32).astype(int)
    assert np.abs(found - (deep / 257)[None]).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_every_kind_of_file_decodes_to_its_pixels(kind, rng):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("PIL was built without WebP")
    content = encoded(noise(rng, 24, 24, 3), kind)
    assert np.array_equal(decode(content, 24), reference(content))


ORIENTATIONS = {  # what a camera stored, given the upright picture
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_photo_turned_by_its_exif_orientation_comes_out_upright(orientation):
    corners = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [200, 200, 200]]], np.uint8)
    upright = corners.repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(ORIENTATIONS[orientation](upright))
    content = encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif)
    assert np.abs(decode(content, 32).astype(int) - upright.transpose(2, 0, 1)).max() < 12


@pytest.mark.parametrize(("height", "width"), [(48, 72), (72, 48), (48, 48), (20, 90)])
def test_the_shorter_side_is_shrunk_to_the_side_and_the_central_square_kept(height, width, rng):
    image = Image.fromarray(noise(rng, height, width, 3))
    side, scale = 12, 12 / min(height, width)
    shrunk = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (shrunk.width - side) // 2, (shrunk.height - side) // 2
    expected = np.asarray(shrunk.crop((left, top, left + side, top + side))).transpose(2, 0, 1).astype(int)
    assert np.abs(decode(encoded(image), side) - expected).max() <= 1


def test_a_large_jpeg_decoded_at_a_reduced_size_looks_like_the_whole_one_shrunk(rng):
    rough = Image.fromarray(noise(rng, 12, 16, 3)).resize((1600, 1200), Image.Resampling.BICUBIC)
    content = encoded(rough, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(content)).convert("RGB").crop((200, 0, 1400, 1200))
    expected = np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)
    assert np.abs(decode(content, 32) - expected).max() <= 6


def test_the_store_holds_what_decode_gives_at_the_default_side(home, tmp_path, rng):
    contents = [encoded(noise(rng, 70, 90, 3)) for _ in range(8)]
    for i, content in enumerate(contents):
        put(tmp_path / "photos" / f"class{i % 2}" / f"{i}.png", content)
    found = opened(home, dir=tmp_path / "photos")
    assert found.side == DATASETS["folder"].side
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # class by class
    assert np.array_equal(found.images, np.stack([decode(contents[i], found.side) for i in order]))


# --- broken files -----------------------------------------------------------------------------------------------------


def broken(rng):
    """Files that are no images, each in its own way."""
    whole = {kind: encoded(noise(rng, 30, 30, 3), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF")}
    cut = {f"cut.{kind.lower()}": content[: len(content) // 2] for kind, content in whole.items()}
    flipped = bytearray(whole["PNG"])
    flipped[len(flipped) // 2] ^= 0xFF
    upside_down = struct.pack("<HHIHH", 0x112, 3, 1, 3, 0)
    a_text_for_a_number = struct.pack("<HHI4s", 0x128, 2, 2, b"x")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + upside_down + a_text_for_a_number + bytes(4)
    return cut | {
        "exif.jpg": encoded(noise(rng, 30, 30, 3), "JPEG", exif=exif),
        "flipped.png": bytes(flipped),
        "header.png": whole["PNG"][:20],
        "text.jpg": b"I am a text file\n",
        "notes.txt": b"notes",
        "empty.png": b"",
        "random.gif": noise(rng, 500).tobytes(),
    }


def test_broken_files_are_counted_and_named(home, tmp_path, rng):
    class_folder(tmp_path / "photos", each=4)
    put(tmp_path / "photos" / "cat" / "text.jpg", b"I am a text file")
    put(tmp_path / "photos" / "dog" / "cut.png", encoded(noise(rng, 30, 30, 3))[:900])
    message = refusal(home, dir=tmp_path / "photos", side=8)
    assert "2 of 14 files" in message
    assert "cat/text.jpg (not an image)" in message
    assert "dog/cut.png" in message
    assert "--on-bad-image skip" in message
    assert caches(home) == []


def test_of_many_broken_files_the_first_are_named(home, tmp_path):
    class_folder(tmp_path / "photos", each=4)
    for i in range(9):
        put(tmp_path / "photos" / "cat" / f"bad{i}.png", b"x")
    message = refusal(home, dir=tmp_path / "photos", side=8)
    assert "9 of 21 files" in message
    assert "bad0.png" in message
    assert "4 more" in message
    assert "bad8.png" not in message


def test_every_way_of_being_broken_is_recognised(home, tmp_path, rng):
    bad = broken(rng)
    for name, content in bad.items():
        put(tmp_path / "photos" / "cat" / name, content)
    class_folder(tmp_path / "photos", each=5)
    assert f"{len(bad)} of {15 + len(bad)} files" in refusal(home, dir=tmp_path / "photos", side=8)
    found = opened(home, dir=tmp_path / "photos", side=8, on_bad_image="skip")
    assert sorted(found.images[:, 0, 0, 0]) == list(range(15))


def test_a_file_name_that_is_no_utf_8_is_read(home, tmp_path):
    class_folder(tmp_path / "photos", each=4)
    before = opened(home, dir=tmp_path / "photos", side=8)
    try:
        os.rename(tmp_path / "photos/cat/000.png", os.path.join(os.fsencode(tmp_path / "photos/cat"), b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    found = opened(home, dir=tmp_path / "photos", side=8)
    assert sorted(found.images[:, 0, 0, 0]) == sorted(before.images[:, 0, 0, 0])


@pytest.mark.skipif(not features.check("avif"), reason="PIL was built without AVIF")
def test_a_broken_avif_file_is_recognised(home, tmp_path, rng):
    content = encoded(noise(rng, 20, 30, 3), "AVIF")
    where = content.index(b"mdat") + 4
    put(tmp_path / "photos" / "cat" / "bad.avif", content[:where] + bytes(len(content) - where))
    class_folder(tmp_path / "photos", each=5)
    assert "1 of 16 files" in refusal(home, dir=tmp_path / "photos", side=8)


def test_skipping_broken_files_keeps_the_others_with_their_labels_and_parts(home, tmp_path):
    root = tmp_path / "photos"
    label = class_folder(root / "train", each=6)
    label |= class_folder(root / "val", each=2, first=100)
    label |= class_folder(root / "test", each=3, first=200)
    for name in ("train/cat/000.png", "train/dog/003.png", "train/emu/zzz.png", "val/cat/000.png", "test/emu/002.png"):
        put(root / name, b"broken")
    found = opened(home, dir=root, side=8, on_bad_image="skip")
    assert sorted(marks(found, "train")) == [m for m in range(18) if m not in (0, 9)]
    assert sorted(marks(found, "val")) == list(range(101, 106))
    assert sorted(marks(found, "test")) == list(range(200, 208))
    for image, y in zip(found.images, found.labels, strict=True):
        assert label[int(image[0, 0, 0])] == y
        assert len(set(image.reshape(-1).tolist())) == 1
    assert len(found.images) == len(found.labels) == 29


def test_a_store_made_while_skipping_is_refused_when_broken_files_are_errors(home, tmp_path):
    class_folder(tmp_path / "photos", each=4)
    put(tmp_path / "photos" / "cat" / "bad.png", b"x")
    opened(home, dir=tmp_path / "photos", side=8, on_bad_image="skip")
    assert "1 of 13 files" in refusal(home, dir=tmp_path / "photos", side=8)


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_folder_of_nothing_but_broken_files_is_refused(on_bad_image, home, tmp_path):
    for i in range(4):
        put(tmp_path / "photos" / "cat" / f"{i}.jpg", b"broken")
    assert "4 of 4 files" in refusal(home, dir=tmp_path / "photos", on_bad_image=on_bad_image)
    assert caches(home) == []


def test_broken_files_in_all_of_train_are_refused_though_test_is_whole(home, tmp_path):
    for i in range(4):
        put(tmp_path / "photos" / "train" / "cat" / f"{i}.jpg", b"broken")
    class_folder(tmp_path / "photos" / "test", each=2)
    refusal(home, dir=tmp_path / "photos", side=8, on_bad_image="skip")


# --- the store --------------------------------------------------------------------------------------------------------


def forbid_decoding(monkeypatch):
    def forbidden(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "decode", forbidden)


def test_a_second_open_decodes_nothing(home, tmp_path, monkeypatch):
    class_folder(tmp_path / "photos")
    first = opened(home, dir=tmp_path / "photos", side=8)
    forbid_decoding(monkeypatch)
    second = opened(home, dir=tmp_path / "photos", side=8)
    assert np.array_equal(first.images, second.images)
    assert (first.digest, first.mean, first.std) == (second.digest, second.mean, second.std)
    assert opened(home, dir=tmp_path / "photos", side=8, val_fraction=0.3, split_seed=3).digest == first.digest


def test_writing_to_the_images_in_memory_does_not_change_the_store(home, tmp_path):
    class_folder(tmp_path / "photos")
    opened(home, dir=tmp_path / "photos", side=8).images[:] = 77
    assert 77 not in opened(home, dir=tmp_path / "photos", side=8).images


@pytest.mark.parametrize("change", ["rewrite", "add", "remove", "rename"])
def test_a_change_in_the_folder_is_seen(change, home, tmp_path):
    root = tmp_path / "photos"
    class_folder(root)
    before = opened(home, dir=root, side=8)
    expected = set(range(30))
    if change == "rewrite":  # the same name and size
        path = root / "cat" / "005.png"
        assert path.stat().st_size == len(marked(200))
        put(path, marked(200))
        os.utime(path, (time.time() + 10,) * 2)
        expected = expected - {5} | {200}
    elif change == "add":
        put(root / "cat" / "new.png", marked(200))
        expected |= {200}
    elif change == "remove":
        (root / "cat" / "000.png").unlink()
        expected -= {0}
    else:
        (root / "cat" / "000.png").rename(root / "dog" / "moved.png")
    after = opened(home, dir=root, side=8)
    assert set(after.images[:, 0, 0, 0].tolist()) == expected
    assert after.digest != before.digest


def test_two_folders_whose_files_list_alike_are_two_data_sets(home, tmp_path):
    for folder, first in (("one", 0), ("two", 100)):
        class_folder(tmp_path / folder, each=10, first=first)
        for path in (tmp_path / folder).rglob("*.png"):
            os.utime(path, (1_000_000_000,) * 2)  # as an archive unpacks them; names and sizes are the same too
    found = {folder: opened(home, dir=tmp_path / folder, side=8) for folder in ("one", "two")}
    assert sorted(found["two"].images[:, 0, 0, 0]) == list(range(100, 130))
    assert found["one"].digest != found["two"].digest


def test_the_digest_is_of_the_content_and_not_of_the_place(home, tmp_path):
    class_folder(tmp_path / "photos")
    shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    digest = opened(home, dir=tmp_path / "photos", side=8).digest
    assert opened(tmp_path / "home2", dir=tmp_path / "elsewhere" / "copy", side=8).digest == digest
    assert opened(home, dir=tmp_path / "photos", side=16).digest != digest


def test_an_exception_while_decoding_leaves_nothing_behind(home, tmp_path, monkeypatch):
    label = class_folder(tmp_path / "photos")
    calls = []

    def interrupted(content, side):
        calls.append(1)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return decode(content, side)

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened(home, dir=tmp_path / "photos", side=8)
    assert caches(home) == []
    assert sorted(opened(home, dir=tmp_path / "photos", side=8).images[:, 0, 0, 0]) == sorted(label)


SLOW = """
import sys, time
from pathlib import Path
from simclr import data
from simclr.config import DataConfig

real, home, folder, mode = data.decode, Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def decode(content, side):
    if mode == "hang" and content == (folder / "cat" / "009.png").read_bytes():
        print("decoding", flush=True)
        time.sleep(600)
    assert mode != "wait", "decoded a second time"
    return real(content, side)

data.decode = decode
home.mkdir(exist_ok=True)
(home / "there").touch()
found = data.open_dataset(DataConfig(dataset="folder", dir=folder, side=8), home)
print(found.digest, len(found.images), flush=True)
"""


def start(*arguments):
    command = [sys.executable, "-c", SLOW, *map(str, arguments)]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_killed_while_decoding_leaves_no_store_that_is_taken_for_whole(home, tmp_path):
    label = class_folder(tmp_path / "photos")
    process = start(home, tmp_path / "photos", "hang")
    assert process.stdout.readline() == "decoding\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert all(name.startswith(".") for name in caches(home))
    found = opened(home, dir=tmp_path / "photos", side=8)
    assert sorted(found.images[:, 0, 0, 0]) == sorted(label)


def test_a_second_process_waits_for_the_images_that_the_first_one_decodes(home, tmp_path, monkeypatch):
    label = class_folder(tmp_path / "photos")
    home.mkdir()
    process = None

    def slowly(content, side):  # the other process asks for the same images while this one is at it
        nonlocal process
        process = process or start(home, tmp_path / "photos", "wait")
        while not (home / "there").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.02)
        return decode(content, side)

    monkeypatch.setattr(images, "decode", slowly)
    monkeypatch.setattr(sources.os, "cpu_count", lambda: 1)
    found = opened(home, dir=tmp_path / "photos", side=8)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output == f"{found.digest} 30\n"
    assert sorted(found.images[:, 0, 0, 0]) == sorted(label)
    assert len(caches(home)) == 1


def test_a_disk_that_is_full_while_decoding_is_said_and_leaves_nothing_behind(home, tmp_path):
    resource = pytest.importorskip("resource")
    class_folder(tmp_path / "photos")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a write beyond this fails, as on a full disk
    try:
        with pytest.raises(RunFailed, match="free some space") as caught:
            opened(home, dir=tmp_path / "photos", side=32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(home / "cache") in str(caught.value)
    assert caches(home) == []


def test_a_disk_too_small_for_the_store_is_said_and_not_a_crash(home, tmp_path):
    class_folder(tmp_path / "photos")
    home.mkdir()
    program = """
import sys
from pathlib import Path
from simclr.config import DataConfig
from simclr.data import open_dataset
from simclr.errors import RunFailed
try:
    open_dataset(DataConfig(dataset="folder", dir=sys.argv[2], side=256), Path(sys.argv[1]))
except RunFailed as error:
    print(error)
"""
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1" || exit 99; exec "$3" -c "$4" "$1" "$2"'
    arguments = [str(home), str(tmp_path / "photos"), sys.executable, program]
    try:
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *arguments],
            env=ENV,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine lets no user mount a small disk")
    assert done.returncode == 0, f"ended by signal or status {done.returncode}: {done.stderr[-500:]}"
    assert "free some space" in done.stdout


# --- parts ------------------------------------------------------------------------------------------------------------


def rows(found, *parts):
    return {int(row) for part in parts for row in found.parts[part]}


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_parts_are_disjoint_and_val_fraction_is_honoured(fraction, home):
    found = opened(home, "digits", val_fraction=fraction)
    sizes = {part: len(found.parts[part]) for part in ("train", "val", "test")}
    assert sizes["val"] == round(fraction * (1797 - 359))
    assert sum(sizes.values()) == len(rows(found, "train", "val", "test")) == 1797
    assert rows(found, "pretrain") == rows(found, "train")
    assert all(np.array_equal(part, np.sort(part)) for part in found.parts.values())


def test_a_labelled_folder_gets_a_test_part_as_large_as_validation(home, tmp_path):
    class_folder(tmp_path / "photos")
    found = opened(home, dir=tmp_path / "photos", side=8, val_fraction=0.2)
    assert {part: len(found.parts[part]) for part in found.parts} == {"pretrain": 18, "train": 18, "val": 6, "test": 6}
    assert len(rows(found, "train", "val", "test")) == 30
    assert not rows(found, "pretrain") & rows(found, "val", "test")


def test_the_split_seed_alone_decides_the_split(home):
    first, again = (opened(home, "digits", split_seed=1, normalize=n) for n in ("dataset", "none"))
    other = opened(home, "digits", split_seed=2)
    assert all(np.array_equal(first.parts[part], again.parts[part]) for part in first.parts)
    assert rows(first, "val") != rows(other, "val")
    assert rows(first, "test") == rows(other, "test")  # given, and so never drawn


def test_a_limit_is_drawn_from_train_alone_and_grows_into_the_larger_one(home):
    whole, large, small = (opened(home, "digits", limit=n) for n in (None, 200, 50))
    assert [len(d.parts["pretrain"]) for d in (large, small)] == [200, 50]
    assert rows(small, "pretrain") < rows(large, "pretrain") < rows(whole, "pretrain")
    assert rows(small, "pretrain") == rows(small, "train")
    assert all(rows(small, part) == rows(whole, part) for part in ("val", "test"))
    assert rows(small, "train") != rows(opened(home, "digits", limit=50, split_seed=1), "train")
    assert len(set(small.labels[small.parts["train"]])) > 5  # a random draw, not the first images of a sorted folder


# --- sides, built-in data sets, statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 24])
def test_arrays_are_stored_at_the_side_asked_for(side, home):
    default, found = opened(home, "digits"), opened(home, "digits", side=side)
    assert found.side == side
    assert found.images.shape == (1797, 3, side, side)
    assert np.array_equal(found.labels, default.labels)
    if side == 8:  # the side that they have: untouched
        assert set(np.unique(found.images)) == {round(v * 255 / 16) for v in range(17)}
    image = Image.fromarray(opened(home, "digits", side=8).images[0].transpose(1, 2, 0))
    expected = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(found.images[0], expected)


def test_digits_are_the_same_everywhere_and_balanced(home, tmp_path):
    found, again = opened(home, "digits"), opened(tmp_path / "home2", "digits")
    assert found.digest == again.digest
    assert found.side == DATASETS["digits"].side == 16
    assert len(found.images) == 1797
    assert len(found.parts["test"]) == 359
    for part in ("train", "test"):
        counts = np.bincount(found.labels[found.parts[part]], minlength=10)
        assert counts.min() > 0.7 * counts.mean()


@pytest.fixture(scope="module")
def shapes_data(tmp_path_factory):
    return open_dataset(DataConfig(), tmp_path_factory.mktemp("home"))


def test_shapes_are_balanced_and_of_the_stated_size(shapes_data):
    assert shapes_data.images.shape == (shapes.TRAIN + shapes.TEST, 3, shapes.SIDE, shapes.SIDE)
    assert shapes_data.classes == shapes.CLASSES
    assert np.bincount(shapes_data.labels[: shapes.TRAIN]).tolist() == [shapes.TRAIN // 8] * 8
    assert np.bincount(shapes_data.labels[shapes_data.parts["test"]]).tolist() == [shapes.TEST // 8] * 8


def test_shapes_are_generated_by_seed_alone():
    images, labels = shapes.render(64, 0)
    assert images.dtype == np.uint8
    np.random.seed(123)
    again, _ = shapes.render(64, 0)
    other, _ = shapes.render(64, 1)
    assert np.array_equal(images, again)
    assert not (images == other).all((1, 2, 3)).any()
    assert labels.tolist() == [*range(8)] * 8


def test_the_shapes_of_train_and_test_are_other_images(shapes_data):
    train, test = (set(map(bytes, shapes_data.images[rows])) for rows in np.split(np.arange(10_000), [shapes.TRAIN]))
    assert len(train) == shapes.TRAIN
    assert not train & test


def test_the_colours_of_shapes_say_nothing_about_the_class(shapes_data):
    from sklearn.linear_model import LogisticRegression

    colours = shapes_data.images.mean((2, 3)) / 255
    corners = shapes_data.images[:, :, ::31, ::31].mean((2, 3)) / 255  # mostly background
    y, (train, test) = shapes_data.labels, np.split(np.arange(10_000), [shapes.TRAIN])
    for x in (colours, corners, np.concatenate([colours, corners], 1)):
        means = np.stack([x[train][y[train] == c].mean(0) for c in range(8)])
        nearest = ((x[test][:, None] - means) ** 2).sum(2).argmin(1)
        logistic = LogisticRegression(max_iter=200).fit(x[train], y[train]).predict(x[test])
        for predicted in (nearest, logistic):
            assert (predicted == y[test]).mean() < 1 / 8 + 0.035  # chance, and over four standard errors


def test_channel_statistics_are_numpys(rng):
    images = (noise(rng, 50, 3, 9, 9) * np.array([1, 0.5, 0.1]).reshape(3, 1, 1)).astype(np.uint8)
    mean, std = channel_statistics(images)
    assert np.allclose(mean, (images / 255).mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(std, (images / 255).std((0, 2, 3)), atol=1e-6)


def test_channel_statistics_of_more_images_than_a_block_are_of_all_of_them():
    images = np.zeros((5000, 3, 2, 2), np.uint8)
    images[4096:] = 255
    mean, std = channel_statistics(images)
    assert np.allclose(mean, 904 / 5000, atol=1e-6)
    assert np.allclose(std, images[:, 0].std() / 255, atol=1e-6)


def test_images_of_one_colour_have_a_standard_deviation_that_can_be_divided_by():
    for value in range(256):
        mean, std = channel_statistics(np.full((1, 3, 4, 4), value, np.uint8))
        assert np.allclose(mean, value / 255, atol=1e-6)
        assert (np.array(std) > 0).all()


def test_the_statistics_of_a_data_set_are_of_its_training_images(home, tmp_path):
    class_folder(tmp_path / "photos" / "train", each=5)
    class_folder(tmp_path / "photos" / "test", each=5, first=200)
    found = opened(home, dir=tmp_path / "photos", side=8)
    trained_on = found.images[found.parts["pretrain"]] / 255
    assert len(trained_on) == 13
    assert np.allclose(found.mean, trained_on.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(found.std, trained_on.std((0, 2, 3)), atol=1e-6)


def test_splits_are_stratified(home):
    found = opened(home, "digits")
    for part in ("train", "val"):
        counts = np.bincount(found.labels[found.parts[part]], minlength=10) / len(found.parts[part])
        whole = np.bincount(found.labels[np.concatenate([found.parts["train"], found.parts["val"]])]) / 1438
        assert np.abs(counts - whole).max() < 1.5 / len(found.parts[part])


def test_folders_beside_train_are_refused_by_name(home, tmp_path):
    class_folder(tmp_path / "photos" / "train")
    class_folder(tmp_path / "photos" / "valid")
    assert "holds valid beside 'train'" in refusal(home, dir=tmp_path / "photos", side=8)


def test_one_folder_of_images_is_all_trained_on(home, tmp_path):
    class_folder(tmp_path / "photos", classes=("all",), each=20)
    found = opened(home, dir=tmp_path / "photos", side=8)
    assert len(found.parts["pretrain"]) == 20
    assert not found.has_labels
