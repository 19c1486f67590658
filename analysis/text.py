"""What commands print: tables and paragraphs that fit the terminal, and JSON. Imports nothing heavy."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

LINES = Box("\n".join(["    ", "    ", " -  ", *["    "] * 5]))  # a line of dashes below the header, and nothing else
WORD = re.compile(r"(?= )|(?<=[-/=._,@+])(?=[A-Za-z])")  # where a line of a table may end
PHRASE = re.compile(rf"(?<!\d to)(?! to [-+]?\d)(?:{WORD.pattern})")  # the same, but not within an interval
NUMBER = re.compile(r"[-+<]? ?\d[\d.,e+-]*%?\*?[⁰¹²³⁴⁵⁶⁷⁸⁹]*")


def columns() -> int:
    """The width of the terminal, or 80 if the output goes elsewhere. The variable COLUMNS overrides both."""
    return shutil.get_terminal_size().columns


def _most_columns() -> float:
    """The width that a table may have: any, if a program reads it."""
    return columns() if "COLUMNS" in os.environ or sys.stdout.isatty() else math.inf


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a line below its header. Columns of numbers are aligned on the right, empty ones are left out.

    Where it would be wider than the terminal, texts continue on further lines of their cell: between words and not
    within intervals, as far as possible. If the output goes elsewhere, each row is one line.
    """
    used = [position for position in range(len(header)) if not rows or any(row[position] for row in rows)]
    cells = [[row[position] for position in used] for row in [header, *rows]]
    by_column = list(zip(*cells, strict=True))
    parts = PHRASE if _fits(_longest_parts(by_column, PHRASE)) else WORD
    widths = _column_widths(by_column, _longest_parts(by_column, parts))
    table = Table(box=LINES, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style=None)
    wrapped = [[_wrap(cell, width, parts) for cell, width in zip(row, widths, strict=True)] for row in cells]
    for position, title in enumerate(wrapped[0]):
        numbers = all(NUMBER.fullmatch(row[position] or "0") for row in cells[1:])
        table.add_column(Text(title), justify="right" if numbers else "left", no_wrap=True)
    for row in wrapped[1:]:
        table.add_row(*map(Text, row))
    shown = io.StringIO()
    Console(file=shown, width=10_000, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in shown.getvalue().splitlines())


def _fits(widths: Sequence[int]) -> bool:
    """Whether columns of these widths fit the terminal."""
    return sum(widths) + 2 * (len(widths) - 1) <= _most_columns()


def _longest_parts(by_column: Sequence[Sequence[str]], parts: re.Pattern[str]) -> list[int]:
    """The length of the longest part of each column (a list of its cells) that a line should not end in."""
    return [max((len(part.strip()) for cell in cells for part in parts.split(cell)), default=1) for cells in by_column]


def _column_widths(by_column: Sequence[Sequence[str]], longest_parts: Sequence[int]) -> list[int]:
    """The width of each column (a list of its cells), so that the table fits the terminal.

    The widest are made narrower, down to their longest parts; only if that is not enough, further.
    """
    widths = [max(map(len, cells)) for cells in by_column]
    while not _fits(widths):
        loose = [position for position in range(len(widths)) if widths[position] > longest_parts[position]]
        widest = max(loose or range(len(widths)), key=lambda position: widths[position])
        if widths[widest] == 1:
            break  # there are more columns than the terminal has room for
        widths[widest] -= 1
    return widths


def _wrap(text: str, width: int, parts: re.Pattern[str]) -> str:
    """A text in lines of at most this many characters, broken between parts if they are short enough."""
    lines = [""]
    for part in parts.split(text):
        if len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        rest = part if lines[-1] else part.lstrip(" ")
        while len(rest.rstrip()) > width:
            lines[-1], rest = rest[:width], rest[width:]
            lines.append("")
        lines[-1] += rest
    return "\n".join(line.rstrip() for line in lines if line)


def paragraph(text: str, indent: str = "") -> str:
    """A text in lines that fit the terminal. All but the first are indented."""
    return textwrap.fill(text, columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def percent(share: float) -> float:
    """A share in percent, without the digits that come from its rounding to float32."""
    return float(f"{100 * share:.7g}")


def to_json(result: Any) -> str:
    """A result as a JSON document. Tables become lists of rows, and numbers that are not finite become null."""
    return json.dumps(_plain(result), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "to_dict"):  # a table of pandas
        return _plain(value.to_dict("records"))
    if hasattr(value, "tolist"):  # a number or an array of NumPy
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.astimezone().isoformat(timespec="seconds")
    return value if value is None or isinstance(value, bool | int | str) else str(value)
