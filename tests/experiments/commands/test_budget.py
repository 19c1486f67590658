"""experiments/commands/budget.py."""

from __future__ import annotations

import json

from simclr.train import memory
from tests.experiments.commands.helpers import assert_one_line, invoke

SMALL = ["--preset", "shapes", "--batch-size", 64, "--set", "model.width=0.125"]


def test_budget_shows_the_parts_the_peak_and_what_fits() -> None:
    done = invoke("budget", *SMALL, "--images", 8000)
    assert done.exit_code == 0, done.output
    first, *lines = done.stdout.splitlines()
    assert first == "shapes-width=0.125-batch_size=64: a batch of 64, no micro-batches"
    rows = {line[2:15].strip(): line[15:].strip() for line in lines if line.startswith("  ")}
    parts = [*memory.PARTS, "peak", "desktop", "context", "workspaces", "fragmentation", "usable", "work"]
    assert list(rows)[: len(parts)] == parts
    assert rows["data"] == "23 MiB"
    assert rows["peak"].endswith("MiB   of a training step, predicted")
    assert rows["context"] == "400 MiB   of 8.00 GiB, reserved"
    assert rows["work"].endswith("GFLOP   per image")
    assert "the 8000 stored images are kept on the device" in lines
    grid = lines[lines.index("") + 2 :]
    assert grid[0].split() == ["16", "32", "64", "128", "256"]
    assert [line.split()[0] for line in grid[1:]] == ["16", "32", "64", "128", "256"]


def test_images_that_are_not_given_are_not_counted() -> None:
    assert "not counted: add --images" in invoke("budget", *SMALL).stdout
    found = json.loads(invoke("budget", *SMALL, "--json").stdout)
    assert found["peak"] == sum(found["parts"].values())
    assert found["usable"] == found["total"] - sum(found["reserved"].values()) - found["fragmentation"]
    assert found["peaks"][str(found["batch_size"])][str(found["micro_batch"])] > 0


def test_a_card_that_is_assumed_is_named() -> None:
    assumed = "so an RTX 4060 is assumed"
    assert assumed in invoke("budget", *SMALL, "--device", "cpu").stdout
    assert assumed not in invoke("budget", *SMALL, "--device", "cpu", "--memory", "4GiB").stdout


def test_what_does_not_fit_or_cannot_be_built_is_one_line_with_a_remedy() -> None:
    assert_one_line(invoke("budget", *SMALL, "--memory", "1264MiB"), 2, "needs ")
    alexnet = ["--preset", "shapes", "--backbone", "alexnet", "--set", "model.stem=imagenet", "--set", "model.width=1"]
    assert_one_line(invoke("budget", *alexnet), 2, "backbone 'alexnet' can't")
