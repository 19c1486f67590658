"""The suffixes of files: which files are images, which are of another format, and which lie beside images."""

from __future__ import annotations

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".heic", ".heif"}
IMAGE_SUFFIXES |= {".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".avif", ".tga", ".pnm", ".pbm"}
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")

# Common formats from which no images can be read, and which can't be recognised by the first bytes of a file.
SAVE_ARRAYS = "save its images and labels with numpy.savez(FILE, images=..., labels=...)"
OTHERS = {
    **dict.fromkeys((".rar", ".7z", ".gz", ".zip.001"), "is an archive of a kind that can't be read: unpack it first"),
    **dict.fromkeys((".h5", ".hdf5", ".mat"), f"is a file of arrays that is not NumPy's: {SAVE_ARRAYS}"),
    **dict.fromkeys((".pkl", ".pickle"), f"is a Python pickle, which could run code when it is read: {SAVE_ARRAYS}"),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".safetensors"), f"is a file of tensors or weights: {SAVE_ARRAYS}"),
    **dict.fromkeys(
        (".tfrecord", ".tfrecords", ".lmdb", ".mdb"), "is a database of records: save its images as files first"
    ),
    **dict.fromkeys((".json", ".jsonl", ".xml", ".txt", ".xlsx"), "is a text or table: give the folder of the images"),
    ".py": "is a Python script, such as Hugging Face's for a data set: run it, and save its data set as Parquet",
    ".arrow": "is a file of Hugging Face's cache: give the folder that save_to_disk wrote, or hf:NAME",
}

# Files with these suffixes lie beside images, and are never images.
OTHER_SUFFIXES = {
    *(suffix for suffix in OTHERS if suffix.count(".") == 1),
    *(f".{suffix.rpartition('.')[2]}" for suffix in TARS),
    *(".pdf", ".mp4", ".avi", ".mov", ".mkv", ".webm"),
    *(".md", ".rst", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".html", ".htm", ".doc", ".docx"),
    *(".xls", ".log", ".db", ".sqlite", ".url", ".lnk", ".ipynb", ".sh", ".m", ".xmp", ".aae", ".thm", ".npy", ".npz"),
    *(".parquet", ".zip", ".md5", ".sha1", ".sha256", ".mp3", ".wav"),
}


def suffix_of(name: str) -> str:
    """The suffix of a file in small letters, with its dot. Empty if it has none."""
    own = name.rpartition("/")[2]
    return "." + own.rpartition(".")[2].lower() if "." in own else ""
