"""The benchmark of speed, with its measurements replaced, so that only what it does with them is tested."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import all as everything
from benchmarks import growth, sections
from benchmarks.sections import Row


def test_sections_that_are_done_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def works(quick: bool) -> list[Row]:
        """What it shows."""
        measured.append(("works", quick))
        return [{"network": "a", "ms": 1.23456}]

    def fails(quick: bool) -> list[Row]:
        measured.append(("fails", quick))
        raise RuntimeError("no memory")

    monkeypatch.setattr(sections, "git_state", lambda: {"git_commit": "0123456789", "git_dirty": "false"})
    monkeypatch.setattr(everything, "SECTIONS", {"works": works, "fails": fails})
    everything.main(["--out", str(tmp_path), "--quick"])
    everything.main(["--out", str(tmp_path)])
    everything.main(["--out", str(tmp_path)])
    everything.main(["--out", str(tmp_path), "--only", "works"])
    assert measured == [
        ("works", True),
        ("fails", True),
        ("works", False),
        ("fails", False),
        ("fails", False),
        ("works", False),
    ]
    assert json.loads((tmp_path / "performance.json").read_text())["works"]["rows"] == [{"network": "a", "ms": 1.23456}]
    page = (tmp_path / "performance.md").read_text()
    assert re.search(r"\n## works\n\nWhat it shows\. Measured on \d{4}-\d\d-\d\d at commit 0123456, in 0 s\.\n", page)
    assert "\n\n| network | ms |\n| --- | --- |\n| a | 1.235 |\n" in page
    assert "Failed: RuntimeError: no memory" in page


def test_views_are_compared_in_turn_and_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(images: torch.Tensor) -> None:
        raise ImportError("No module named 'other'")

    monkeypatch.setattr(everything, "VIEWS", {"torchvision": everything.VIEWS["torchvision"], "other": missing})
    first, *rows = everything.views(quick=True)
    assert first == {"views": "other", "left out": "No module named 'other'"}
    assert [row["views"] for row in rows[:2]] == ["this suite", "torchvision"]
    assert rows[0]["times as long"] == "1.00 (1.00 to 1.00)"
    assert all(row["ms"] > 0 for row in rows)


def test_growth_is_the_exponent_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, case: object, prepare: object, images: int) -> Pool:
            self.images = images
            return self

        def result(self) -> tuple[float, float]:
            return 1e-6 * self.images**1.5, 2.0 * self.images

    monkeypatch.setattr(growth, "ProcessPoolExecutor", Pool)
    rows = growth.measure("decoding", 100)
    assert [row["images"] for row in rows] == [50, 100, 200]
    assert [row.get("time grows as images to the power") for row in rows] == [
        None,
        pytest.approx(1.5),
        pytest.approx(1.5),
    ]
