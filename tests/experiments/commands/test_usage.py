"""experiments/commands/usage.py, and what the command line refuses before a command starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.commands.helpers import assert_one_line, invoke

MEANT = {
    "pretrain --drop color_jitter grayscale": "--drop color_jitter --drop grayscale",
    "ablate --only crop blur flip": "--only crop --only blur --only flip",
    "ablate --vary loss.temperature=0.1 0.5": "--vary loss.temperature=0.1,0.5",
    "ablate --vary loss.temperature=0.1, 0.5, 1": "--vary loss.temperature=0.1,0.5,1",
    "ablate --vary loss.temperature=0.1 shapes": "--preset shapes",
    "search --proxy data.limit=9 train.epochs=1": "--proxy data.limit=9 --proxy train.epochs=1",
    "eval knn nothing": "--knn",
}
NOT_HERE = {
    "ablate --temperature 0.1": "unlike pretrain: use --set loss.temperature=VALUE, or --vary loss.temperature=VALUE,",
    "search --lr 0.1": "unlike pretrain: use --set optim.lr=VALUE",
    "eval --dry-run": "unlike pretrain, ablate, search, paper, upload: see simclr eval --help",
    "eval --preset shapes": "give the name of a run, as in simclr eval shapes-s0",
    "ablate --hours 1": "unlike pretrain: see simclr ablate --help",
}


@pytest.mark.parametrize("given", MEANT)
def test_words_that_a_command_does_not_take_may_belong_to_an_option(given: str) -> None:
    command = given.split()[0]
    assert_one_line(invoke(*given.split()), 2, f"did you mean {MEANT[given]}? See simclr {command} --help")


@pytest.mark.parametrize("given", NOT_HERE)
def test_an_option_of_another_command_is_called_that(given: str) -> None:
    command, option, *_ = given.split()
    done = invoke(*given.split())
    assert_one_line(done, 2, f"{command} has no option {option}, unlike ")
    assert_one_line(done, 2, NOT_HERE[given])


def test_options_before_the_command_are_moved_behind_it() -> None:
    done = invoke("--preset", "shapes", "pretrain", "--name", "my run")
    assert_one_line(done, 2, "options go after the command: simclr pretrain --preset shapes --name 'my run'")


def test_a_file_whose_name_starts_with_a_dash_is_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(invoke("neighbours", "shapes-s0", "-rf.jpg"), 2, "unknown option '-r'")
    (tmp_path / "-rf.jpg").touch()
    assert_one_line(invoke("neighbours", "shapes-s0", "-rf.jpg"), 2, "write ./-rf.jpg instead of -rf.jpg")
    assert "option" not in invoke("neighbours", "shapes-s0", "./-rf.jpg").stderr
