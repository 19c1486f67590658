"""The reference is what the code says today, and it leaves nothing out."""

from __future__ import annotations

import re

import pytest

import cli
from experiments.configs.resolve import TimeBudget
from simclr.config import Config
from simclr.evaluate.protocol import Protocol
from simclr.settings import setting_names
from website import reference

COMMANDS, SETTINGS = reference.commands(), reference.settings()


@pytest.mark.parametrize(("name", "page"), [("commands", COMMANDS), ("settings", SETTINGS)])
def test_the_pages_are_those_that_the_code_gives(name: str, page: str) -> None:
    stored = (reference.PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert stored == page, "run `make docs`, and commit the pages that it writes"


def test_the_names_of_settings_are_those_that_the_code_has() -> None:
    assert reference.NAMES.read_text(encoding="utf-8") == reference.setting_lists(), "run `make docs`, and commit"


def test_every_command_and_option_is_explained() -> None:
    for name, command, _ in reference.help_pages():
        section = COMMANDS.partition(f"\n## `simclr {name}`\n")[2].partition("\n## ")[0]
        assert cli.COMMANDS[name][1] in section
        for parameter in command.params:
            shown = max(parameter.opts, key=len)  # of an argument, its name
            assert re.search(rf"^\* `[^`]*{shown}\b[^`]*`: [A-Z]", section, re.MULTILINE | re.IGNORECASE), (name, shown)


def test_every_setting_is_explained() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \|(.*)\|$", SETTINGS, re.MULTILINE))
    first_view = [name for name in setting_names(Config) if not name.startswith("augment2.")]
    time = [f"time.{name}" for name in setting_names(TimeBudget)]
    assert set(rows) == {*first_view, *time, *setting_names(Protocol)}
    unexplained = [name for name, row in rows.items() if not all(cell.strip() for cell in row.split(" | "))]
    assert unexplained == [], "give these a comment where they are defined"
