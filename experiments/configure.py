"""From what a person asks for to a Config: preset < config file < --set < named flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simclr.augment import AUGMENTATIONS
from simclr.config import Config, make, merge, nested, parse_setting, read_toml
from simclr.errors import unknown

from .recipes import presets

# Named flags and the setting that each one sets.
FLAGS = {
    "dataset": "data.dataset",
    "data_dir": "data.dir",
    "on_bad_image": "data.on_bad_image",
    "backbone": "model.backbone",
    "head": "model.head",
    "temperature": "loss.temperature",
    "lr": "optim.lr",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "precision": "train.precision",
    "micro_batch": "train.micro_batch",
    "memory": "memory",
    "seed": "seed",
    "device": "device",
    "name": "name",
}


UNNAMED = ("data.dir", "data.on_bad_image", "seed", "device", "memory")  # settings that don't show in a run's name


def drop(table: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings without one augmentation, in both views."""
    if name not in AUGMENTATIONS:
        raise unknown("augmentation", name, AUGMENTATIONS)
    for view in ("augment", "augment2") if "augment2" in table else ("augment",):
        table = merge(table, nested(f"{view}.{name}.p", 0.0))
    return table


def at(table: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted name in nested tables; None where there is none."""
    value: Any = table
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A config with some settings changed. Raises UserError where one is not valid.

    As in a preset, what is set for view one holds for view two where the two agree.
    """
    table = config.model_dump(mode="json")
    for path, value in changes.items():
        second = "augment2." + path.removeprefix("augment.")
        follows = path.startswith("augment.") and at(table, path) == at(table, second) and second not in changes
        for each in (path, second) if follows and config.augment2 is not None else (path,):
            table = merge(table, nested(each, value))
    return make(table)


def resolve(
    preset: str | None = None,
    config: Path | None = None,
    settings: Sequence[str] = (),
    dropped: Sequence[str] = (),
    **flags: Any,
) -> Config:
    """The Config that was asked for; a flag that is None was not given. Raises UserError for what is not valid.

    Without a name of its own it is called by its preset or file and by what was changed, e.g. shapes-temperature=0.1.
    """
    known = presets()
    name = preset or ("shapes" if config is None else None)
    table: dict[str, Any] = {"name": name} if name else {}
    if name is not None:
        if name not in known:
            raise unknown("preset", name, known)
        table = merge(table, read_toml(known[name].path))
    if config is not None:
        table = merge(table, {"name": config.stem} | read_toml(config))
    changes: dict[str, object] = {}
    for text in settings:
        path, value = parse_setting(text)
        table, changes[path] = merge(table, nested(path, value)), value
    for flag, value in flags.items():
        if value is not None:
            path = FLAGS[flag]
            value = str(value.expanduser().resolve()) if isinstance(value, Path) else value
            table, changes[path] = merge(table, nested(path, value)), value
    for augmentation in dropped:
        table = drop(table, augmentation)
    if "name" not in changes:
        shown = [f"{path.rpartition('.')[2]}={value}" for path, value in changes.items() if path not in UNNAMED]
        table["name"] = "-".join([str(table.get("name", "simclr")), *shown, *(f"no-{name}" for name in dropped)])
    return make(table)
