"""A self-contained HTML page of text, tables, figures and code."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis.tables import format_value

MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def page(title: str, sections: Sequence[tuple[str, str, Any]]) -> str:
    """An HTML page of sections (heading, kind, content). An empty heading continues the section before.

    The kinds and their contents are text (paragraphs with blank lines between them), table (a data frame, in which
    None and nan are shown as —), figure (the path of a PNG or SVG file, and a caption) and code (a string). The page
    needs no other file, and shows every text literally. Raises ValueError for an unknown kind or an unsupported figure
    format.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template("page.html.jinja")
    return template.render(title=title, sections=[_section(*section) for section in sections])


def _section(heading: str, kind: str, content: Any) -> dict[str, Any]:
    """What the template needs to show a section."""
    if kind not in KINDS:
        raise ValueError(f"section '{heading}' has the unknown kind '{kind}': choose from {', '.join(KINDS)}")
    return {"heading": heading, "kind": kind, "content": KINDS[kind](content)}


def _paragraphs(text: str) -> list[str]:
    return text.split("\n\n")


def _cells(frame: pd.DataFrame) -> dict[str, list[Any]]:
    rows = [[format_value(value) for value in row] for row in frame.to_numpy(object)]
    return {"header": [str(name) for name in frame], "rows": rows}


def _figure(content: tuple[Path, str]) -> dict[str, str]:
    path, caption = content
    if path.suffix not in MEDIA_TYPES:
        raise ValueError(f"can't show the figure {path}: save it as one of {', '.join(MEDIA_TYPES)}")
    data = base64.b64encode(path.read_bytes()).decode()
    return {"source": f"data:{MEDIA_TYPES[path.suffix]};base64,{data}", "caption": caption}


KINDS: dict[str, Callable[[Any], Any]] = {"text": _paragraphs, "table": _cells, "figure": _figure, "code": str}
