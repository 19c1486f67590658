"""Say what a file is if it can't be read as an image, or would be read wrongly, and what to do about it."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from PIL.TiffTags import TAGS_V2


class Kind(NamedTuple):
    """A kind of file, which has certain bytes at an offset."""

    offset: int
    signature: bytes
    about: str  # completes the sentence "FILE is ..."


_HEIC = "a HEIC photo: pip install 'simclr-suite[heic]', or save it as JPEG"
_DAMAGED_HEIC = "a HEIC photo that can't be read: it may be damaged"
_VIDEO = "a video: save its frames as images first (ffmpeg -i VIDEO FOLDER/%06d.png)"
_RAW = "a camera's raw file: develop it to JPEG or 16-bit TIFF first"
_ARCHIVE = "an archive: unpack it, or give it as the data set by itself"
_DRAWING = "a drawing of Windows (WMF or EMF): save it as PNG first"
_MICROSCOPE = "a microscope's file of several images (CZI or LIF): save its planes as PNG or TIFF first"
_VOLUME = "a volume (NIfTI, NRRD or MetaImage): save its slices as PNG or TIFF first"
_TEXT = "a text file: if you downloaded it, it may hold an error message instead of the image"
_ARRAY = "a NumPy array: save its images as PNG or TIFF first"

KINDS = [
    *(Kind(4, b"ftyp" + brand, _HEIC) for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")),
    Kind(4, b"ftypcrx ", _RAW),
    Kind(4, b"ftypavi", "an AVIF image, which this version of Pillow can't read: pip install --upgrade pillow"),
    Kind(4, b"ftyp", _VIDEO),
    Kind(8, b"AVI LIST", _VIDEO),
    Kind(0, b"\x1aE\xdf\xa3", _VIDEO),
    Kind(0, b"\0\0\1\xba", _VIDEO),
    Kind(128, b"DICM", "a DICOM file: save it as 16-bit PNG or TIFF first (such as with pydicom)"),
    Kind(0, b"%PDF", "a PDF document: save its pages as images first (pdftoppm -png FILE PAGE)"),
    Kind(8, b"CR\2", _RAW),
    Kind(0, b"FUJIFILMCCD-RAW", _RAW),
    Kind(0, b"IIRO", _RAW),
    Kind(0, b"IIU\0", _RAW),
    Kind(0, b"\0\0\0\x0cJXL ", "a JPEG XL image: save it as PNG or JPEG first"),
    Kind(0, b"\xff\x0a", "a JPEG XL image: save it as PNG or JPEG first"),
    Kind(0, b"v/1\1", "an OpenEXR image: save it as a TIFF of 32-bit floats in grey, or as PNG, first"),
    Kind(0, b"\x89HDF", "an HDF5 file: save its images as PNG or TIFF first"),
    Kind(0, b"\x93NUMPY", _ARRAY),
    Kind(344, b"n+1\0", _VOLUME),
    Kind(0, b"#?RADIANCE", "a Radiance HDR image: save it as a TIFF of 32-bit floats in grey, or as PNG, first"),
    Kind(0, b"II\xbc\1", "a JPEG XR image: save it as PNG first"),
    Kind(0, b"8BPS", "a Photoshop file of a kind that can't be read: save it as PNG or TIFF first"),
    Kind(0, b"gimp xcf", "a GIMP file: export it as PNG first"),
    Kind(0, b"AT&TFORM", "a DjVu document: save its pages as images first (ddjvu -format=tiff FILE PAGE.tif)"),
    Kind(40, b" EMF", _DRAWING),
    Kind(0, b"\xd7\xcd\xc6\x9a", _DRAWING),
    Kind(0, b"%!PS", "a PostScript drawing: save it as PNG first (gs -sDEVICE=png16m -r100 -o FILE.png FILE)"),
    Kind(0, b"ZISRAWFILE", _MICROSCOPE),
    Kind(0, b"\x70\0\0\0", _MICROSCOPE),
    Kind(0, b"NRRD000", _VOLUME),
    Kind(0, b"ObjectType =", _VOLUME),
    Kind(0, b"P7\n", "a PAM image: save it as PNG first"),
    Kind(0, b"SQLite format 3", "a database: save its images as files first"),
    Kind(0, b"PK\3\4", _ARCHIVE),
    Kind(0, b"\x1f\x8b", _ARCHIVE),
    Kind(0, b"7z\xbc\xaf", _ARCHIVE),
    Kind(0, b"Rar!", _ARCHIVE),
    Kind(257, b"ustar", _ARCHIVE),
    Kind(0, b"version https://git-lfs", "a pointer of Git LFS: fetch the image itself (git lfs pull)"),
]

# What `describe` says of files that may hold data sets, if they are given by themselves.
OF_DATA_SETS = {f"is {_ARCHIVE}", f"is {_ARRAY}", f"is {_TEXT}", "not an image"}

FORMS = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}  # of TIFF
_TAG = {tag.name: number for number, tag in TAGS_V2.items()}


def tiff_tag(image: Image.Image, name: str) -> Any:
    """The value of a tag of a TIFF image, the first one if there are several. None if it has none."""
    value = getattr(image, "tag_v2", {}).get(_TAG[name])
    return value[0] if isinstance(value, tuple) and value else value


def raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file of an image that is not loaded yet, such as "RGB;16B". Empty if unknown."""
    tiles = getattr(image, "tile", [])
    args = tiles[0][3] if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def misread(image: Image.Image) -> str | None:
    """Why an image that is not loaded yet would be read wrongly, or None."""
    if tiff_tag(image, "BitsPerSample") == 16 and raw_mode(image) in ("R", "G", "B", "A"):
        return "keeps each colour of 16 bits in a plane of its own: save it with interleaved colours"
    channels = tiff_tag(image, "SamplesPerPixel") or 1
    if channels > 4 or (channels == 2 and image.mode == "L"):
        return f"is a TIFF with {channels} channels, of which some would be dropped: save it with 1 or 3 channels"
    if tiff_tag(image, "SubIFDs") is not None and tiff_tag(image, "NewSubfileType") == 1:
        return f"begins with a thumbnail, so it is probably {_RAW}"
    return None


def reason(error: Exception) -> str:
    """Why a file can't be read as an image, given what was raised, in words that don't need Pillow or the system."""
    text = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "there is no such file, or it is a link that leads nowhere"
    if isinstance(error, PermissionError):
        return "you have no permission to read it"
    if isinstance(error, OSError) and any(word in text for word in ("truncated", "Truncated", "data stream")):
        return "damaged: its end is missing, or it has broken data"
    return text


def describe(data: bytes) -> str:
    """Why a file can't be read as an image, given all of its bytes."""
    if not data:
        return "is empty"
    for kind in KINDS:
        if data.startswith(kind.signature, kind.offset):
            return f"is {_DAMAGED_HEIC if kind.about == _HEIC and find_spec('pillow_heif') else kind.about}"
    head = data[:1000].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if head.startswith((b"<svg", b"<?xml")) and b"<svg" in data[:5000].lower():
        return "is an SVG drawing: save it as PNG first (rsvg-convert -w 512 FILE)"
    if head.startswith((b"<!doctype html", b"<html")):
        return "is a web page, perhaps saved instead of the image: download it again"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _describe_tiff(data)
    if data[:1000].isascii() and " ".join(data[:1000].decode().split()).isprintable():
        return f"is {_TEXT}"
    return "not an image"


def _describe_tiff(data: bytes) -> str:
    try:
        tags: Any = ImageFileDirectory_v2(data[:8])
        file = BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # PIL raises many kinds on damaged files
        return "is a damaged TIFF file"
    channels, bits = tags.get(_TAG["SamplesPerPixel"], 1), tags.get(_TAG["BitsPerSample"], (1,))[0]
    form = FORMS.get(tags.get(_TAG["SampleFormat"], (1,))[0], "integers")
    readable = bits <= 32 if form.endswith("integers") else bits == 32
    about = f"is a TIFF with {channels} channel{'s' * (channels > 1)} of {bits}-bit {form}"
    if (channels == 1 and readable) or (channels == 3 and bits in (8, 16) and form == "integers"):
        return f"{about}, packed in a way that Pillow can't read: save it without compression, or as PNG"
    return (
        f"{about}, which Pillow can't read: save "
        f"it with 1 channel (up to 32 bits, or 32-bit floating-point numbers), or 3 channels of 8 or 16 bits"
    )
