"""Tests of the HTML page."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
from markdown import markdown
from PIL import Image

from analysis.page import KINDS, MARKDOWN_KINDS, Link, Section, markdown_page, page

EVIL = """</td></pre></title><script>alert("1")</script>]]> --> ' & &amp; {{ 7 }} <img src=x onerror='alert(2)'>"""
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """The elements, texts and attributes of a page, whose tags must balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: dict[str, list[str | None]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for key, value in attrs:
            self.attributes.setdefault(key, []).append(value)
        if tag not in VOID:
            self.open.append(tag)

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture
def figures(tmp_path: Path) -> list[Path]:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(3)</script></svg>')
    return [tmp_path / "a.png", tmp_path / "b.svg"]


def test_page_escapes_every_text_and_loads_nothing(figures: list[Path]) -> None:
    frame = pd.DataFrame({EVIL: [f"{EVIL}\nsmall {EVIL}", None], "n": [3, 4], "p": [0.5, float("nan")]})
    sections = [
        Section(EVIL, "text", f"one\n\n{EVIL}"),
        Section("Cells", "table", frame),
        Section("", "images", [(EVIL, figures[0].read_bytes())]),
        Section(f"More {EVIL}", "code", f"\n{EVIL}", folded=True),
        *(Section("", "figure", (path, EVIL)) for path in figures),
    ]
    text = page(EVIL, EVIL, [EVIL, "second"], [EVIL], sections)
    assert text.startswith("<!DOCTYPE html>\n<html lang")
    read = Reader(text)
    assert (read.texts["title"], read.texts["b"]) == ([EVIL], [EVIL])
    assert read.texts["h1"] == [f"{EVIL} "]
    assert read.texts["h2"] == [EVIL, "Cells"]
    assert read.texts["summary"] == [f"More {EVIL}"]
    assert read.texts["p"] == [EVIL, "second", "one", EVIL]
    assert read.texts["li"] == [EVIL]
    assert read.texts["button"] == [EVIL, "n", "p"]
    assert [text for text in read.texts["th"] if text.strip()] == [EVIL, "—"]
    assert read.texts["td"] == ["3", "0.5", "4", "—"]
    assert read.texts["small"] == [f"small {EVIL}"]
    assert read.texts["code"] == [f"\n{EVIL}"]
    assert read.texts["figcaption"] == [EVIL] * 3
    assert read.attributes["alt"] == [f"example views: {EVIL}", EVIL, EVIL]
    assert read.seen.count("script") == 1
    assert read.attributes["src"] == [
        f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        for kind, path in (("webp", figures[0]), ("png", figures[0]), ("svg+xml", figures[1]))
    ]
    assert not {"href", "onerror"} & set(read.attributes)
    assert "default-src 'none'" in str(read.attributes["content"])
    assert not re.search(r"url\(|@import|https?:", text)


def test_cells_can_be_links() -> None:
    frame = pd.DataFrame({"run": [Link(EVIL, "http://127.0.0.1:5000/#/runs/1")]})
    read = Reader(page("Study", "t", ["found"], [], [Section("", "table", frame)]))
    assert read.texts["a"] == [EVIL]
    assert read.attributes["href"] == ["http://127.0.0.1:5000/#/runs/1"]


def test_page_rejects_unknown_kinds_and_figure_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^section 'x' has the unknown kind 'plot': choose from {', '.join(KINDS)}$"):
        page("Run", "t", [], [], [Section("x", "plot", "")])
    with pytest.raises(ValueError, match=r"^can't show the figure .*a\.pdf: save it as one of \.png, \.svg$"):
        page("Run", "t", [], [], [Section("x", "figure", (tmp_path / "a.pdf", ""))])


def test_columns_sort_as_numbers_if_they_hold_numbers() -> None:
    if not (node := shutil.which("node")):
        pytest.skip("node is not installed")
    numbers, words, ties = (
        ["10.2", "9.5 (9 to 10)", "—", "-1", "+2e1"],
        ["mlp", "", "3-layer", "—", "linear"],
        list("110"),
    )
    (script,) = Reader(page("Run", "t", [], [], [])).texts["script"]
    calls = f"{json.dumps([numbers, words, ties])}.map(texts => [order(texts, false), order(texts, true)])"
    program = f"const document = {{querySelectorAll: () => []}}; {script}; console.log(JSON.stringify({calls}))"
    done = subprocess.run([node, "-e", program], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [
        [[3, 1, 0, 4, 2], [4, 0, 1, 3, 2]],
        [[2, 4, 0, 1, 3], [0, 4, 2, 1, 3]],
        [[2, 0, 1], [0, 1, 2]],
    ]


def test_text_between_backticks_is_code_and_shown_literally() -> None:
    text = page("Run", "r", ["Run `a <b>`."], [], [Section("How", "text", "One ` alone.\n\n`<i>` and `x`")])
    assert "Run <code>a &lt;b&gt;</code>.</p>" in text
    assert "<p>One ` alone.</p>" in text
    assert "<p><code>&lt;i&gt;</code> and <code>x</code></p>" in text


def test_a_markdown_page_shows_every_text_literally(figures: list[Path]) -> None:
    evil = "# <b>*a*</b> [b](c) `d` | _e_f_"
    frame = pd.DataFrame({evil: [f"{evil}\nsmall", None]})
    sections = [
        Section(evil, "text", f"{evil}\n\n- second\n\n1. third"),
        Section("", "table", frame),
        Section("", "figure", (figures[1], evil)),
        Section("", "code", "<i>\n- x"),
    ]
    text = markdown_page("Study", evil, [evil], [evil], sections)
    seen = Reader(markdown(text, extensions=["tables"]))
    table = ["table", "thead", "tr", "th", "tbody", "tr", "td", "br", "tr", "td"]
    assert seen.seen == ["h1", "p", "ul", "li", "h2", "p", "p", "p", *table, "p", "img", "pre", "code"]
    assert "".join(chain(*seen.texts.values())).count(evil) == 7
    assert {"- second", "1. third"} <= set(seen.texts["p"])
    assert (seen.attributes["alt"], seen.attributes["src"]) == ([evil], ["b.svg"])
    assert seen.texts["code"] == ["<i>\n- x\n"]
    assert MARKDOWN_KINDS.keys() == KINDS.keys()
