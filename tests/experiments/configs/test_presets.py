"""The presets and their headers."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
import typer

from cli import app
from experiments.configs.presets import _read_header, presets
from experiments.configs.resolve import resolve_timed
from simclr.config import Config
from simclr.train import budget

STORED_IMAGES = {"cifar10": 60_000, "tiny-imagenet": 110_000, "folder": 1_281_167}


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_valid_and_its_header_has_a_working_command(name: str) -> None:
    config, _ = resolve_timed(name)
    assert config.name == name
    assert config != Config(name=name)  # it sets something
    header = presets()[name].header
    assert list(header) == ["About", "Command", "Cost", "Result"]
    assert all(header.values())
    program, command, *options = shlex.split(header["Command"])
    assert program == "simclr"
    typer.main.get_command(app).commands[command].make_context(command, options)  # type: ignore[attr-defined]
    assert f"--preset {name}" in header["Command"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, preset in presets().items() if "(predicted" in preset.header["Cost"]])
def test_the_memory_in_a_header_is_the_predicted_one(name: str) -> None:
    config, _ = resolve_timed(name)
    limit = budget.memory_budget(None, torch.device("cpu"))
    plan = budget.plan_memory(config, budget.Images(STORED_IMAGES[config.data.dataset]), limit)
    assert presets()[name].header["Cost"].startswith(f"{plan.peak / 2**30:.1f} GiB")


def test_a_header_line_without_a_key_continues_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("# About: one\n#   and more\n# Cost: 1 h\n\n# Result: not in the header\n[loss]\n")
    assert _read_header(path) == {"About": "one and more", "Cost": "1 h"}
