"""The GPU benchmark, with tiny sizes on the CPU, so that it is known to work before it runs on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Options, measure
from benchmarks.sections import Page, Row, markdown
from benchmarks.timing import processor
from tests.helpers import tiny

QUICK = Options(torch.device("cpu"), quick=True)


def test_sections_and_their_errors_are_written_to_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Options) -> list[Row]:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.SECTIONS, "tests", fail)
    measure(QUICK, ["card", "tests", "evaluation"], tmp_path / "out")
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert list(results) == ["card", "tests", "evaluation"]
    assert results["card"]["rows"][0]["torch"] == torch.__version__
    assert results["card"]["rows"][0]["cpu"] == processor()
    assert results["tests"]["error"] == "RuntimeError: no such kernel"
    assert [row["seconds"] > 0 for row in results["evaluation"]["rows"]] == [True, True]
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "## card\n" in page
    assert "Failed: RuntimeError: no such kernel" in page
    assert "| kNN (k 200), 200 queries, 2000 x 64 | " in page


def test_steps_are_timed_part_by_part_and_by_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(model={"backbone": "resnet10"}, train={"batch_size": 8})
    monkeypatch.setattr(gpu, "PRESETS", ("shapes",))
    asked = []
    monkeypatch.setattr(gpu, "resolve", lambda _, __, settings: asked.append(settings[-1]) or config)
    (row,) = gpu.steps(QUICK)
    assert (row["batch"], row["micro_batch"], row["precision"]) == (8, 8, "float32")
    assert row["network"] == f"resnet10, width {config.model.width:g}, {config.optim.name}"
    assert all(row[f"{part}_ms"] > 0 for part in ("step", "views", "forward", "loss", "backward", "optimizer"))
    fastest, slowest = map(float, row["step_ms_range"].split(" to "))
    assert 0 < fastest <= float(f"{row['step_ms']:.1f}") <= slowest
    assert row["training/bare"] == row["bare_step_ms"] / row["step_ms"]
    asked.clear()
    assert [(row["train.compile"], row["step_ms"] > 0) for row in gpu.variants(QUICK)] == [(False, True), (True, True)]
    assert asked == ["train.compile=false", "train.compile=true"]


def test_output_of_commands_is_below_their_table() -> None:
    rows = [{"command": "eval", "exit": 2, "output": "error: no run\n"}, {"command": "x", "failures": ["a", "b"]}]
    page = markdown(
        {"training": {"about": None, "rows": rows, "seconds": 2.0, "measured": "2026-11-27"}},
        Page(Path("gpu"), "title", "intro"),
    )
    assert "| command | exit |\n| --- | --- |\n| eval | 2 |\n| x |  |\n" in page
    assert "\n```\nerror: no run\n```\n\n```\na\nb\n```\n" in page
