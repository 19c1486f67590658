"""Run the sections of a benchmark in turn, and write their tables to a page and a JSON file after each."""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runs.train import git_state
from simclr.files import written_whole

Row = dict[str, Any]
Section = Callable[[], list[Row]]  # its docstring says what its table shows
WIDTH = 120  # of the page's text, in characters
TEXTS = ("output", "failures")  # that are shown below a table


class Page(NamedTuple):
    """Where results go, and what stands above them."""

    path: Path  # without a suffix
    title: str
    intro: str


def measure(
    sections: Mapping[str, Section],
    page: Page,
    *,
    earlier: Mapping[str, Any] | None = None,
    common: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Run sections, and write the JSON file and the page after each one. The sections of an `earlier` run are kept.

    In the JSON file, `common` is under "measured by" of each section. A section that fails is reported with its error,
    and the others still run.
    """
    page.path.parent.mkdir(parents=True, exist_ok=True)
    results = dict(earlier or {})
    for name, section in sections.items():
        clock = time.perf_counter()
        found: dict[str, Any] = {"about": inspect.getdoc(section), "measured by": dict(common)}
        try:
            found["rows"] = section()
        except Exception as error:
            found |= {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            print(found["traceback"], file=sys.stderr)
        seconds = time.perf_counter() - clock
        results[name] = found | {"seconds": seconds, "measured": f"{datetime.now(UTC):%Y-%m-%d}", **git_state()}
        for suffix, text in ((".json", json.dumps(results, indent=1)), (".md", markdown(results, page))):
            with written_whole(page.path.with_suffix(suffix)) as scratch:
                scratch.write_text(text, encoding="utf-8")
        print(f"{name}: {results[name]['seconds']:.0f} s", flush=True)
    return results


def markdown(results: Mapping[str, Any], page: Page) -> str:
    """The page: a table for each section, and what commands printed below it."""
    lines = [f"# {page.title}", "", *_paragraph(page.intro), ""]
    for name, section in results.items():
        lines += [f"## {name}", ""]
        lines += [*_paragraph(f"{section['about'] or ''} {_measured(section)}".strip()), ""]
        if "error" in section:
            lines += [f"Failed: {section['error']}", ""]
            continue
        columns = list(dict.fromkeys(key for row in section["rows"] for key in row if key not in TEXTS))
        lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(key, "")) for key in columns) + " |" for row in section["rows"]]
        for text in (row[key] for row in section["rows"] for key in TEXTS if row.get(key)):
            lines += ["", "```", (text if isinstance(text, str) else "\n".join(text)).strip(), "```"]
        lines.append("")
    return "\n".join(lines)


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _measured(section: Mapping[str, Any]) -> str:
    """When a section was measured, with which code, and how long that took."""
    commit = f" at commit {section['git_commit'][:7]}" if "git_commit" in section else ""
    changes = " with changes" if section.get("git_dirty") == "true" else ""
    return f"Measured on {section['measured']}{commit}{changes}, in {section['seconds']:.0f} s."


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
