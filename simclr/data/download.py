"""Download the archives of public data sets, resumably and verified."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from simclr.errors import UserError
from simclr.progress import Observer


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


def fetch(dataset: str, folder: Path, observer: Observer) -> Path:
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
                _download(url, part, observer)
            except (OSError, HTTPException) as error:
                raise _no_download(dataset, path, error) from None
            _verify(part, md5)
            os.replace(part, path)
    return path


def _download(url: str, part: Path, observer: Observer) -> None:
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
                observer.progress(f"downloading {part.stem}", done, max(done, total))
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
