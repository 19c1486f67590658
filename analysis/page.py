"""Pages of a finding, tables, figures, images and code: HTML pages that need no other file, and Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any, NamedTuple

import pandas as pd

from analysis.tables import MARKDOWN, format_value, markdown_rows
from analysis.templates import address, render

LITERAL = str.maketrans({key: text for key, text in MARKDOWN.items() if key not in "\n|"} | {"_": "\\_"})
STARTS = re.compile(r"^(\s*\d*)([#+.)-])", re.MULTILINE)  # what makes a line a heading or part of a list
CODE = re.compile(r"`([^`\n]+)`")
MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
WEBP = "image/webp"


class Section(NamedTuple):
    """A part of a page. An empty heading continues the section before."""

    heading: str
    kind: str  # one of KINDS
    content: Any
    folded: bool = False  # whether the reader has to open it


class Link(NamedTuple):
    """A cell of a table that leads to another page."""

    text: str
    address: str

    def __str__(self) -> str:
        return self.text


def page(kind: str, title: str, finding: Sequence[str], facts: Sequence[str], sections: Sequence[Section]) -> str:
    """An HTML page that starts with its finding: sentences, the first of which is the most important.

    `kind` is what the page is about, and `facts` are short texts below the finding. The kinds of sections and their
    contents are text (paragraphs with blank lines between them), table (a data frame, in which None and nan are shown
    as —, texts may be a `Link`, and lines after the first are small), figure (the path of a PNG or SVG file, and a
    caption), images (a list of a caption and the bytes of a WebP file) and code (a string). The page needs no other
    file, and shows every text literally; what is between backticks, in sentences and paragraphs, is shown as code.
    Raises ValueError for an unknown kind or an unsupported figure format.
    """
    groups = _groups(sections)
    return render(
        "page.html.jinja", kind=kind, title=title, finding=finding, facts=facts, groups=groups, parts_of=CODE.split
    )


def markdown_page(
    kind: str, title: str, finding: Sequence[str], facts: Sequence[str], sections: Sequence[Section]
) -> str:
    """The same page as Markdown, with nothing folded away. Keep its figures beside it, as it has only their names."""
    parts = [f"# {literal(f'{kind} {title}')}", *map(literal, finding)]
    parts += ["\n".join(f"- {literal(fact)}" for fact in facts)] * bool(facts)
    for heading, sort, content, _ in sections:
        parts += [f"## {literal(heading)}"] * bool(heading) + MARKDOWN_KINDS[sort](content)
    return "\n\n".join(parts) + "\n"


def literal(text: str) -> str:
    """The text as Markdown that shows it literally."""
    return STARTS.sub(r"\1\\\2", text.translate(LITERAL))


def _groups(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """The sections with those that continue them."""
    groups: list[dict[str, Any]] = []
    for section in sections:
        if section.kind not in KINDS:
            raise ValueError(
                f"section '{section.heading}' has the unknown kind '{section.kind}': choose from {', '.join(KINDS)}"
            )
        if section.heading or not groups:
            groups.append({"heading": section.heading, "folded": section.folded, "blocks": []})
        groups[-1]["blocks"].append({"kind": section.kind, "content": KINDS[section.kind](section.content)})
    return groups


def _paragraphs(text: str) -> list[str]:
    return text.split("\n\n")


def _cells(frame: pd.DataFrame) -> dict[str, list[Any]]:
    rows = [[_cell(value) for value in row] for row in frame.to_numpy(object)]
    return {"header": [str(name) for name in frame], "rows": rows}


def _cell(value: object) -> dict[str, Any]:
    text, *small = format_value(value).split("\n")
    return {"text": text, "small": small, "address": value.address if isinstance(value, Link) else None}


def _figure(content: tuple[Path, str]) -> dict[str, str]:
    path, caption = content
    if path.suffix not in MEDIA_TYPES:
        raise ValueError(f"can't show the figure {path}: save it as one of {', '.join(MEDIA_TYPES)}")
    return {"source": address(MEDIA_TYPES[path.suffix], path.read_bytes()), "caption": caption}


def _images(content: Sequence[tuple[str, bytes]]) -> list[dict[str, str]]:
    return [{"caption": caption, "source": address(WEBP, image)} for caption, image in content]


KINDS: dict[str, Callable[[Any], Any]] = {
    "text": _paragraphs,
    "table": _cells,
    "figure": _figure,
    "images": _images,
    "code": str,
}
MARKDOWN_KINDS: dict[str, Callable[[Any], list[str]]] = {
    "text": lambda content: [literal(content)],
    "table": lambda content: [markdown_rows(content)],
    "figure": lambda content: [f"![{literal(content[1])}]({content[0].name})"],
    "images": lambda content: [f"![{literal(each['caption'])}]({each['source']})" for each in _images(content)],
    "code": lambda content: [indent(content, "    ")],
}
