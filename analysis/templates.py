"""HTML pages from the templates of this folder, and the pictures in them."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: Any) -> str:
    """A page from one of the templates. Texts in `values` are escaped."""
    return ENVIRONMENT.get_template(template).render(**values)


def address(media_type: str, content: bytes) -> str:
    """The address of a file that holds the file itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def jpeg(pixels: NDArray[np.uint8], quality: int = 80) -> str:
    """A picture (H x W x 3) as the address of a JPEG file that holds the file itself."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return address("image/jpeg", file.getvalue())
