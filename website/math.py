"""Formulas as MathML, which browsers draw without a script: blocks of ```math, and $`...`$ within a line."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor


def block(source: str, *_: Any, **__: Any) -> str:
    """A formula on lines of its own."""
    return convert(source, display="block")


class Inline(InlineProcessor):  # type: ignore[misc]
    """A formula within a line."""

    def handleMatch(self, found: Any, text: str) -> Any:  # noqa: N802, ARG002  as Markdown calls it
        return self.md.htmlStash.store(convert(found[1])), found.start(0), found.end(0)


class Formulas(Extension):  # type: ignore[misc]
    """Adds `Inline`, before the backticks are taken for code."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.inlinePatterns.register(Inline(r"\$`([^`]+)`\$", md), "formula", 200)


def makeExtension(**settings: Any) -> Formulas:  # noqa: N802
    """What Markdown calls to get the extension."""
    return Formulas(**settings)
