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
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
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


def silent(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


# --- sources ----------------------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """Encoded images: their names, and how to get the bytes of one."""

    names: Sequence[str]
    read: Callable[[str], bytes]


class Split(NamedTuple):
    """Images (files, or a function that makes the array N x 3 x H x W uint8) with a label each (-1: none)."""

    images: Files | Callable[[], Array]
    labels: Array


class Source(NamedTuple):
    """A listed data set: what identifies it, its class names, its splits (train, unlabeled, val, test)."""

    fingerprint: str
    classes: tuple[str, ...]
    splits: dict[str, Split]


def _fingerprint(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def load_shapes(config: DataConfig, home: Path, progress: Progress) -> Source:
    splits = {
        name: Split(lambda n=n, seed=seed: shapes.render(n, seed)[0], shapes.labels(n))  # type: ignore[misc]
        for name, n, seed in (("train", shapes.TRAIN, 0), ("test", shapes.TEST, 1))
    }
    return Source(_fingerprint("shapes", shapes.VERSION), shapes.CLASSES, splits)


def load_digits(config: DataConfig, home: Path, progress: Progress) -> Source:
    """scikit-learn's 1,797 digits of 8 x 8 pixels; a fixed fifth of them is the test set."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    gray = np.repeat((digits.images * (255 / 16)).round().astype(np.uint8)[:, None], 3, axis=1)
    order = permutation(len(gray), 0, "digits").numpy()
    cut = len(gray) // 5
    splits = {
        name: Split(lambda rows=rows: gray[rows], digits.target[rows].astype(np.int64))  # type: ignore[misc]
        for name, rows in (("train", order[cut:]), ("test", order[:cut]))
    }
    return Source(_fingerprint("digits"), tuple(map(str, range(10))), splits)


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

    The archive's checksum is verified once, when it is complete; archives are read in place and never unpacked, so no
    member can write anywhere. Raises UserError when there is no network (naming the file to put where) or the
    checksum is wrong.
    """
    url, md5 = DOWNLOADS[dataset]
    path = folder / url.rpartition("/")[2]
    verified = path.with_name(path.name + ".verified")
    if path.exists():
        if not (verified.exists() and verified.stat().st_mtime_ns >= path.stat().st_mtime_ns):
            _verify(path, md5)
            verified.touch()
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        with urllib.request.urlopen(request, timeout=30) as response:
            if response.status != 206:  # the server sends the whole file again
                done = 0
            total = done + int(response.headers.get("Content-Length") or 0)
            with part.open("ab" if done else "wb") as file:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    done += len(chunk)
                    progress(f"downloading {path.name}", done, max(done, total))
        if total and done < total:
            raise urllib.error.URLError(f"the connection ended after {done} of {total} bytes")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the partial file is already complete
            raise _no_download(dataset, path, error) from None
    except (urllib.error.URLError, OSError) as error:
        raise _no_download(dataset, path, error) from None
    _verify(part, md5)
    os.replace(part, path)
    verified.touch()
    return path


def _verify(path: Path, md5: str) -> None:
    if (found := _md5(path)) != md5:
        raise UserError(f"{path} has MD5 {found}, expected {md5}: delete the file and run again to download it anew")


def _no_download(dataset: str, path: Path, error: Exception) -> UserError:
    reason = getattr(error, "reason", None) or error
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
        archive = fetch(name, _download_folder(config, home), progress)
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: _member(tar, member) for member in tar if member.isfile()}
        try:
            classes = tuple(members[meta].decode().split())
            records = {
                split: np.concatenate([_records(members[file], label_bytes + 3072) for file in files])
                for split, files in (("train", train), ("test", test))
            }
        except KeyError as error:
            raise UserError(f"{archive} holds no file {error}: expected the binary version of {name}") from None
        splits = {
            split: Split(
                lambda rows=rows: rows[:, label_bytes:].reshape(-1, 3, 32, 32),  # type: ignore[misc]
                rows[:, label_bytes - 1].astype(np.int64),
            )
            for split, rows in records.items()
        }
        return Source(_fingerprint(name, DOWNLOADS[name].md5), classes, splits)

    return load


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def _records(data: bytes, size: int) -> Array:
    return np.frombuffer(data, np.uint8).reshape(-1, size)


def load_stl10(config: DataConfig, home: Path, progress: Progress) -> Source:
    """STL-10: 5,000 + 8,000 labelled images and 100,000 without labels, 96 x 96, stored column by column."""
    archive = fetch("stl10", _download_folder(config, home), progress)

    def read(file: str) -> bytes:
        with tarfile.open(archive) as tar:
            return _member(tar, tar.getmember(f"stl10_binary/{file}"))

    def images(file: str) -> Callable[[], Array]:
        return lambda: np.frombuffer(read(file), np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)

    with tarfile.open(archive) as tar:
        unlabelled = tar.getmember("stl10_binary/unlabeled_X.bin").size // (3 * 96 * 96)
    splits = {
        split: Split(images(f"{split}_X.bin"), np.frombuffer(read(f"{split}_y.bin"), np.uint8).astype(np.int64) - 1)
        for split in ("train", "test")
    }
    splits["unlabeled"] = Split(images("unlabeled_X.bin"), np.full(unlabelled, UNLABELLED))
    return Source(
        _fingerprint("stl10", DOWNLOADS["stl10"].md5), tuple(read("class_names.txt").decode().split()), splits
    )


def load_tiny_imagenet(config: DataConfig, home: Path, progress: Progress) -> Source:
    """Tiny ImageNet's official layout, zipped or unpacked (`dir`, or a folder tiny-imagenet-200 in it).

    train/<wnid>/images; val/images with val/val_annotations.txt, which is the test set here, as its labels are public
    and those of test/ are not; boxes and test/ are ignored.
    """
    folder = _download_folder(config, home)
    unpacked = next((f for f in (folder, folder / "tiny-imagenet-200") if (f / "wnids.txt").exists()), None)
    if unpacked:
        names = sorted(str(p.relative_to(unpacked).as_posix()) for p in unpacked.rglob("*.JPEG"))
        root = unpacked

        def read(name: str) -> bytes:
            return (root / name).read_bytes()

        fingerprint = _listing(unpacked, names)
    else:
        archive = fetch("tiny-imagenet", folder, progress)
        bundle = zipfile.ZipFile(archive)
        names = sorted(n.partition("/")[2] for n in bundle.namelist() if n.endswith(".JPEG"))

        def read(name: str) -> bytes:
            return bundle.read(f"tiny-imagenet-200/{name}")

        fingerprint = _fingerprint("tiny-imagenet", DOWNLOADS["tiny-imagenet"].md5)
    wnids = read("wnids.txt").decode().split()
    words = dict(line.split("\t", 1) for line in read("words.txt").decode().splitlines() if "\t" in line)
    index = {wnid: i for i, wnid in enumerate(wnids)}
    annotations = (line.split("\t")[:2] for line in read("val/val_annotations.txt").decode().splitlines() if line)
    labels = {f"val/images/{file}": index[wnid] for file, wnid in annotations}
    train = [n for n in names if n.startswith("train/")]
    test = [n for n in names if n in labels]
    splits = {
        "train": Split(Files(train, read), np.array([index[n.split("/")[1]] for n in train])),
        "test": Split(Files(test, read), np.array([labels[n] for n in test])),
    }
    return Source(fingerprint, tuple(words.get(w, w).split(",")[0] for w in wnids), splits)


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SPLIT_FOLDERS = ("train", "val", "test")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _walk(folder: Path) -> list[str]:
    return sorted(
        os.path.join(root, file)
        for root, _, files in os.walk(folder, followlinks=True)
        for file in files
        if not file.startswith(".")
    )


def load_folder(config: DataConfig, home: Path, progress: Progress) -> Source:
    """Any folder of images: <class>/..., or train|val|test/<class>/..., or images alone (no labels).

    A labelled folder without a test split gets one: as many images as validation has, chosen by the split seed.
    """
    if config.dir is None:
        raise UserError("the data set 'folder' needs a folder of images: add --data-dir FOLDER")
    root = config.dir
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist (data.dir, --data-dir): expected a folder of images")
    subfolders = [e.name for e in _visible(root) if e.is_dir()]
    parts = [s for s in SPLIT_FOLDERS if s in subfolders] if "train" in subfolders else [""]
    tops = {part: root / part for part in parts}
    classes = sorted({e.name for top in tops.values() for e in _visible(top) if e.is_dir()})
    splits = {}
    for part, top in tops.items():
        entries = _visible(top)
        loose = [
            e.path for e in entries if e.is_file() and (not classes or Path(e.name).suffix.lower() in IMAGE_SUFFIXES)
        ]
        if loose and classes:
            raise UserError(
                f"{top} holds images (such as {Path(loose[0]).name}) beside folders: expected one or the other"
            )
        names, labels = loose, [UNLABELLED] * len(loose)
        for entry in entries:
            if entry.is_dir():
                found = _walk(Path(entry.path))
                names += found
                labels += [classes.index(entry.name)] * len(found)
        relative = [os.path.relpath(name, root) for name in names]
        splits[part or "train"] = Split(Files(relative, lambda n: (root / n).read_bytes()), np.array(labels, np.int64))
    if not len(splits["train"].labels):
        raise UserError(f"no images in {tops[parts[0]]}: expected image files, or one folder of them for each class")
    listed = [name for split in splits.values() for name in split.images.names]  # type: ignore[union-attr]
    return Source(_listing(root, listed), tuple(classes), splits)


def _listing(root: Path, names: Sequence[str]) -> str:
    """A fingerprint of files by name, size and time of change."""
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        stat = os.stat(root / name)
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
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
    mean: tuple[float, ...]  # of each channel over the training images, in [0, 1]
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
    """Encoded image bytes -> 3 x side x side uint8: upright, RGB, shorter side to `side` (bicubic), central square."""
    with Image.open(BytesIO(data)) as image:
        image.draft("RGB", (2 * side, 2 * side))  # lets JPEG decode at a reduced size, never below twice the target
        upright = ImageOps.exif_transpose(image).convert("RGB")
    if upright.size != (side, side):
        upright = ImageOps.fit(upright, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(upright).transpose(2, 0, 1)


def _resize(images: Array, side: int) -> Array:
    if images.shape[-1] == side:
        return images
    squares = (Image.fromarray(image.transpose(1, 2, 0)) for image in images)
    return np.stack(
        [np.asarray(ImageOps.fit(s, (side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1) for s in squares]
    )


def _decode_files(files: Files, out: Array, progress: Progress, what: str) -> list[tuple[int, str]]:
    """Decode files into the rows of `out`, in threads (PIL lets go of the interpreter); the rows that failed."""
    bad: list[tuple[int, str]] = []

    def one(row: int) -> None:
        try:
            out[row] = decode(files.read(files.names[row]), out.shape[-1])
        except OSError as error:  # PIL's UnidentifiedImageError is one
            bad.append((row, "not an image" if "identify" in str(error) else str(error)))
        except (ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # PIL on broken files
            bad.append((row, str(error)))

    total, chunk = len(files.names), 256
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, total, chunk):
            list(pool.map(one, range(start, min(start + chunk, total))))
            progress(what, min(start + chunk, total), total)
    return sorted(bad)


def _write_store(folder: Path, source: Source, side: int, skip_bad: bool, progress: Progress) -> None:
    counts = {name: len(split.labels) for name, split in source.splits.items()}
    total = sum(counts.values())
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (total, 3, side, side))
    labels = np.concatenate([split.labels for split in source.splits.values()])
    bad: dict[int, str] = {}
    start, bounds = 0, {}
    for name, split in source.splits.items():
        rows = images[start : start + counts[name]]
        if isinstance(split.images, Files):
            for row, reason in _decode_files(split.images, rows, progress, f"decoding {name}"):
                bad[start + row] = f"{split.images.names[row]} ({reason})"
        else:
            rows[:] = _resize(split.images(), side)
        bounds[name] = (start, start + counts[name])
        start += counts[name]
    keep = np.setdiff1d(np.arange(total), list(bad))
    if bad:
        if not skip_bad or not len(keep):
            raise bad_images(list(bad.values()), total)
        for start in range(0, len(keep), 4096):  # rows only move towards the front
            images[start : start + 4096] = images[keep[start : start + 4096]][:]
        images.flush()
        del images
        _truncate(folder / "images.npy", (len(keep), 3, side, side))
        labels = labels[keep]
        bounds = {n: tuple(np.searchsorted(keep, ab).tolist()) for n, ab in bounds.items()}  # type: ignore[misc]
        images = np.load(folder / "images.npy", mmap_mode="r+")
    np.save(folder / "labels.npy", labels)
    digest = hashlib.blake2b(labels.tobytes(), digest_size=16)
    for start in range(0, len(images), 4096):
        digest.update(images[start : start + 4096].tobytes())
    mean, std = channel_statistics(images[slice(*bounds["train"])])
    meta = {"digest": digest.hexdigest(), "classes": source.classes, "bounds": bounds, "mean": mean, "std": std}
    images.flush()
    (folder / "meta.json").write_text(json.dumps(meta | {"bad": list(bad.values())}))


def _truncate(path: Path, shape: tuple[int, ...]) -> None:
    """Cut a .npy file of uint8 to its first rows, header included."""
    old = np.load(path, mmap_mode="r")
    new = np.lib.format.open_memmap(path.with_suffix(".tmp"), "w+", old.dtype, shape)
    for start in range(0, shape[0], 4096):
        new[start : start + 4096] = old[start : min(start + 4096, shape[0])]
    new.flush()
    os.replace(path.with_suffix(".tmp"), path)


def bad_images(bad: Sequence[str], total: int) -> UserError:
    shown = "; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
    return UserError(
        f"{len(bad)} of {total} files can't be read as images: {shown}. Remove them, or pass --on-bad-image skip"
    )


def channel_statistics(images: Array) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0, 1], over N x 3 x H x W uint8."""
    counts = np.zeros((3, 256))
    for start in range(0, len(images), 4096):
        for channel in range(3):
            counts[channel] += np.bincount(images[start : start + 4096, channel].reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(share @ levels**2 - mean**2)
    return mean.round(6).tolist(), std.clip(1e-3).round(6).tolist()


def open_dataset(config: DataConfig, home: Path, progress: Progress = silent) -> Dataset:
    """The data set of a config, decoded into `home`/cache at the first call and memory-mapped from then on.

    Raises UserError for a missing folder, a failed download, unreadable images, or too few images.
    """
    side = stored_side(config)
    source = DATASETS[config.dataset].load(config, home, progress)
    cache = home / "cache"
    folder = cache / f"{config.dataset}-{_fingerprint(source.fingerprint, side, FORMAT)}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{config.dataset}-", dir=cache))
        try:
            _write_store(scratch, source, side, config.on_bad_image == "skip", progress)
            try:
                os.rename(scratch, folder)
            except OSError:
                if not folder.exists():  # else another process was first, with the same content
                    raise
        except OSError as error:
            raise RunFailed(f"can't write the decoded images to {cache}: {error}; free some space there") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    meta = json.loads((folder / "meta.json").read_text())
    if meta["bad"] and config.on_bad_image == "error":
        raise bad_images(meta["bad"], sum(len(split.labels) for split in source.splits.values()))
    labels = np.load(folder / "labels.npy")
    return Dataset(
        name=config.dataset,
        images=np.load(folder / "images.npy", mmap_mode="c"),
        labels=labels,
        classes=tuple(meta["classes"]),
        parts=_parts({name: np.arange(*ab) for name, ab in meta["bounds"].items()}, labels, config),
        digest=meta["digest"],
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
    )


def _parts(splits: dict[str, Array], labels: Array, config: DataConfig) -> dict[str, Array]:
    """Disjoint rows of train, val and test; pretrain is train and whatever has no label."""
    order = splits["train"][permutation(len(splits["train"]), config.split_seed, "split").numpy()]
    held = max(1, round(config.val_fraction * len(order)))
    if "val" not in splits:
        splits["val"], order = order[:held], order[held:]
    if "test" not in splits:
        splits["test"], order = order[:held], order[held:]
    order = order[: config.subset]
    pretrain = np.concatenate([order, splits.get("unlabeled", order[:0])])[: config.subset]
    parts = {"pretrain": np.sort(pretrain), "train": np.sort(order)} | {k: np.sort(splits[k]) for k in ("val", "test")}
    return {k: rows if k == "pretrain" else rows[labels[rows] != UNLABELLED] for k, rows in parts.items()}


# How images in [0, 1] are shifted and scaled before the network: (mean, std) of each channel.
NORMALIZATIONS: dict[str, Callable[[Dataset], tuple[Sequence[float], Sequence[float]]]] = {
    "dataset": lambda data: (data.mean, data.std),
    "half": lambda data: ((0.5,) * 3, (0.5,) * 3),
    "none": lambda data: ((0.0,) * 3, (1.0,) * 3),
}
