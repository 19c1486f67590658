"""Axes: those of the suite, and files of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.studies.axes import axes, find_axis
from experiments.studies.cell import BASELINE
from experiments.studies.plan import plan_study
from simclr.config import Config
from simclr.errors import UserError
from simclr.settings import setting_names
from tests.helpers import ROOT, tiny


@pytest.mark.parametrize("axis", list(axes()))
def test_every_axis_of_the_suite_gives_valid_cells(axis: str) -> None:
    plan = plan_study(tiny(augment={"blur": {"p": 0.5}}), axis=axis)
    assert len(plan.cells) > 1
    assert plan.cells[0].name == BASELINE
    assert len({cell.identity() for cell in plan.cells}) == len(plan.cells)
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)
    assert plan.x is None or plan.x in setting_names(Config)


def test_the_guide_says_what_every_axis_varies() -> None:
    rows = [f"| `{name}` | {axis.about} |" for name, axis in axes().items()]
    text = (ROOT / "docs/guides/ablation-studies.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line in rows] == rows


def test_the_axis_in_the_guide_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs/guides/ablation-studies.md").read_text(encoding="utf-8")
    path = tmp_path / "my.toml"
    path.write_text(text.partition("[my-heads]")[1] + text.partition("[my-heads]")[2].partition("```")[0])
    assert [cell.name for cell in plan_study(tiny(), axis=str(path)).cells[1:]] == ["head=linear", "wide z"]


def test_an_axis_is_found_by_name_or_in_a_file(tmp_path: Path) -> None:
    assert find_axis("temperature").x == "loss.temperature"
    path = tmp_path / "mine.toml"
    path.write_text('[mine]\nabout = "rates"\ncells = [{ set = { "optim.lr" = 0.1 }, difference = 2 }]\n')
    axis = find_axis(str(path))
    assert axis.about == "rates"
    (cell,) = axis.cells
    assert (cell.set, cell.layer, cell.difference) == ({"optim.lr": 0.1}, "h", 2.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [("temprature", "did you mean 'temperature'"), ("nowhere.toml", r"can't read the config file nowhere\.toml")],
)
def test_an_axis_that_does_not_exist_is_an_error(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_axis(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('about = "x"', r"mine\.toml: 'about' is not an axis: expected a table \[about\]"),
        ("[a]\ncell = []", "did you mean 'cells'"),
        ("[a]\n[b]", "holds 2 axes"),
        ("[a]\ncells = 3", "axis 'a': cells = 3"),
        ("[a]\ncells = [{}]", "cell 1 of axis 'a': expected settings such as"),
        ('[a]\ncells = [{ set = { "optim.lr" = 1 } }, { sett = { "optim.lr" = 1 } }]', "cell 2 .* did you mean 'set'"),
        ('[a]\ncells = [{ set = { "optim.lr" = 1 }, direction = "up" }]', 'direction = "up"'),
        (
            "[a]\nleave_out = true\ncells = [{ set = { optim.lr = 1 } }]",
            "expected at most one of cells, leave_out and pairs",
        ),
        ("[a]\nreference = { 'model.heat' = 'mlp' }", "did you mean 'model.head'"),
        ('[a]\nx = "optim.lrr"', "did you mean 'optim.lr'"),
    ],
)
def test_a_file_with_a_mistake_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        find_axis(str(tmp_path / "mine.toml"))
