"""Make image files, folders and archives, and open them as data sets."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from simclr.data.dataset import DataConfig, open_dataset
from simclr.data.download import DOWNLOADS, Download
from simclr.data.images import Decoding, decode
from simclr.errors import UserError
from simclr.progress import Observer


def open_data(home, dataset="folder", **settings):
    return open_dataset(DataConfig(dataset=dataset, **settings), home)


class Notes(Observer):
    """Keeps what it is told about the images."""

    def __init__(self):
        self.texts = []

    def note(self, text, folder=None):
        self.texts.append(text)


def open_and_listen(home, **settings):
    """A folder (or another form) as a data set, and what opening it tells the user."""
    observer = Notes()
    return open_dataset(DataConfig(dataset="folder", **settings), home, observer), observer.texts


def error_message(home, dataset="folder", **settings):
    """The one-line message of the UserError that opening a data set raises."""
    with pytest.raises(UserError) as caught:
        open_data(home, dataset, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def encode(array, kind="PNG", **options):
    """The bytes of an image file from H x W or H x W x C, or from a PIL image."""
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content, side, **how):
    """The pixels of an encoded image, 3 x side x side."""
    return decode(content, Decoding(side, **how)).pixels


def plain(value, side=8):
    """A PNG of one value, by which it is recognised after decoding. All of them have the same size in bytes."""
    return encode(np.full((side, side, 3), value, np.uint8), compress_level=0)


def values(dataset, part=None):
    """The values of `plain` images, sorted: all, or those of a part."""
    rows = slice(None) if part is None else dataset.parts[part]
    return sorted(dataset.images[rows, 0, 0, 0].tolist())


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_class_folder(root, classes=("cat", "dog", "emu"), each=10, first=0):
    """Write `plain` images as root/<class>/<i>.png. Returns the label of each value."""
    labels = {}
    for index, name in enumerate(classes):
        for i in range(each):
            value = first + index * each + i
            write(root / name / f"{i:03d}.png", plain(value))
            labels[value] = index
    return labels


def decode_with_pil(content):
    """PIL's RGB pixels of an encoded image, 3 x H x W."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def store_folders(home):
    """Names of the finished and unfinished stores."""
    cache = home / "cache"
    return sorted(path.name for path in cache.iterdir() if path.is_dir()) if cache.exists() else []


def make_tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def make_zip(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def publish(monkeypatch, dataset, content, url=None):
    """Make `content` the published archive of a data set. Returns the archive's file name."""
    url = url or DOWNLOADS[dataset].url
    monkeypatch.setitem(DOWNLOADS, dataset, Download(url, hashlib.md5(content).hexdigest()))
    return url.rpartition("/")[2]


def make_cifar10(rng, each=4):
    """The members of CIFAR-10's binary archive with a few images per file, and its images, labels and classes."""
    images, labels = noise(rng, 6 * each, 3, 32, 32), np.arange(6 * each) % 10
    records = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(-1, 3072)], 1).reshape(6, -1)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    members = {f"cifar-10-batches-bin/{n}": r.tobytes() for n, r in zip(names, records, strict=True)}
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    members["cifar-10-batches-bin/batches.meta.txt"] = ("\n".join(classes) + "\n\n").encode()
    members["cifar-10-batches-bin/readme.html"] = b"<html></html>"
    return dict(reversed(members.items())), images, labels, tuple(classes)
