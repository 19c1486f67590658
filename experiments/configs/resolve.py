"""From what a person asks for to a Config: preset < config file < --set < named flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from experiments.configs.presets import presets
from simclr.augment import AUGMENTATIONS
from simclr.config import Config, make
from simclr.errors import UserError, unknown
from simclr.settings import Count, Section, flatten, merge, nested, parse_setting, read_toml, readable, settings

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
    "hours": "time.hours",
    "batch_size": "train.batch_size",
    "precision": "train.precision",
    "micro_batch": "train.micro_batch",
    "memory": "memory",
    "seed": "seed",
    "device": "device",
    "name": "name",
}


class Choice(Section):
    """Settings that are worth training for at least so many epochs."""

    epochs: Count = 1
    set: dict[str, Any] = Field(default_factory=dict)


class Time(Section):
    """Of a training that goes by the clock: its choices, the best first (`timed.within` takes one)."""

    hours: Annotated[float, Field(gt=0)]
    choices: Annotated[tuple[Choice, ...], Field(min_length=1)] = (Choice(),)


def _less(choice: Choice, stated: Mapping[str, Any]) -> Choice:
    """A choice without what has been set otherwise."""
    return choice.model_copy(update={"set": {path: v for path, v in choice.set.items() if path not in stated}})


class _Clock(Section):
    time: Time | None = None


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


def short(path: str) -> str:
    """A setting's name as far as it takes to know it from all others: temperature, blur.p, augment2.blur.p."""
    parts = path.split(".")
    others = [
        name
        for name in settings(Config)
        if name != path and (parts[0] == "augment2" or not name.startswith("augment2."))
    ]
    ends = (".".join(parts[-count:]) for count in range(1, len(parts)))
    return next((end for end in ends if not any(f".{name}".endswith(f".{end}") for name in others)), path)


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


def preset_table(name: str) -> dict[str, Any]:
    """The settings of a preset, over those of the preset that it builds on (its key `preset`), and so on."""
    known = presets()
    if name not in known:
        raise unknown("preset", name, known)
    return on_preset(read_toml(known[name].path))


def on_preset(table: dict[str, Any]) -> dict[str, Any]:
    """A table of settings, over those of the preset that it builds on."""
    own = {key: value for key, value in table.items() if key != "preset"}
    return merge(preset_table(str(table["preset"])), own) if "preset" in table else own


def shared(path: str) -> bool:
    """Whether a setting is the same in all that is compared: the images, the seed, the machine, the name."""
    return path in ("seed", "name", "device", "memory") or (path.split(".")[0] == "data" and path != "data.normalize")


def preset_on(name: str, config: Config) -> Config:
    """A preset, with a config's precision and what is `shared`. Raises UserError for one that goes by the clock."""
    table = flatten(preset_table(name))
    if any(path.startswith("time.") for path in table):
        raise UserError(f"{name} goes by the clock, which is for `simclr pretrain` alone")
    theirs = flatten(config.model_dump(mode="json"))
    theirs = {path: value for path, value in theirs.items() if shared(path) or path == "train.precision"}
    own = {path: value for path, value in table.items() if not shared(path)}
    return make(reduce(merge, (nested(path, value) for path, value in (own | theirs).items())))


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
    chosen, time = resolve_timed(preset, config, settings, dropped, **flags)
    if time is not None:
        raise UserError(
            f"{chosen.name} goes by the clock, which is for `simclr pretrain` alone: give what it chose there, the "
            f"config.toml of its run, as --config"
        )
    return chosen


def resolve_timed(
    preset: str | None = None,
    config: Path | None = None,
    settings: Sequence[str] = (),
    dropped: Sequence[str] = (),
    **flags: Any,
) -> tuple[Config, Time | None]:
    """`resolve`, with the [time] of a preset that goes by the clock."""
    name = preset or ("shapes" if config is None else None)
    table: dict[str, Any] = {"name": name} | preset_table(name) if name else {}
    stated: dict[str, Any] = {}  # by the config file, over what a preset may choose by the clock
    if config is not None:
        file = read_toml(config)
        table = merge(table, {"name": config.stem} | on_preset(file))
        stated = {} if at(file, "time.choices") else flatten(file)
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
        shown = [f"{short(path)}={value}" for path, value in changes.items() if path not in UNNAMED]
        table["name"] = "-".join([str(table.get("name", "simclr")), *shown, *(f"no-{name}" for name in dropped)])
    try:
        time = _Clock.model_validate({"time": table.pop("time", None)}).time
    except ValidationError as error:
        raise readable(error, _Clock) from None
    if time is not None:
        if "train.epochs" in changes:
            raise UserError(f"{table['name']} goes by the clock, which chooses the epochs: leave --epochs out")
        time = time.model_copy(update={"choices": tuple(_less(choice, stated | changes) for choice in time.choices)})
    return make(table), time
