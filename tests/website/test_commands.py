"""What README.md and the docs tell to type works.

Every `simclr` command, in blocks and within the text, is parsed by the real command line, and its settings must make a
config or a protocol. The commands in blocks of README.md, the tutorials and the guides are also run, page by page, with
presets made tiny; the guides only plan their studies. PARSED_ONLY lists those that are not run, and why. Programs
other than simclr must exist.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import typer
from PIL import Image

import cli
from experiments.configs import resolve
from simclr.evaluate.protocol import make_protocol
from simclr.settings import merge
from tests.experiments.commands.helpers import invoke
from tests.experiments.studies.helpers import leave_out_figures, leave_out_pictures, leave_out_timing
from tests.helpers import ROOT, TINY
from tests.website.documented import PAGES, in_blocks, in_text

RUN = [page for page in PAGES if page.name == "README.md" or page.parent.name in ("tutorials", "guides")]
PARSED_ONLY = {  # by what occurs in the command
    "simclr delete": "deletes the run that others need; tests/experiments/commands/test_delete.py runs it",
    "simclr ui": "serves until it is stopped; tests/system/test_ui.py runs it",
    "simclr search": "trains dozens of times; tests/experiments/search runs it",
    "--snapshots": "needs several epochs; tests/experiments/runs/test_snapshots.py runs it",
    "snapshots/": "needs several epochs too",
    "simclr measures": "needs five encoders; tests/experiments/runs/test_measures.py runs it",
    "--lidar": "takes 50 views of each image; tests/simclr/evaluate/test_spectrum.py runs it",
    "simclr paper": "trains dozens of times; tests/experiments/studies/test_paper.py runs two small tables",
    "hf:": "downloads",
    "--transfer leak": "shows what is printed about copies",
    "--dataset cifar10": "downloads",
    "--preset cifar10": "downloads",
    "--preset paper-cifar10": "downloads",
    "mlflow.example.org": "is an example of an address",
}
STAND_INS = {"PRESET": "shapes", "AXIS": "head", "LIMIT": "2400", "CONFIG": "d", "FOLDER": "photos", "NAME": "shapes"}
OTHER = {"torchrun", "git", "cd", "source", "wait", "export", "mlflow", "python3", ".venv/bin/optuna-dashboard", "pip"}
OTHER |= {"cat", "sudo", "set", "ssh"}
GROUP: Any = typer.main.get_command(cli.app)


def stood_in(words: list[str]) -> list[str]:
    """The words with something real in place of each placeholder."""
    pattern = re.compile(rf"\b({'|'.join(STAND_INS)})\b")
    return [pattern.sub(lambda found: STAND_INS[found[0]], word) for word in words if word != "&"]


def simclr_commands(page: Path) -> Iterator[list[str]]:
    for words in [*in_blocks(page), *in_text(page)]:
        if words and words[0].removeprefix(".venv/bin/") == "simclr" and "[OPTIONS]" not in words:  # a usage
            yield stood_in(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tracking.local.check_known", lambda *_: None)  # no run of these names is here
    for name, *words in simclr_commands(page):
        assert name in cli.COMMANDS or name == "--help"
        if "--help" in (name, *words):
            continue
        context = GROUP.commands[name].make_context(name, list(words))  # raises for a mistake
        asked = context.params
        flags = {flag: asked.get(flag) for flag in resolve.FLAGS if flag in asked}
        if name == "search":
            del flags["hours"]  # its --max-hours limits the trials, not a config
        flags.pop("init", None)  # names a run, which another test of this file may not have trained yet
        if name in ("pretrain", "ablate", "paper", "search", "budget", "views", "doctor"):
            timed = name in ("pretrain", "views", "doctor")  # the others refuse presets with a time budget
            resolved = resolve.resolve_timed if timed else resolve.resolve
            resolved(asked["preset"], None, asked["settings"], asked.get("drop", []), **flags)
            resolved(asked["preset"], None, asked.get("proxy", []))
        elif name == "eval":
            make_protocol([text for text in asked["settings"] if not text.startswith("data.")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_other_programs_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for words in in_blocks(page):
        program, *arguments = [word for word in words if not re.match(r"[A-Z_]+=", word)] or ["cd"]
        if program == "make":
            assert arguments[0] in targets
        elif program.endswith("python"):
            assert arguments[0] == "-m"
            assert importlib.util.find_spec(arguments[1]), arguments
            for file in (word for word in arguments if word.startswith("tests/")):
                assert (ROOT / file).exists(), file
        elif program.removeprefix(".venv/bin/") != "simclr":
            assert program in OTHER, words


def tiny_preset(name: Any, real: Any = resolve.preset_table) -> dict[str, Any]:
    """A preset as small as a test needs it, without a time budget, on digits unless it is for your own images."""
    table = real(name)
    small: dict[str, Any] = {section: TINY[section] for section in ("model", "optim", "train")}
    small = merge(small, {"train": {"epochs": 1, "batch_size": 32}})
    own = table["data"]["dataset"] == "folder"
    data = {"dataset": "folder", "side": 16} if own else TINY["data"]
    return small | {"device": "cpu", "data": data, "augment": table.get("augment", {})}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes the current folder one with what the pages take for granted: photos, weights, and one run of shapes."""
    folder, draw = tmp_path_factory.mktemp("desk"), np.random.default_rng(0)
    for name in (f"photos/{kind}/{number}.jpg" for kind in ("cat", "dog") for number in range(40)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(folder / name)
    Image.open(folder / "photos/cat/0.jpg").save(folder / "one.jpg")
    rows = [f"cat/{number}.jpg,{'outdoors' if number % 2 else 'indoors'}" for number in range(40)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    for name in ("theirs.ckpt", "resnet18-f37072fd.pth"):
        torch.save(torchvision.models.resnet18().state_dict(), folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMCLR_HOME", str(folder / "home"))
        patch.chdir(folder)
        patch.setattr(resolve, "preset_table", tiny_preset)
        assert invoke("pretrain", "--preset", "shapes").exit_code == 0
        leave_out_pictures(patch)  # that one run has them
        leave_out_figures(patch)
        leave_out_timing(patch)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_run(page: Path, desk: None) -> None:
    for words in in_blocks(page):
        line = " ".join(words)
        if not words or words[0].removeprefix(".venv/bin/") != "simclr" or any(part in line for part in PARSED_ONLY):
            continue
        arguments = stood_in(words[1:])
        if "--hours" in arguments:
            del arguments[(hours := arguments.index("--hours")) : hours + 2]
        if page.parent.name == "guides" and arguments[0] == "ablate" and "--dry-run" not in arguments:
            arguments.append("--dry-run")
        if arguments[0] == "ablate" and "--dry-run" not in arguments:
            arguments += ["--seeds", "2"]  # the last one counts
        done = invoke(*arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"
