"""The first losses of every preset, so that no change of the code changes a recipe unnoticed.

Training amplifies rounding: a difference of 1e-7 in the views can become 1e-2 in the loss after ten steps. So nearly
everything is computed in float64 here. Beside each loss, golden.json states by how much it moves when the views are
rounded differently. Ten times that is tolerated on another CPU, and where it exceeds LOOSEST, the loss says too little
to compare. The settings are also compared by their keys. After an intended change of a recipe, write the file with
`python -m tests.simclr.train.test_golden`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.configs.presets import presets
from experiments.configs.resolve import changed, resolve_timed
from simclr import views
from simclr.build import build_model
from simclr.config import Config
from simclr.data.dataset import open_dataset
from simclr.train import step
from simclr.train.loop import Interrupted, pretrain
from simclr.views import Pipeline
from tests.simclr.train.helpers import Watch

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 20
LOOSEST = 0.1  # the largest tolerance at which losses are compared
ROUNDING = 2.2e-16  # of a float64 near one
# The recipe on a small scale: a narrow network, 32 images per step, two steps per epoch (so that a warm-up of ten
# epochs reaches its peak), and views of at most 64 px.
SMALL: dict[str, dict[str, Any]] = {
    "data": {"dataset": "shapes", "dir": None, "side": None, "limit": 64},
    "model": {"width": 0.125},
    "train": {"batch_size": 32, "epochs": STEPS // 2, "precision": "fp32", "knn_every": 0, "compile": False},
}
Golden = Mapping[str, list[float]]


def recipe(name: str) -> Config:
    return resolve_timed(name)[0]


def small(config: Config) -> Config:
    changes = {f"{section}.{name}": value for section, table in SMALL.items() for name, value in table.items()}
    if config.train.norm_images() < config.train.batch_size:
        changes["train.norm_batch"] = SMALL["train"]["batch_size"] // 2
    return changed(config, changes | ({"augment.crop.size": 64} if config.view_size() else {}))


def in_float64(patch: pytest.MonkeyPatch) -> None:
    """Compute views, network, loss and update in float64 instead of float32 (or Muon's bfloat16)."""
    apply = views.apply

    def apply_in_float64(images: Tensor, pipeline: Pipeline, draws: dict[str, Tensor]) -> Tensor:
        return apply(images, pipeline, {name: u.double() for name, u in draws.items()})

    patch.setattr(torch.Tensor, "float", torch.Tensor.double)
    patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
    patch.setattr(step, "build_model", lambda *arguments: build_model(*arguments).double())
    patch.setattr(views, "apply", apply_in_float64)


# One of the presets whose small recipes are the same.
RECIPES = list({small(recipe(name)).key(): name for name in reversed(presets())}.values())


def keys() -> dict[str, str]:
    """The key of every preset and of every choice of a preset with a time budget. It covers all settings."""
    found = {}
    for name in presets():
        config, time = resolve_timed(name)
        found[name] = config.key("auto")
        for number, choice in enumerate(time.choices if time else (), 1):
            found[f"{name}, choice {number}"] = changed(config, choice.set).key("auto")
    return found


class WatchUntilEnough(Watch):
    """Stops the run when enough of its losses are known."""

    def __init__(self, enough: Callable[[list[float]], bool]) -> None:
        super().__init__()
        self.enough = enough

    @property
    def losses(self) -> list[float]:
        return [round(loss, 6) for loss in super().losses]

    def stop(self) -> bool:
        return self.enough(self.losses)


def first_losses(
    config: Config, home: Path, enough: Callable[[list[float]], bool] = lambda losses: False
) -> list[float]:
    """The losses of the recipe on a small scale, until they are `enough`."""
    config, observer = small(config), WatchUntilEnough(enough)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder, suppress(Interrupted):
        in_float64(patch)
        pretrain(config, open_dataset(config.data, home), torch.device("cpu"), Path(folder), observer)
    return observer.losses


def round_differently(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Give views an error in the last place, as another CPU does."""
    draw, exact = torch.Generator().manual_seed(seed), views.apply

    def apply(images: Tensor, pipeline: Pipeline, draws: dict[str, Tensor]) -> Tensor:
        view = exact(images, pipeline, draws)
        return view + ROUNDING * (2 * torch.rand(view.shape, generator=draw) - 1)

    monkeypatch.setattr(views, "apply", apply)


def tolerances(golden: Golden) -> list[float]:
    """The tolerance of each step whose loss can be compared."""
    return [tolerance for move in golden["moves"] if (tolerance := 10 * move + 5e-6) <= LOOSEST]


def distance(losses: list[float], golden: Golden) -> float:
    """The largest difference of the losses from the golden ones, in tolerances."""
    rows = zip(losses, golden["losses"], tolerances(golden), strict=False)
    return max((abs(loss - expected) / tolerance for loss, expected, tolerance in rows), default=0.0)


def comparable_losses(config: Config, home: Path, golden: Golden) -> list[float]:
    """All losses that can be compared with the golden ones."""
    losses = first_losses(config, home, lambda losses: len(losses) == len(tolerances(golden)))
    assert len(losses) == len(tolerances(golden))
    return losses


def is_told_apart(config: Config, home: Path, golden: Golden) -> bool:
    """Whether a config's losses differ from the golden ones. The run stops at the first that does."""
    return distance(first_losses(config, home, lambda losses: distance(losses, golden) > 1), golden) > 1


@pytest.fixture(scope="module")
def golden() -> dict[str, Golden]:
    return json.loads(GOLDEN.read_text())["losses"]  # type: ignore[no-any-return]


def test_no_preset_has_changed_its_settings() -> None:
    assert keys() == json.loads(GOLDEN.read_text())["keys"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_preset_starts_with_its_golden_losses(name: str, golden: dict[str, Golden], home: Path) -> None:
    assert distance(comparable_losses(recipe(name), home, golden[name]), golden[name]) < 1


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
def test_a_slightly_larger_rate_is_noticed(name: str, golden: dict[str, Golden], home: Path) -> None:
    config = recipe(name)
    assert is_told_apart(changed(config, {"optim.lr": 1.05 * config.optim.lr}), home, golden[name])


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_recipe_is_noticed(change: str, golden: dict[str, Golden], home: Path) -> None:
    assert is_told_apart(changed(recipe("cifar10-cpu"), CHANGES[change]), home, golden["cifar10-cpu"])


def test_a_different_rounding_is_tolerated(
    golden: dict[str, Golden], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_differently(monkeypatch, seed=100)
    name = "tiny-imagenet-4060"
    assert 0 < distance(comparable_losses(recipe(name), home, golden[name]), golden[name]) < 1


def main() -> None:
    """Write golden.json."""
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as monkeypatch:
        for name in RECIPES:
            losses, moves = first_losses(recipe(name), Path(home)), [0.0] * STEPS
            for seed in range(3):
                with monkeypatch.context() as other:
                    round_differently(other, seed)
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
