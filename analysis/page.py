"""One HTML page that needs no other file: text, tables, figures and code."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables import cell

IMAGES = {".png": "image/png", ".svg": "image/svg+xml"}


# Nothing but what is in the page may be loaded, whatever it holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 90rem; margin: 2rem auto; padding: 0 1rem; }
h2 { break-after: avoid; }
p { white-space: pre-line; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { width: max-content; border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8886; }
td { max-width: 24rem; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid; }
th button::after { content: " ↕"; opacity: .4; }
th[aria-sort] button::after { content: " ↑"; opacity: 1; }
th[aria-sort=descending] button::after { content: " ↓"; }
figure { margin: 1rem 0; break-inside: avoid; }
img { max-width: min(100%, 60rem); background: white; }
figcaption { font-size: .85rem; }
pre { padding: .7rem; overflow-x: auto; font-size: .85rem; background: #8882; }
@page { size: landscape; margin: 1cm; }
@media print {
  :root { color-scheme: light; font-size: 11px; }
  .wide { overflow: visible; }
  table { width: auto; }
  th, td { padding: .2rem .4rem; }
  img { max-height: 17cm; }
  tr { break-inside: avoid; }
  th button::after { content: none !important; }
  pre { white-space: pre-wrap; }
}
"""


# Rows in the order of a column's texts: as numbers where all begin with one; what is empty or "—" last.
SCRIPT = """
function order(texts, down) {
  const known = [...texts.keys()].filter(i => !["", "—"].includes(texts[i]));
  const numeric = known.every(i => !isNaN(parseFloat(texts[i])));
  const compare = numeric ? (a, b) => parseFloat(a) - parseFloat(b) : (a, b) => a.localeCompare(b);
  known.sort((i, j) => (down ? -1 : 1) * compare(texts[i], texts[j]));
  return [...known, ...[...texts.keys()].filter(i => !known.includes(i))];
}
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentNode, body = head.closest("table").tBodies[0], rows = [...body.rows];
  const down = head.ariaSort === "ascending";
  const texts = rows.map(row => row.cells[head.cellIndex].textContent);
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = down ? "descending" : "ascending";
  body.append(...order(texts, down).map(i => rows[i]));
};
"""


def page(title: str, sections: Sequence[tuple[str, str, Any]]) -> str:
    """A page of sections (heading, kind, content), an empty heading going on with the section before.

    Kinds and their contents: text (paragraphs between blank lines), table (a data frame; None and nan are shown as —),
    figure (the path of a PNG or SVG file, and a caption), code. Every text is shown as it is. Raises ValueError for an
    unknown kind, and for a figure in another format.
    """
    body = []
    for heading, kind, content in sections:
        if kind not in KINDS:
            raise ValueError(f"section '{heading}' of kind '{kind}': expected one of {', '.join(KINDS)}")
        body += [f"<h2>{escape(heading)}</h2>"] * bool(heading) + [KINDS[kind](content)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
            f"<body><h1>{escape(title)}</h1>",
            *body,
            f"<script>{SCRIPT}</script></body>",
            "</html>\n",
        ]
    )


def _text(content: str) -> str:
    return "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in content.split("\n\n"))


def _table(frame: pd.DataFrame) -> str:
    heads = "".join(f'<th scope="col"><button>{escape(str(name))}</button></th>' for name in frame)
    rows = ["".join(f"<td>{escape(cell(value))}</td>" for value in row) for row in frame.to_numpy(object)]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>'


def _figure(content: tuple[Path, str]) -> str:
    path, caption = content
    if path.suffix not in IMAGES:
        raise ValueError(f"figure {path}: expected one of {', '.join(IMAGES)}, so save it as one of those")
    source = f"data:{IMAGES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _code(content: str) -> str:
    return f"<pre><code>{escape(content)}</code></pre>"


KINDS: dict[str, Callable[[Any], str]] = {"text": _text, "table": _table, "figure": _figure, "code": _code}
