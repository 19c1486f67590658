"""experiments/commands/presets.py."""

from __future__ import annotations

from experiments.configs.presets import presets
from tests.experiments.commands.helpers import invoke


def test_presets_shows_what_each_costs_and_gives() -> None:
    lines = invoke("presets").stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(presets())
    for key in ("about", "command", "cost", "result"):
        assert sum(line.startswith(f"    {key} ") for line in lines) == len(presets())
