"""Tests of what commands print."""

from __future__ import annotations

import io
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.text import paragraph, percent, text_table, to_json

WIDE = [["a name " * 12, "12.5%", "x" * 100], ["b", "100.0%", "a few words"]]


def test_columns_of_numbers_are_aligned_on_the_right_and_empty_ones_left_out() -> None:
    table = text_table(["name", "n", "nothing", "value"], [["a", "1", "", "12.5%"], ["bcd", "100", "", ""]])
    assert table.splitlines() == ["name    n  value", "----- ---- -----", "a       1  12.5%", "bcd   100"]


def test_a_share_in_percent_has_no_noise_of_float32() -> None:
    assert percent(float(np.float32(0.1890625))) == 18.90625
    assert percent(float(np.float32(0.07))) == 7
    assert np.isnan(percent(np.nan))


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_table_fits_the_terminal_and_loses_nothing(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = text_table(["name", "share", "text"], WIDE).splitlines()
    assert max(map(len, lines)) <= columns
    assert "".join(lines).count("x") == 101  # one is in the header
    assert "".join(lines).count("name") == 13
    assert "12.5%" in "\n".join(lines)


def test_a_program_that_reads_a_table_gets_one_line_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    header, line, row = text_table(["name", "kind"], [["a-name-" * 30, "pretrain"]]).splitlines()
    assert row.split() == ["a-name-" * 30, "pretrain"]
    assert len(header) < len(line)


def test_lines_end_between_words_and_names_at_hyphens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    row = ["a-study-epochs=1-no-color_jitter", "70.12 (68.2 to 72.0)", "pretrain", "11-26 22:25"]
    lines = text_table(["name of the run", "linear top-1 (%)", "kind", "started"], [row]).splitlines()
    assert max(map(len, lines)) <= 70
    first, second = lines[-2:]
    assert first.startswith("a-study-epochs=1-no-")
    assert second.split()[0] == "color_jitter"


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [(50, ("(53.26 to 54.78)", "(-1.65 to -1.03)")), (40, ("53.26", "54.78)", "(-1.65", "-1.03)"))],
)
def test_an_interval_stays_on_one_line_if_there_is_room(
    columns: int, wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    row = ["nonlinear, 128, layer z", "54.02 (53.26 to 54.78)", "-1.34 (-1.65 to -1.03)"]
    shown = text_table(["cell", "linear top-1 (%)", "difference"], [row])
    assert max(map(len, shown.splitlines())) <= columns
    assert all(part in shown for part in wanted)


def test_a_table_with_too_many_columns_breaks_words_rather_than_losing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = text_table([f"column{n}" for n in range(8)], [["value"] * 8])
    assert max(map(len, shown.splitlines())) <= 40
    assert sum(shown.count(letter) for letter in "valu") >= 8 * 4


def test_what_rich_would_take_for_its_own_markup_is_shown() -> None:
    assert "[red]a[/red] :smile:" in text_table(["name"], [["[red]a[/red] :smile:"]])


def test_a_table_without_rows_is_its_header() -> None:
    assert text_table(["name", "n"], []).splitlines()[0].split() == ["name", "n"]


def test_a_paragraph_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    lines = paragraph("about: " + "word " * 10, "  ").splitlines()
    assert max(map(len, lines)) <= 20
    assert all(line.startswith("  word") for line in lines[1:])


def test_json_holds_tables_numbers_times_and_paths() -> None:
    frame = pd.DataFrame({"cell": ["a", None], "n": np.array([1, 2]), "mean": [0.5, float("nan")]})
    result = {"table": frame, "path": Path("a/b"), "none": None, "yes": np.bool_(True), "infinite": float("inf")}
    result |= {"when": datetime(2026, 1, 2), "many": (np.float32(0.5), np.arange(2)), 3: "\x1b[2J"}
    text = to_json(result)
    assert "\x1b" not in text
    back = json.loads(text)
    assert back["table"] == [{"cell": "a", "n": 1, "mean": 0.5}, {"cell": None, "n": 2, "mean": None}]
    assert (back["path"], back["none"], back["yes"], back["infinite"]) == ("a/b", None, True, None)
    assert back["when"].startswith("2026-01-02T00:00:00")
    assert (back["many"], back["3"]) == ([0.5, [0, 1]], "\x1b[2J")
