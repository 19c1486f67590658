"""The first losses of every preset, so that no refactoring changes a recipe unseen.

Training amplifies rounding: a difference of 1e-7 in the views can be one of 1e-2 in the loss after ten steps. So nearly
all is computed in float64 here, and golden.json has beside each loss by how much it moves when the views are rounded
otherwise; ten times that is what another CPU is allowed. Even so, of the recipes with the largest rates only the first
nine losses or more say something. The settings themselves are held by their keys. Where a recipe is changed on purpose,
`python tests/test_golden.py` writes the file.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.configs.presets import presets
from experiments.configs.resolve import changed, resolve_timed
from simclr.build import build_model
from simclr.config import Config
from simclr.data.dataset import open_dataset
from simclr.train import loop
from simclr.train.loop import pretrain
from simclr.views import Pipeline

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 20
ROUNDING = 2.2e-16  # of a float64 near one
# The recipe on a small scale: a narrow network, 32 images a step, two steps an epoch (so that a warm-up of ten epochs
# reaches its peak), views of at most 64 px.
SMALL: dict[str, dict[str, Any]] = {
    "data": {"dataset": "shapes", "dir": None, "side": None, "limit": 64},
    "model": {"width": 0.125},
    "train": {"batch_size": 32, "epochs": STEPS // 2, "precision": "fp32", "knn_every": 0},
}


def recipe(name: str) -> Config:
    return resolve_timed(name)[0]


def small(config: Config) -> Config:
    changes = {f"{section}.{name}": value for section, table in SMALL.items() for name, value in table.items()}
    if config.train.norm_images() < config.train.batch_size:
        changes["train.norm_batch"] = SMALL["train"]["batch_size"] // 2
    return changed(config, changes | ({"augment.crop.size": 64} if config.view_size() else {}))


def in_float64(patch: pytest.MonkeyPatch) -> None:
    """Views, network, loss and update, where the suite has float32 (bfloat16 in Muon's iterations)."""
    apply = loop.apply
    patch.setattr(torch.Tensor, "float", torch.Tensor.double)
    patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
    patch.setattr(loop, "build_model", lambda *arguments: build_model(*arguments).double())
    patch.setattr(
        loop,
        "apply",
        lambda images, pipeline, draws: apply(images, pipeline, {k: u.double() for k, u in draws.items()}),
    )


# One of those that begin alike.
RECIPES = list({small(recipe(name)).key(): name for name in reversed(presets())}.values())


def keys() -> dict[str, str]:
    """The key of every preset, and of every choice of those that go by the clock: any setting that counts is in it."""
    found = {}
    for name in presets():
        config, time = resolve_timed(name)
        found[name] = config.key()
        for number, choice in enumerate(time.choices if time else (), 1):
            found[f"{name}, choice {number}"] = changed(config, choice.set).key()
    return found


def first_losses(config: Config, home: Path) -> list[float]:
    config, losses = small(config), []
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        in_float64(patch)
        data = open_dataset(config.data, home)
        pretrain(config, data, torch.device("cpu"), Path(folder), lambda m, _: losses.append(round(m["train/loss"], 6)))
    assert len(losses) == STEPS
    return losses


def round_otherwise(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Views with an error of their own in the last place, as another CPU's are."""
    draw, exact = torch.Generator().manual_seed(seed), loop.apply

    def apply(images: Tensor, pipeline: Pipeline, draws: dict[str, Tensor]) -> Tensor:
        view = exact(images, pipeline, draws)
        return view + ROUNDING * (2 * torch.rand(view.shape, generator=draw) - 1)

    monkeypatch.setattr(loop, "apply", apply)


def apart(losses: list[float], golden: dict[str, list[float]]) -> float:
    """How far the losses are from the golden ones at most, in tolerances."""
    rows = zip(losses, golden["losses"], golden["moves"], strict=True)
    return max(abs(loss - expected) / (10 * move + 5e-6) for loss, expected, move in rows)


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, list[float]]]:
    return json.loads(GOLDEN.read_text())["losses"]  # type: ignore[no-any-return]


def test_no_preset_has_changed_its_settings() -> None:
    assert keys() == json.loads(GOLDEN.read_text())["keys"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_preset_begins_as_it_did(name: str, golden, home: Path) -> None:
    assert apart(first_losses(recipe(name), home), golden[name]) < 1


CHANGES = {
    "temperature": {"loss.temperature": 0.21},
    "strength": {"augment.color_jitter.strength": 0.52},
    "crop": {"augment.crop.scale": [0.22, 1.0]},
    "grayscale": {"augment.grayscale.p": 0.25},
    "views": {"train.views": "split"},
    "head": {"model.hidden_dim": 63},
    "schedule": {"optim.warmup_epochs": 2},
}


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_passes_with_a_slightly_larger_rate(name: str, golden, home: Path) -> None:
    config = recipe(name)
    assert apart(first_losses(changed(config, {"optim.lr": 1.05 * config.optim.lr}), home), golden[name]) > 1


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_recipe_does_not_pass(change: str, golden, home: Path) -> None:
    assert apart(first_losses(changed(recipe("cifar10-cpu"), CHANGES[change]), home), golden["cifar10-cpu"]) > 1


@pytest.mark.parametrize("name", ["tiny-imagenet-4060", "paper-imagenet"])
def test_another_rounding_passes(name: str, golden, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    round_otherwise(monkeypatch, seed=100)
    assert 0 < apart(first_losses(recipe(name), home), golden[name]) < 1


def main() -> None:
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as monkeypatch:
        for name in RECIPES:
            losses, moves = first_losses(recipe(name), Path(home)), [0.0] * STEPS
            for seed in range(3):
                with monkeypatch.context() as other:
                    round_otherwise(other, seed)
                    moved = first_losses(recipe(name), Path(home))
                moves = [max(move, abs(a - b)) for move, a, b in zip(moves, losses, moved, strict=True)]
            moves = [round(max(moves[: step + 1]), 6) for step in range(STEPS)]
            lines.append(f"    {json.dumps(name)}: {json.dumps({'losses': losses, 'moves': moves})}")
            print(name, losses[-1], moves[-1], flush=True)
    losses_text = ",\n".join(lines)
    settings = ",\n".join(f"    {json.dumps(name)}: {json.dumps(key)}" for name, key in keys().items())
    GOLDEN.write_text(f'{{\n  "keys": {{\n{settings}\n  }},\n  "losses": {{\n{losses_text}\n  }}\n}}\n')


if __name__ == "__main__":
    main()
