"""The suffixes of files: which files are images, which are of another format, and which lie beside images."""

from __future__ import annotations

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".heic", ".heif"}
IMAGE_SUFFIXES |= {".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".avif", ".tga", ".pnm", ".pbm"}
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")

# Files that people have but that hold no images in a form that can be read: what each is, and what to do.
UNPACK = "unpack it, and give the folder"
SAVE_ARRAYS = "save its images and labels with numpy.savez(FILE, images=..., labels=...)"
OTHERS = {
    **dict.fromkeys((".rar", ".7z", ".gz", ".zip.001"), ("a compressed file of a kind that can't be read", UNPACK)),
    **dict.fromkeys((".h5", ".hdf5", ".mat"), ("a file of arrays that is not NumPy's", SAVE_ARRAYS)),
    **dict.fromkeys((".pkl", ".pickle"), ("a Python pickle, which could run code when it is read", SAVE_ARRAYS)),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".safetensors"), ("a file of tensors or weights", SAVE_ARRAYS)),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".webm"), ("a video", "save its frames: ffmpeg -i FILE %06d.png")),
    **dict.fromkeys(
        (".tfrecord", ".tfrecords", ".lmdb", ".mdb"), ("a database of records", "save its images as files")
    ),
    **dict.fromkeys((".json", ".jsonl", ".xml", ".txt", ".xlsx"), ("a text or table", "give the folder of the images")),
    ".pdf": ("a PDF", "save its pages as images: pdftoppm -png FILE page"),
    ".py": ("a Python script, such as Hugging Face's for a data set", "run it, and save its data set as Parquet"),
    ".arrow": ("a file of Hugging Face's cache", "give the folder that save_to_disk wrote, or hf:NAME"),
}

# Files with these suffixes lie beside images, and are never images.
OTHER_SUFFIXES = {
    *(suffix for suffix in OTHERS if suffix.count(".") == 1),
    *(f".{suffix.rpartition('.')[2]}" for suffix in TARS),
    *(".md", ".rst", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".html", ".htm", ".doc", ".docx"),
    *(".xls", ".log", ".db", ".sqlite", ".url", ".lnk", ".ipynb", ".sh", ".m", ".xmp", ".aae", ".thm", ".npy", ".npz"),
    *(".parquet", ".zip", ".md5", ".sha1", ".sha256", ".mp3", ".wav"),
}
