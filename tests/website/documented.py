"""The commands that README.md and the pages of the docs show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:console|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`(simclr [a-z][^`]*)`(?!`)")


def words_of(line: str) -> list[str]:
    """The words of a command, without comments and without the file that its output goes to."""
    words = shlex.split(line, comments=True)
    return words[: words.index(">")] if ">" in words else words


def in_blocks(page: Path) -> Iterator[list[str]]:
    """The words of each command in the fenced blocks of a page. In a console, commands begin with $."""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        console, lines = block[0].startswith("```console"), block[1].replace("\\\n", " ").splitlines()
        for line in lines:
            if not console or line.startswith("$ "):
                yield words_of(line.removeprefix("$ "))


def in_text(page: Path) -> Iterator[list[str]]:
    """The words of each command within the text of a page, unless only its name is given or it is cut short by dots."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for found in INLINE.findall(text):
        words = words_of(found)
        if len(words) > 2 and "..." not in found and "COMMAND" not in found:
            yield words
