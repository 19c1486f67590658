"""What a path holds, from its name and its first bytes, and the loader of each format.

To add a format, write a loader in a file of its own and add a line to FORMATS, and its suffix to SUFFIXES.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from simclr.data.archives import load_archive
from simclr.data.arrays import load_arrays
from simclr.data.folder import list_files, load_folder, load_table
from simclr.data.hub import PREFIX, is_saved, load_hub
from simclr.data.images import Array, Files, files_at, join_files
from simclr.data.layout import image_names, is_hidden
from simclr.data.parquet import load_parquet
from simclr.data.source import Source
from simclr.data.suffixes import IMAGE_SUFFIXES, OTHER_SUFFIXES, OTHERS, TARS
from simclr.data.tables import TABLE_SUFFIXES
from simclr.data.unreadable import OF_DATA_SETS, describe
from simclr.errors import UserError, similar_path
from simclr.progress import Observer


class Format(NamedTuple):
    """A format: what it is called, its loader, and the settings of DataConfig that the loader takes by keyword."""

    about: str
    load: Callable[..., Source]  # arguments: the path, the home folder, the observer, and the options
    options: tuple[str, ...]


COLUMNS = ("image_column", "label_column", "split_column")
FORMATS = {
    "folder": Format("a folder of images", load_folder, ("unlabelled", "labels", *COLUMNS)),
    "table": Format("a .csv or .tsv table in the folder of its images", load_table, ("unlabelled", *COLUMNS)),
    "archive": Format("a .zip or .tar archive", load_archive, ("unlabelled", "labels", *COLUMNS)),
    "hub": Format("hf:NAME of the Hugging Face hub", load_hub, ("unlabelled", "image_column", "label_column")),
    "parquet": Format("Parquet files", load_parquet, ("unlabelled", *COLUMNS)),
    "arrays": Format("NumPy's .npz or .npy", load_arrays, ("unlabelled", "image_column", "label_column")),
}
OPTIONS = FORMATS["folder"].options
SUFFIXES = {
    **dict.fromkeys(TABLE_SUFFIXES, "table"),
    **dict.fromkeys((".zip", *TARS), "archive"),
    ".parquet": "parquet",
    **dict.fromkeys((".npz", ".npy"), "arrays"),
}
# Of files that a folder may hold instead.
FOLDER_SUFFIXES = {**dict.fromkeys(TARS, "archive"), ".parquet": "parquet", ".npy": "arrays"}
# Files without a suffix that lie beside data.
ABOUT = {"readme", "license", "licence", "copying", "notice", "citation", "authors", "changelog", "makefile"}


def load_images(name: str, path: Path | None, home: Path, observer: Observer, **options: Any) -> Source:
    """The user's own images, in any of FORMATS. Raises UserError for other files, and for options without effect."""
    if path is None:
        raise UserError("the data set 'folder' needs a folder of images: add --data-dir FOLDER")
    chosen = FORMATS[format_of(path)]
    for option in options.keys() - chosen.options:
        if options[option]:
            raise UserError(f"data.{option} has no effect on {path}, which is {chosen.about}: leave it out")
    return chosen.load(path, home, observer, **{option: options[option] for option in chosen.options})


def list_images(path: Path, home: Path, observer: Observer, **options: Any) -> tuple[Files, list[str]]:
    """All images at a path, whatever their labels and splits, and notes about what was left out.

    The images of arrays are named after their split and row, and given as PNG files.
    """
    if (form := format_of(path)) in ("folder", "table"):
        folder = path if form == "folder" else path.parent
        names, notes = list_files(folder)
        return files_at([folder / name for name in image_names(names, notes)]), notes
    contents = load_images("", path, home, observer, **dict.fromkeys(OPTIONS) | options | {"unlabelled": True}).read()
    files = join_files(
        own.images if isinstance(own.images, Files) else as_files(split, own.images)
        for split, own in contents.splits.items()
    )
    return files, list(contents.notes)


def as_files(split: str, images: Array) -> Files:
    """The images of an array N x 3 x H x W as PNG files, named after their split and row."""
    if images.dtype != np.uint8:
        raise UserError(f"the images are of type {images.dtype}: scale them to 0 to 255 and save them as uint8")
    rows = {f"{split} {row}": row for row in range(len(images))}

    def read(name: str) -> bytes:
        file = BytesIO()
        Image.fromarray(images[rows[name]].transpose(1, 2, 0)).save(file, "PNG", compress_level=1)
        return file.getvalue()

    return Files(list(rows), read)


def format_of(path: Path) -> str:
    """The key in FORMATS of what a path holds. Raises UserError, which says what it is, if it is none of them."""
    if str(path).startswith(PREFIX) or is_saved(path):
        return "hub"
    if path.is_dir():
        return _format_of_folder(path)
    suffix = _suffix(path, SUFFIXES)
    if "{" in path.name and suffix in TARS and not path.exists():
        return "archive"
    if not path.is_file():
        what = f"{path} is neither a file nor a folder" if path.exists() else f"there is no folder {path}"
        meant = f"did you mean '{near}'?" if (near := similar_path(path)) else ""
        raise UserError(f"{what}: {meant or 'give the folder or the file that holds your images'}")
    with path.open("rb") as file:
        about = describe(file.read(1000))
    may_hold_images = about in OF_DATA_SETS
    if suffix and may_hold_images:
        return SUFFIXES[suffix]
    if may_hold_images and not _suffix(path, OTHERS) and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
        return "archive"  # a download may have any name
    if _is_image(path):
        raise UserError(f"{path} is a single image: give the folder that it is in")
    if may_hold_images:
        about = OTHERS.get(_suffix(path, OTHERS), "is a file of an unknown kind: give a folder of images")
    forms = ", ".join(each.about for each in FORMATS.values())
    raise UserError(f"{path} is a file, not a folder: it {about}. Or give one of: {forms}")


def _is_image(path: Path) -> bool:
    try:
        Image.open(path).close()
    except Exception:  # PIL raises many kinds
        return _suffix(path, IMAGE_SUFFIXES) != ""
    return True


def _suffix(path: Path, suffixes: Iterable[str]) -> str:
    """The suffix of a path among some, or an empty text."""
    return next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), "")


def _format_of_folder(path: Path) -> str:
    """`folder`, unless it has more files of another format than files that may be images, or only one (a logo)."""
    counts: Counter[str] = Counter()
    for _, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in (name for name in files if not is_hidden(name)):
            if suffix := _suffix(Path(name), FOLDER_SUFFIXES):
                counts[FOLDER_SUFFIXES[suffix]] += 1
            elif Path(name).suffix.lower() not in OTHER_SUFFIXES and name.lower() not in ABOUT:
                counts["images"] += 1
        if counts["images"] > 1000:
            break
    images = counts.pop("images", 0)
    (form, count), *_ = [*counts.most_common(1), ("folder", 0)]
    return form if count > images or images == 1 else "folder"
