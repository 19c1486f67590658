"""Download the archives of public data sets, resume partial downloads, and verify checksums."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from simclr.errors import UserError
from simclr.progress import Observer


class Download(NamedTuple):
    """The address of an archive, and the MD5 checksum that its publisher states."""

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


def fetch(name: str, folder: Path, observer: Observer) -> Path:
    """Return the archive of the data set `name` in `folder`, and download it if it is not there.

    A partial download is resumed. The caller reads the archive in place and never unpacks it, so that no member can
    write outside the folder. Raises UserError when the download fails or the checksum is wrong.
    """
    url, md5 = DOWNLOADS[name]
    path = folder / url.rpartition("/")[2]
    if path.exists():
        _verify(path, md5)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    lock = path.with_name(path.name + ".lock")
    with FileLock(lock):
        if not path.exists():
            try:
                _download(url, part, observer)
            except (OSError, HTTPException) as error:
                if not part.exists():
                    with suppress(OSError):
                        lock.unlink()  # leave nothing in the user's folder
                reason = " ".join(str(getattr(error, "reason", None) or error).split())
                raise UserError(
                    f"can't download {url} ({reason}): run again to resume, or save that file as {path}. "
                    f"`simclr pretrain --preset shapes` needs no download"
                ) from None
            _verify(part, md5)
            os.replace(part, path)
    return path


def _download(url: str, part: Path, observer: Observer) -> None:
    """Append to `part` what it lacks of the file at `url`. Raises OSError or HTTPException."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the range is empty: the partial file is complete
            return
        raise
    with response:
        if response.status != 206:  # the server ignores ranges and sends the whole file
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
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise UserError(f"{path} has MD5 {found}, expected {md5}: delete the file and run again to download it")
