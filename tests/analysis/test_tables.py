"""Tests of tables and their formats."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markdown import markdown

from analysis.tables import FORMATS, comparison, mcnemar_table, write_csv

AWKWARD = pd.DataFrame({"a_b": ["50% & #1|{x}", None], "lr": [0.1, float("nan")], "n": ["1e5", "007"]})
NOTES = ["protocol 1: k=200", "simclr compare a b"]


def run(name: str = "a", **changes: object) -> dict[str, object]:
    base = {"name": name, "id": "1f", "config": {"lr": 0.3, "drop": []}, "metrics": {"knn_top1": 0.93654}}
    return base | {"intervals": {"knn_top1": (0.926, 0.947)}, "protocols": {"knn_top1": "1"}} | changes


@pytest.mark.parametrize("style", FORMATS)
def test_every_format_keeps_cells_and_numbers_and_all_but_csv_the_notes(style: str) -> None:
    text = FORMATS[style](AWKWARD, NOTES)
    missing = {"csv": "", "latex": r"\textemdash{}"}.get(style, "—")
    for piece in ("lr", "1e5", "007", "0.1", missing, *([] if style == "csv" else NOTES)):
        assert piece in text
    assert "nan" not in text.lower()
    assert FORMATS[style](AWKWARD.iloc[:0], [])


def test_csv_loads_as_numbers() -> None:
    text = FORMATS["csv"](pd.DataFrame({"a, b": ['say "x"', None], "c": [1 / 3, 2.0], "d": [float("nan"), 1]}), NOTES)
    frame = pd.read_csv(io.StringIO(text))
    assert frame["a, b"].iloc[0] == 'say "x"'
    assert frame["c"].tolist() == pytest.approx([1 / 3, 2.0])
    assert frame["d"].isna().tolist() == [True, False]
    assert (frame["c"].dtype, frame["d"].dtype) == (float, float)


HOSTILE = [
    "=HYPERLINK(1)",
    "@x",
    "+1+1",
    "-2+3",
    " =1",
    "[a](http://b)",
    "![a](b)",
    "<script>",
    "`x`",
    "a|b",
    "a\\",
    "*a*",
]


def test_whole_numbers_stay_whole_in_csv_where_others_are_missing() -> None:
    frame = pd.DataFrame({"width": [512, float("nan")], "name": ["a", "=b"]}, dtype=object)
    assert FORMATS["csv"](frame, []).splitlines() == ["width,name", "512,a", ",'=b"]


def test_csv_has_no_formulas(tmp_path: Path) -> None:
    frame = pd.DataFrame({"=name": HOSTILE, "points": "-1.5", "+x": -2.5})
    write_csv(frame, tmp_path / "a.csv")
    for text in (FORMATS["csv"](frame, []), (tmp_path / "a.csv").read_text()):
        header, *rows = csv.reader(io.StringIO(text.lstrip()))
        assert header == ["'=name", "points", "'+x"]
        assert [row[0] for row in rows] == [f"'{name}" for name in HOSTILE[:5]] + HOSTILE[5:]
        assert {(row[1], row[2]) for row in rows} == {("-1.5", "-2.5")}
    assert list(frame["=name"]) == HOSTILE


def test_markdown_shows_names_literally() -> None:
    text = FORMATS["markdown"](pd.DataFrame({"name": HOSTILE}), [])
    cells = re.findall("<td>(.*?)</td>", markdown(text, extensions=["tables"]), re.DOTALL)
    assert [unescape(cell) for cell in cells] == [name.strip() for name in HOSTILE]


def test_markdown_escapes_pipes() -> None:
    lines = FORMATS["markdown"](AWKWARD, NOTES).splitlines()
    assert {line.replace(r"\|", "").count("|") for line in lines[:4]} == {4}
    assert lines[4:] == ["", *(f"- {note}" for note in NOTES)]


def test_a_row_of_latex_may_start_with_any_character(tmp_path: Path) -> None:
    r"""After \\, LaTeX takes [ for the start of a length, and * for a part of the command."""
    names = [*HOSTILE, "[1pt] x", "*", "~^$%&_#{}\\--set", "é ß ±", "\"`'"]
    text = FORMATS["latex"](pd.DataFrame({"[name]": names, "*": 1}), ["`a` --set b"])
    assert not re.search(r"^\s*[\[*]", text, re.MULTILINE)
    assert r"\textasciigrave{}a\textasciigrave{} -{}-set b" in text
    compile_latex(text, tmp_path)


def compile_latex(text: str, folder: Path) -> None:
    """Compile a table if pdflatex is installed."""
    if latex := shutil.which("pdflatex"):
        document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
        (folder / "table.tex").write_text(document)
        done = subprocess.run([latex, "-halt-on-error", "table.tex"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def log_of(folder: Path) -> str:
    """What pdflatex said of a table, if it is installed: `Overfull` if it is wider than the page."""
    log = folder / "table.log"
    return log.read_text(errors="replace") if log.exists() else ""


def test_latex_without_notes_has_no_empty_caption_and_numbers_are_aligned(tmp_path: Path) -> None:
    text = FORMATS["latex"](pd.DataFrame({"a": ["x", "y"], "b": ["7.5", None], "c": ["5 (1 to 9)", "2"]}), [])
    assert "caption" not in text
    assert "label" not in text
    assert r"\begin{tabular}{lrl}" in text


def test_latex_escapes_special_characters(tmp_path: Path) -> None:
    text = FORMATS["latex"](AWKWARD, NOTES)
    assert text.startswith("% needs \\usepackage{booktabs}\n\\begin{table}")
    assert text.endswith(r"\end{table}")
    assert r"\caption{protocol 1: k=200 simclr compare a b}" in text
    assert r"\label{tab:a-b}" in text
    assert r"a\_b" in text
    assert r"50\% \& \#1\textbar{}\{x\}" in text
    compile_latex(text, tmp_path)


def test_comparison_shows_the_settings_that_differ() -> None:
    frame = comparison([run(), run("b", config={"lr": 0.3, "drop": ["color_jitter"], "width": 64})])
    assert list(frame) == ["run", "drop", "width", "kNN top-1"]
    assert frame["width"].tolist() == [None, 64]
    assert frame["kNN top-1"].tolist() == ["93.65 (92.6 to 94.7)"] * 2
    assert "['color_jitter']" in FORMATS["terminal"](frame, [])


def test_comparison_adds_ids_to_equal_names_and_leaves_out_unknown_intervals() -> None:
    frame = comparison([run(intervals={}), run(id="2e", metrics={})])
    assert frame.to_dict("list") == {"run": ["a (1f)", "a (2e)"], "kNN top-1": ["93.65", None]}


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("linear_balanced", "50.00 (40.0 to 60.0)"),
        ("folder-46436ce1/z/val/knn_k90_balanced", "50.00 (40.0 to 60.0)"),
        ("z/retrieval_map", "50.00 (40.0 to 60.0)"),
        ("head.1/transformation_turn", "50.00 (40.0 to 60.0)"),
        ("few_shot_5_std", "50.00 (40.0 to 60.0)"),
        ("val/spectrum_rank_h", "0.5"),
    ],
)
def test_comparison_shows_each_share_in_percent_wherever_it_was_measured(metric: str, shown: str) -> None:
    one = run(metrics={metric: 0.5}, intervals={metric: (0.4, 0.6)}, protocols={metric: "1"})
    assert comparison([one]).iloc[0].tolist() == ["a", shown]
    assert comparison([one], numbers=True).iloc[0, 1] == (50.0 if "(" in shown else 0.5)


def test_comparison_has_a_column_for_each_protocol() -> None:
    both = {"knn_top1": 0.9, "linear_top1": 0.95}
    frame = comparison([run(), run("b", metrics=both, protocols={"knn_top1": "2", "linear_top1": "2"}, intervals={})])
    assert list(frame) == ["run", "kNN top-1 [1]", "kNN top-1 [2]", "linear top-1"]
    assert frame.iloc[1].tolist() == ["b", None, "90.00", "95.00"]
    assert frame.iloc[0].tolist() == ["a", "93.65 (92.6 to 94.7)", None, None]


def test_a_comparison_as_numbers_is_in_percent_with_columns_for_the_interval() -> None:
    frame = comparison([run(), run("b", intervals={}, config={"lr": 0.1})], numbers=True)
    assert list(frame) == ["run", "lr", "drop", "kNN top-1", "kNN top-1 low", "kNN top-1 high"]
    assert frame["kNN top-1"].tolist() == pytest.approx([93.654, 93.654])
    assert frame["kNN top-1 low"].tolist() == pytest.approx([92.6, float("nan")], nan_ok=True)
    assert frame["kNN top-1"].dtype == float


def test_a_tiny_p_value_is_not_shown_as_zero() -> None:
    labels = np.zeros(3000, dtype=np.int64)
    (row,) = mcnemar_table({"a": {"knn": labels}, "b": {"knn": labels + 1}}, labels).to_dict("records")
    assert row["p (McNemar)"] == "< 1e-300"


def test_mcnemar_table_has_each_pair_and_each_shared_metric() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    wrong = labels.copy()
    wrong[:6] += 1
    frame = mcnemar_table({"a": {"knn": wrong, "linear": labels}, "b": {"knn": labels}, "c": {"knn": labels}}, labels)
    assert frame[["run A", "run B"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert frame.iloc[0].tolist() == ["knn", "a", "b", "40.00", "100.00", "+60.00", 0, 6, "0.031"]
    assert frame.iloc[2].tolist()[5:] == ["+0.00", 0, 0, "1"]
    assert len(mcnemar_table({"a": {"knn": labels}}, labels)) == 0
    with pytest.raises(ValueError, match="got 9 and 10 values"):
        mcnemar_table({"a": {"knn": labels}, "b": {"knn": labels[:9]}}, labels)
