"""What commands print: tables and paragraphs that fit the terminal, and JSON. Imports nothing heavy."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

LINES = Box("\n".join(["    ", "    ", " -  ", *["    "] * 5]))  # a line of dashes below the header, and nothing else
NUMBER = re.compile(r"[-+<]? ?\d[\d.,e+-]*%?")


def columns() -> int:
    """The width of the terminal, or 80 if the output goes elsewhere. The variable COLUMNS overrides both."""
    return shutil.get_terminal_size().columns


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a line below its header. Columns of numbers are aligned on the right, empty ones are left out.

    Where it would be wider than the terminal, texts continue on further lines of their cell.
    """
    table = Table(box=LINES, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style=None)
    used = [position for position in range(len(header)) if not rows or any(row[position] for row in rows)]
    for position in used:
        numbers = all(NUMBER.fullmatch(row[position] or "0") for row in rows)
        justify: Literal["right", "left"] = "right" if numbers else "left"
        table.add_column(Text(header[position]), justify=justify, overflow="fold", no_wrap=numbers)
    for row in rows:
        table.add_row(*(Text(row[position]) for position in used))
    shown = io.StringIO()
    Console(file=shown, width=columns(), color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in shown.getvalue().splitlines())


def paragraph(text: str, indent: str = "") -> str:
    """A text in lines that fit the terminal. All but the first are indented."""
    return textwrap.fill(text, columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


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
