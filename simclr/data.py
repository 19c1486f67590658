"""Data: every source becomes one memory-mapped uint8 array, decoded once.

A data set is a function that lists a source: the files or arrays of each split, with labels. `open_dataset` decodes
them into a store under the cache folder (N x 3 x side x side), atomically and keyed by a fingerprint of the source, and
cuts train, validation and test. To add a data set, write the function and add a line to DATASETS.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps

from . import shapes
from .errors import RunFailed, UserError
from .randomness import permutation

if TYPE_CHECKING:
    from .config import DataConfig

Array = NDArray[Any]
Progress = Callable[[str, int, int], None]  # (what, done, total), called now and then
UNLABELLED = -1
FORMAT = 1  # of the store; a change makes every cache new
CHUNK = 4096  # images that are copied or hashed at a time
STATISTICS = 10_000  # images that are enough for a channel's mean and standard deviation


def silent(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


# --- sources ----------------------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """Encoded images: their names, and how to get the bytes of one."""

    names: Sequence[str]
    read: Callable[[str], bytes]


class Split(NamedTuple):
    """Images (files, or an array N x 3 x H x W uint8) with a label each (-1: none)."""

    images: Files | Array
    labels: Array


class Contents(NamedTuple):
    """Class names and splits (train, unlabeled, val, test)."""

    classes: tuple[str, ...]
    splits: dict[str, Split]


class Source(NamedTuple):
    """What identifies a data set, cheaply; and how to read it, called only when it is not decoded yet."""

    fingerprint: str
    read: Callable[[], Contents]


def _fingerprint(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _refuse_folder(config: DataConfig) -> None:
    if config.dir is not None:
        raise UserError(
            f"the data set '{config.dataset}' is embedded and reads no folder: add --dataset folder, or take --preset "
            f"half-hour, for the images in {config.dir}; or leave --data-dir out"
        )


def load_shapes(config: DataConfig, home: Path, progress: Progress) -> Source:
    _refuse_folder(config)

    def read() -> Contents:
        parts = (("train", shapes.TRAIN, 0), ("test", shapes.TEST, 1))
        return Contents(shapes.CLASSES, {name: Split(*shapes.render(n, seed)) for name, n, seed in parts})

    return Source(_fingerprint("shapes", shapes.VERSION), read)


def load_digits(config: DataConfig, home: Path, progress: Progress) -> Source:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; a fixed fifth of them is the test set."""
    _refuse_folder(config)

    def read() -> Contents:
        from sklearn.datasets import load_digits as sklearn_digits

        digits = sklearn_digits()
        images = np.repeat((digits.images * (255 / 16)).round().astype(np.uint8)[:, None], 3, axis=1)
        labels = digits.target.astype(np.int64)
        order = permutation(len(images), 0, "digits").numpy()
        train, test = order[len(order) // 5 :], order[: len(order) // 5]
        splits = {"train": Split(images[train], labels[train]), "test": Split(images[test], labels[test])}
        return Contents(tuple(map(str, range(10))), splits)

    return Source(_fingerprint("digits"), read)


class Download(NamedTuple):
    """Where a data set's archive comes from, and the MD5 sum that its publisher states."""

    url: str
    md5: str


DOWNLOADS = {
    "cifar10": Download("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": Download(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"
    ),
    "stl10": Download("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb"),
    "tiny-imagenet": Download("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
}


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch(dataset: str, folder: Path, progress: Progress) -> Path:
    """The data set's archive in `folder`, downloaded unless it is there; resumes a partial download.

    Archives are read in place and never unpacked, so no member can write anywhere. Raises UserError when there is no
    network (naming the file to put where) or the checksum is wrong.
    """
    url, md5 = DOWNLOADS[dataset]
    path = folder / url.rpartition("/")[2]
    if path.exists():
        _verify(path, md5)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with FileLock(path.with_name(path.name + ".lock")):
        if not path.exists():
            try:
                _download(url, part, progress)
            except (OSError, HTTPException) as error:
                raise _no_download(dataset, path, error) from None
            _verify(part, md5)
            os.replace(part, path)
    return path


def _download(url: str, part: Path, progress: Progress) -> None:
    """Fetch a URL into `part`, going on where it ends. Raises OSError or HTTPException."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the partial file is whole
            return
        raise
    with response:
        if response.status != 206:  # the server sends the whole file again
            done = 0
        total = done + int(response.headers.get("Content-Length") or 0)
        with part.open("ab" if done else "wb") as file:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                done += len(chunk)
                progress(f"downloading {part.stem}", done, max(done, total))
    if done < total:
        raise urllib.error.URLError(f"the connection ended after {done} of {total} bytes")


def _verify(path: Path, md5: str) -> None:
    if (found := _md5(path)) != md5:
        raise UserError(f"{path} has MD5 {found}, expected {md5}: delete the file and run again to download it anew")


def _no_download(dataset: str, path: Path, error: Exception) -> UserError:
    reason = " ".join(str(getattr(error, "reason", None) or error).split())
    return UserError(
        f"can't download {DOWNLOADS[dataset].url} ({reason}): run again to resume, or put that file at {path}; "
        f"`simclr pretrain --preset shapes` works now, without a network"
    )


def _download_folder(config: DataConfig, home: Path) -> Path:
    return config.dir or home / "downloads"


def load_cifar(
    name: str, label_bytes: int, meta: str, train: Sequence[str], test: Sequence[str]
) -> Callable[[DataConfig, Path, Progress], Source]:
    """CIFAR's binary version: records of `label_bytes` labels (the last is used) and 3 x 32 x 32 pixels."""

    def load(config: DataConfig, home: Path, progress: Progress) -> Source:
        def split(members: dict[str, bytes], files: Sequence[str]) -> Split:
            records = np.concatenate([np.frombuffer(members[file], np.uint8) for file in files])
            records = records.reshape(-1, label_bytes + 3072)
            return Split(records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1].astype(np.int64))

        def read() -> Contents:
            archive = fetch(name, _download_folder(config, home), progress)
            with tarfile.open(archive) as tar:
                members = {Path(member.name).name: _member(tar, member) for member in tar if member.isfile()}
            try:
                splits = {"train": split(members, train), "test": split(members, test)}
                return Contents(tuple(members[meta].decode().split()), splits)
            except (KeyError, ValueError) as error:
                raise UserError(f"{archive} is not the binary version of {name} ({error})") from None

        return Source(_fingerprint(name, DOWNLOADS[name].md5), read)

    return load


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def load_stl10(config: DataConfig, home: Path, progress: Progress) -> Source:
    """STL-10: 5,000 + 8,000 labelled images and 100,000 without labels, 96 x 96, stored column by column."""

    def read() -> Contents:
        archive = fetch("stl10", _download_folder(config, home), progress)
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: _member(tar, member) for member in tar if member.isfile()}

        def images(part: str) -> Array:
            return np.frombuffer(members[f"{part}_X.bin"], np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)

        def labels(part: str) -> Array:
            return np.frombuffer(members[f"{part}_y.bin"], np.uint8).astype(np.int64) - 1

        try:
            splits = {part: Split(images(part), labels(part)) for part in ("train", "test")}
            bare = images("unlabeled")
            splits["unlabeled"] = Split(bare, np.full(len(bare), UNLABELLED))
            return Contents(tuple(members["class_names.txt"].decode().split()), splits)
        except (KeyError, ValueError) as error:
            raise UserError(f"{archive} is not the binary version of STL-10 ({error})") from None

    return Source(_fingerprint("stl10", DOWNLOADS["stl10"].md5), read)


def load_tiny_imagenet(config: DataConfig, home: Path, progress: Progress) -> Source:
    """Tiny ImageNet's official layout, zipped or unpacked (`dir`, or a folder tiny-imagenet-200 in it).

    train/<wnid>/images; val/images with val/val_annotations.txt, which is the test set here, as its labels are public
    and those of test/ are not; boxes and test/ are ignored.
    """
    folder = _download_folder(config, home)
    unpacked = next((f for f in (folder, folder / "tiny-imagenet-200") if (f / "wnids.txt").exists()), None)
    if unpacked:
        found = sorted(path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.JPEG"))
        return Source(_listing(unpacked, found), lambda: _tiny_imagenet(found, lambda n: (unpacked / n).read_bytes()))

    def read() -> Contents:
        bundle = zipfile.ZipFile(fetch("tiny-imagenet", folder, progress))
        names = sorted(n.partition("/")[2] for n in bundle.namelist() if n.endswith(".JPEG"))
        return _tiny_imagenet(names, lambda name: bundle.read(f"tiny-imagenet-200/{name}"))

    return Source(_fingerprint("tiny-imagenet", DOWNLOADS["tiny-imagenet"].md5), read)


def _tiny_imagenet(names: list[str], read: Callable[[str], bytes]) -> Contents:
    wnids = read("wnids.txt").decode().split()
    words = dict(line.split("\t", 1) for line in read("words.txt").decode().splitlines() if "\t" in line)
    index = {wnid: i for i, wnid in enumerate(wnids)}

    def label(wnid: str) -> int:
        if wnid not in index:
            raise UserError(f"the images of tiny-imagenet are of a class '{wnid}' that its wnids.txt does not list")
        return index[wnid]

    annotations = (line.split("\t")[:2] for line in read("val/val_annotations.txt").decode().splitlines() if line)
    labels = {f"val/images/{file}": label(wnid) for file, wnid in annotations}
    train, test = [n for n in names if n.startswith("train/")], [n for n in names if n in labels]
    splits = {
        "train": Split(Files(train, read), np.array([label(n.split("/")[1]) for n in train], np.int64)),
        "test": Split(Files(test, read), np.array([labels[n] for n in test], np.int64)),
    }
    return Contents(tuple(words.get(w, w).split(",")[0] for w in wnids), splits)


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SPLIT_FOLDERS = ("train", "val", "test")


def _hidden(name: str) -> bool:
    """Whether a file or folder is not the user's: a hidden one, or what Windows puts beside pictures."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not _hidden(e.name)), key=lambda e: e.name)


def walk(folder: str) -> list[str]:
    """The paths of all files below a folder, hidden ones left out, sorted."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        found += [os.path.join(root, name) for name in files if not _hidden(name)]
    return sorted(found)


def load_folder(config: DataConfig, home: Path, progress: Progress) -> Source:
    """Any folder of images: <class>/..., or train|val|test/<class>/..., or images alone (no labels).

    A labelled folder without a test split gets one, of `val_fraction` of its images.
    """
    if config.dir is None:
        raise UserError("the data set 'folder' needs a folder of images: add --data-dir FOLDER")
    root = config.dir
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist (data.dir, --data-dir): expected a folder of images")
    subfolders = {entry.name for entry in _visible(root) if entry.is_dir()}
    if "train" in subfolders and (others := sorted(subfolders - set(SPLIT_FOLDERS))):
        raise UserError(
            f"{root} holds {', '.join(others[:5])} beside 'train': expected train, val and test, or classes alone"
        )
    tops = (
        {part: root / part for part in SPLIT_FOLDERS if part in subfolders}
        if "train" in subfolders
        else {"train": root}
    )
    classes = sorted({entry.name for top in tops.values() for entry in _visible(top) if entry.is_dir()})
    listed: list[str] = []
    splits = {}
    for part, top in tops.items():
        names, labels = [], []
        for entry in _visible(top):
            if entry.is_dir():
                found, label = walk(entry.path), classes.index(entry.name)
            elif not classes:
                found, label = [entry.path], UNLABELLED
            elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                raise UserError(f"{top} holds images (such as {entry.name}) beside folders: expected one or the other")
            else:
                continue  # a text file beside the class folders
            names += [os.path.relpath(path, root) for path in found]
            labels += [label] * len(found)
        listed += names
        splits[part] = Split(Files(names, lambda name: (root / name).read_bytes()), np.array(labels, np.int64))
    if not len(splits["train"].labels):
        raise UserError(f"no images in {tops['train']}: expected image files, or one folder of them for each class")
    return Source(_listing(root, listed), lambda: Contents(tuple(classes), splits))


def _listing(root: Path, names: Sequence[str]) -> str:
    """A fingerprint of files by place, name, size and time of change."""
    digest = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8)
    for name in names:
        try:
            stat = os.stat(root / name)
        except FileNotFoundError:  # a link that leads nowhere: reported with the other files that can't be read
            stat = os.lstat(root / name)
        line = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))  # names that are not UTF-8, as of old archives, too
    return digest.hexdigest()


class DatasetRow(NamedTuple):
    """One row of DATASETS: how to list it, its default stored side, one line about it."""

    load: Callable[[DataConfig, Path, Progress], Source]
    side: int
    about: str


DATASETS: dict[str, DatasetRow] = {
    "shapes": DatasetRow(load_shapes, 32, "8 shapes, colours are a nuisance; generated, the teaching data set"),
    "digits": DatasetRow(load_digits, 16, "scikit-learn's 1,797 handwritten digits; embedded"),
    "cifar10": DatasetRow(
        load_cifar("cifar10", 1, "batches.meta.txt", [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
        32,
        "60,000 images in 10 classes; downloaded (162 MB)",
    ),
    "cifar100": DatasetRow(
        load_cifar("cifar100", 2, "fine_label_names.txt", ["train.bin"], ["test.bin"]),
        32,
        "60,000 images in 100 classes; downloaded (161 MB)",
    ),
    "stl10": DatasetRow(load_stl10, 96, "105,000 images to pre-train on, 10 classes; downloaded (2.6 GB)"),
    "tiny-imagenet": DatasetRow(load_tiny_imagenet, 64, "110,000 images in 200 classes; downloaded (248 MB)"),
    "folder": DatasetRow(load_folder, 64, "your own images (--data-dir), labelled by subfolder or not at all"),
}


# --- the store --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """Decoded images and the rows of each part: pretrain, train, val, test (the last three hold no unlabelled ones)."""

    name: str
    images: Array  # uint8, N x 3 x side x side, memory-mapped (writes would stay private)
    labels: Array  # int64, N; UNLABELLED where unknown
    classes: tuple[str, ...]
    parts: dict[str, Array]
    digest: str  # of images and labels
    mean: tuple[float, ...]  # of each channel over (at most STATISTICS or so of) the images to pre-train on, in [0, 1]
    std: tuple[float, ...]

    @property
    def side(self) -> int:
        return int(self.images.shape[-1])

    @property
    def has_labels(self) -> bool:
        """Whether accuracies can be measured: labelled training and validation images of two classes or more."""
        return len(self.classes) > 1 and len(self.parts["train"]) > 0 and len(self.parts["val"]) > 0


def stored_side(config: DataConfig) -> int:
    """The side in pixels that images are stored at."""
    return config.side or DATASETS[config.dataset].side


def decode(data: bytes, side: int) -> Array:
    """Encoded image bytes -> their `pixels`."""
    with Image.open(BytesIO(data)) as image:
        return pixels(image, side)


def pixels(image: Image.Image, side: int) -> Array:
    """Any image -> 3 x side x side uint8: upright, RGB, shorter side to `side` (bicubic), central square."""
    image.draft("RGB", (2 * side, 2 * side))  # lets JPEG decode at a reduced size, never below twice the target
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip
        upright = Image.fromarray((np.asarray(upright) / 257).round().clip(0, 255).astype(np.uint8))
    return _square(upright.convert("RGB"), side)


def _square(image: Image.Image, side: int) -> Array:
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def decode_files(files: Files, out: Array, progress: Progress, what: str) -> list[tuple[int, str]]:
    """Decode files into the rows of `out`, in threads (PIL lets go of the interpreter); the rows that failed."""
    bad: list[tuple[int, str]] = []

    def one(row: int) -> None:
        try:
            out[row] = decode(files.read(files.names[row]), out.shape[-1])
        except OSError as error:  # PIL's UnidentifiedImageError is one
            bad.append((row, "not an image" if "identify" in str(error) else str(error)))
        except MemoryError:  # says nothing of the file
            raise
        except Exception as error:  # PIL raises many kinds on damaged files, struct.error among them
            bad.append((row, str(error)))

    total, chunk = len(files.names), 256
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, total, chunk):
            list(pool.map(one, range(start, min(start + chunk, total))))
            progress(what, min(start + chunk, total), total)
    return sorted(bad)


def _decode_once(folder: Path, contents: Contents, side: int, skip_bad: bool, progress: Progress) -> None:
    """Make `folder` with the decoded images, or wait for the process that is making it."""
    scratch = folder.with_name(f".{folder.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            return
        try:
            shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
            scratch.mkdir()
            _write_store(scratch, contents, side, skip_bad, progress)
            for path in scratch.iterdir():  # a cache that is there is whole, after a power cut too
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            os.rename(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write_store(folder: Path, contents: Contents, side: int, skip_bad: bool, progress: Progress) -> None:
    """Decode all splits, one after the other, into `folder`: images.npy, labels.npy, meta.json."""
    labels = np.concatenate([split.labels for split in contents.splits.values()])
    images = _allocate(folder / "images.npy", (len(labels), 3, side, side))
    bad: dict[int, str] = {}
    end, bounds = 0, {}
    for name, split in contents.splits.items():
        start, end = end, end + len(split.labels)
        bounds[name] = (start, end)
        if isinstance(split.images, Files):
            for row, reason in decode_files(split.images, images[start:end], progress, f"decoding {name}"):
                bad[start + row] = f"{split.images.names[row]} ({reason})"
        elif split.images.shape[-1] == side:
            images[start:end] = split.images
        else:
            for row, image in enumerate(split.images, start):
                images[row] = _square(Image.fromarray(image.transpose(1, 2, 0)), side)
    if bad:
        keep = np.setdiff1d(np.arange(len(labels)), list(bad))
        bounds = {name: tuple(np.searchsorted(keep, ab).tolist()) for name, ab in bounds.items()}
        if not skip_bad or bounds["train"] == (0, 0):
            raise bad_images(list(bad.values()), len(labels))
        whole, labels = images, labels[keep]
        images = _allocate(folder / "kept.npy", (len(keep), 3, side, side))
        for start in range(0, len(keep), CHUNK):
            images[start : start + CHUNK] = whole[keep[start : start + CHUNK]]
        images.flush()
        del images, whole  # Windows replaces no file that is mapped
        os.replace(folder / "kept.npy", folder / "images.npy")
        images = np.load(folder / "images.npy", mmap_mode="r+")
    np.save(folder / "labels.npy", labels)
    digest = hashlib.blake2b(labels.tobytes(), digest_size=16)
    for start in range(0, len(images), CHUNK):
        digest.update(images[start : start + CHUNK].tobytes())
    meta = {"digest": digest.hexdigest(), "classes": contents.classes, "bounds": bounds}
    images.flush()
    (folder / "meta.json").write_text(json.dumps(meta | {"bad": list(bad.values()), "files": len(labels) + len(bad)}))


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A writable memory-mapped uint8 array whose blocks exist: a full disk is an error now, not a signal later."""
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def bad_images(
    bad: Sequence[str],
    total: int,
    remedy: str = "Remove them, or pass --on-bad-image skip (or --set data.on_bad_image=skip)",
) -> UserError:
    shown = "; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
    return UserError(f"{len(bad)} of {total} files can't be read as images: {shown}. {remedy}")


def channel_statistics(images: Array) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0, 1], over N x 3 x H x W uint8."""
    counts = np.zeros((3, 256))
    for start in range(0, len(images), CHUNK):
        for channel in range(3):
            counts[channel] += np.bincount(images[start : start + CHUNK, channel].reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(share @ levels**2 - mean**2)
    return mean.round(6).tolist(), std.clip(1e-3).round(6).tolist()


def source_of(config: DataConfig, home: Path, progress: Progress = silent) -> Source:
    """What a config's images come from. Raises UserError (`read` too) where they are missing or can't be read."""

    def unreadable(error: Exception) -> UserError:
        return UserError(f"can't read the data set '{config.dataset}': {error}")

    def read() -> Contents:
        try:
            return source.read()
        except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise unreadable(error) from None

    try:
        source = DATASETS[config.dataset].load(config, home, progress)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise unreadable(error) from None
    return Source(source.fingerprint, read)


def image_side(contents: Contents, sample: int = 64) -> int:
    """The side in pixels of the images to train on as they come: the median of a sample's shorter sides."""
    images = contents.splits["train"].images
    if not isinstance(images, Files):
        return int(images.shape[-1])
    sides = []
    for name in images.names[:: max(1, len(images.names) // sample)]:
        try:
            with Image.open(BytesIO(images.read(name))) as image:
                sides.append(min(image.size))
        except (OSError, Image.DecompressionBombError):
            continue  # reported with all others when they are decoded
    return int(np.median(sides)) if sides else 0


def open_dataset(config: DataConfig, home: Path, progress: Progress = silent) -> Dataset:
    """The data set of a config, decoded into `home`/cache at the first call and memory-mapped from then on.

    Raises UserError for a missing folder, a failed download, unreadable images, or too few images.
    """
    side = stored_side(config)
    source = source_of(config, home, progress)
    folder = home / "cache" / f"{config.dataset}-{_fingerprint(source.fingerprint, side, FORMAT)}"
    contents = None if folder.exists() else source.read()
    if contents is not None:
        try:
            _decode_once(folder, contents, side, config.on_bad_image == "skip", progress)
        except OSError as error:
            message = f"can't write the decoded images to {folder.parent}: {error}; free some space there"
            raise RunFailed(message) from error
    meta = json.loads((folder / "meta.json").read_text())
    if meta["bad"] and config.on_bad_image == "error":
        raise bad_images(meta["bad"], meta["files"])
    labels = np.load(folder / "labels.npy")
    images = np.load(folder / "images.npy", mmap_mode="c")
    parts = _parts({name: np.arange(*ab) for name, ab in meta["bounds"].items()}, labels, config)
    mean, std = channel_statistics(images[parts["pretrain"][:: max(1, len(parts["pretrain"]) // STATISTICS)]])
    return Dataset(
        name=config.dataset,
        images=images,
        labels=labels,
        classes=tuple(meta["classes"]),
        parts=parts,
        digest=meta["digest"],
        mean=tuple(mean),
        std=tuple(std),
    )


def _shuffled(rows: Array, labels: Array, config: DataConfig) -> Array:
    """The rows in an order of the split seed, such that the first n hold every class in its share, for any n."""
    rows = rows[permutation(len(rows), config.split_seed, "split").numpy()]
    place = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        same = np.flatnonzero(labels[rows] == label)
        place[same] = (np.arange(len(same)) + 0.5) / len(same)
    return rows[np.argsort(place, kind="stable")]


def _parts(splits: dict[str, Array], labels: Array, config: DataConfig) -> dict[str, Array]:
    """Disjoint rows of train, val and test, stratified; pretrain is train and whatever has no label."""
    train = _shuffled(splits["train"], labels, config)
    held = {}
    classes = np.unique(labels[train][labels[train] != UNLABELLED])
    for part in ("val", "test"):
        count = max(1, round(config.val_fraction * len(splits["train"]))) if len(classes) > 1 else 0
        held[part] = splits[part] if part in splits else train[:count]
        train = train if part in splits else train[count:]
    if not len(train):
        raise UserError(
            f"data.val_fraction = {config.val_fraction:g} of {len(splits['train'])} images leaves none to train on: "
            f"lower it, or add images"
        )
    everything = np.concatenate([train, splits.get("unlabeled", train[:0])])
    pretrain = _shuffled(everything, labels, config)[: config.limit]
    train = np.intersect1d(train, pretrain)
    parts = {part: np.sort(rows[labels[rows] != UNLABELLED]) for part, rows in ({"train": train} | held).items()}
    return {"pretrain": np.sort(pretrain)} | parts


# How images in [0, 1] are shifted and scaled before the network: (mean, std) of each channel.
NORMALIZATIONS: dict[str, Callable[[Dataset], tuple[Sequence[float], Sequence[float]]]] = {
    "dataset": lambda data: (data.mean, data.std),
    "half": lambda data: ((0.5,) * 3, (0.5,) * 3),
    "imagenet": lambda data: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # what torchvision's weights expect
    "none": lambda data: ((0.0,) * 3, (1.0,) * 3),
}
