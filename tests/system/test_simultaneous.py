"""Two processes with the same home and the same work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.tracking.store import Store
from tests.system.processes import COMMANDS, runs_of, start, write_config

pytestmark = [pytest.mark.long, pytest.mark.skipif(os.name == "nt", reason="needs fork")]


def run_together(folder: Path, *commands: str) -> list[tuple[int, str]]:
    """Start commands at the same time on an empty home. Returns the exit code and output of each."""
    write_config(folder)
    processes = [start(folder / "home", command, f"output{n}.txt") for n, command in enumerate(commands)]
    for process in processes:
        process.join()
    return [(process.exitcode, (folder / f"output{n}.txt").read_text()) for n, process in enumerate(processes)]


def test_a_config_is_trained_by_the_first_of_two_processes(tmp_path: Path) -> None:
    ends = run_together(tmp_path, COMMANDS["pretrain"], COMMANDS["pretrain"])
    assert [code for code, _ in ends] == [0, 0], ends
    (run,) = runs_of(tmp_path / "home").values()
    first, second = sorted((text for _, text in ends), key=lambda text: "has already trained this config" in text)
    assert "has already trained this config" not in first
    assert f"run {run.name} ({run.short_id}) has already trained this config: add --again" in second
    assert len(Store(tmp_path / "home").records()) == 1


def test_two_studies_that_share_a_baseline_train_it_once(tmp_path: Path) -> None:
    one = COMMANDS["ablate"]
    other = one.replace("color_jitter", "flip").replace("--name study", "--name other")
    ends = run_together(tmp_path, one, other)
    assert [code for code, _ in ends] == [0, 0], ends
    assert len(runs_of(tmp_path / "home")) == 3
    assert {record.status for record in Store(tmp_path / "home").records()} == {"FINISHED"}


@pytest.mark.parametrize("name", ["ablate", "search"])
def test_a_study_or_search_is_run_by_one_of_two_processes(name: str, tmp_path: Path) -> None:
    ends = run_together(tmp_path, COMMANDS[name], COMMANDS[name])
    codes = [code for code, _ in ends]
    assert 0 in codes, ends
    assert set(codes) <= {0, 2}, ends  # 0 also for the second, if it came when the first was done
    for code, text in ends:
        if code:
            assert "error: another process is running the " in text
    runs_of(tmp_path / "home")
    assert len(Store(tmp_path / "home").records(kind="study" if name == "ablate" else "search")) == 1
