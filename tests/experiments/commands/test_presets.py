"""experiments/commands/presets.py."""

from __future__ import annotations

import json

import pytest

from experiments.configs.presets import presets
from tests.experiments.commands.helpers import assert_one_line, invoke


def test_presets_is_a_table_of_contents() -> None:
    shown = invoke("presets").stdout
    assert [name for line in shown.splitlines()[2:] if (name := line[:24].strip()) in presets()] == list(presets())
    assert max(map(len, shown.splitlines())) <= 80
    assert len(shown.splitlines()) <= 3 * len(presets())


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_shown_in_full(name: str) -> None:
    shown = " ".join(invoke("presets", name).stdout.split())
    for key, text in presets()[name].header.items():
        assert f"{key.lower()}: {text}" in shown
    settings = presets()[name].path.read_text().partition("\n\n")[2]
    assert shown.endswith(" ".join(settings.split()))
    assert settings.strip()


def test_an_unknown_preset_is_one_line_and_exit_code_2() -> None:
    assert_one_line(invoke("presets", "shaps"), 2, "unknown preset 'shaps': did you mean 'shapes'?")


def test_presets_as_json() -> None:
    rows = json.loads(invoke("presets", "--json").stdout)
    assert [row["name"] for row in rows] == list(presets())
    one = json.loads(invoke("presets", "shapes", "--json").stdout)
    assert one["command"] == "simclr pretrain --preset shapes"
    assert one["settings"]["data"]["dataset"] == "shapes"
