"""What the shell completes after an option or for an argument. Imports neither torch nor MLflow, which take seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path

from experiments.configs.presets import presets as known_presets
from simclr.settings import read_toml

NAMES = read_toml(Path(str(files("experiments") / "settings.toml")))  # of settings, because their classes import torch
Completion = Callable[[str], list[str]]


def of(names: Iterable[str]) -> Completion:
    """Completes one of some names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def of_runs(*kinds: str) -> Completion:
    """Completes the name of a run of these kinds, the newest first."""

    def complete(incomplete: str) -> list[str]:
        from experiments.tracking.local import names_of_runs

        return [name for name in names_of_runs(kinds) if name.startswith(incomplete)]

    return complete


presets = of(known_presets())
encoders = of_runs("pretrain", "import")
evaluated = of_runs("pretrain", "import", "eval")
comparable = of_runs("pretrain", "import", "eval", "study")
reported = of_runs("study", "search", "pretrain", "import", "eval")
groups = of_runs("study", "search")
images = [f"{name}=" for name in NAMES["config"] if name.startswith("data.")]
settings = of([f"{name}=" for name in NAMES["config"]])
protocol_settings = of([f"{name}=" for name in NAMES["protocol"]] + images)
image_settings = of(images)
