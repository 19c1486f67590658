"""Build a Config from what a user asks for: preset < config file < --set and named options < --drop."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from experiments.configs.flags import FLAGS
from experiments.configs.presets import presets
from experiments.configs.start import with_weights
from simclr.augment import AUGMENTATIONS
from simclr.config import Config, make
from simclr.errors import UserError, unknown
from simclr.methods import METHODS
from simclr.settings import (
    MOST_VALUES,
    STARTS,
    Epochs,
    Many,
    Section,
    check_new_name,
    flatten,
    get_value,
    merge,
    nested,
    parse_setting,
    read_toml,
    readable,
    setting_names,
)

# Settings that a run's name doesn't mention.
UNNAMED = ("data.dir", "data.labels", "data.on_bad_image", "seed", "device", "memory", "threads", "train.keep_every")


class Choice(Section):
    """Settings that are used if the time allows this many epochs."""

    epochs: Epochs = 1  # number of epochs that must fit into the time
    set: dict[str, Any] = Field(default_factory=dict)  # settings by their dotted names, with their values

    def without(self, paths: Container[str]) -> Choice:
        """The same choice, but these settings are left as they are."""
        return self.model_copy(update={"set": {path: value for path, value in self.set.items() if path not in paths}})


class TimeBudget(Section):
    """The table [time]: how long to train, and what to choose from, best first (see time_budget.choose_config)."""

    hours: Annotated[float, Field(gt=0, le=8760)]  # hours for the whole command, at most a year
    # A batch larger than the data set is halved until it fits, but not below this. Without it, or if you set
    # train.batch_size, such a batch is an error.
    smallest_batch: Annotated[int, Field(ge=2)] | None = None
    # Tables with `epochs` and `set`. The first whose epochs fit into the time is trained, or else the last.
    choices: Annotated[Many[Choice], Field(min_length=1, max_length=MOST_VALUES)] = (Choice(),)


class _Timed(Section):
    """Validates [time] under its own name, which error messages then show."""

    time: TimeBudget | None = None


def short_name(path: str) -> str:
    """The shortest end of a setting's name that no other setting has: temperature, blur.p, augment2.blur.p.

    Settings of methods other than SimCLR keep their whole names, and don't make others longer.
    """
    parts = path.split(".")
    ignored = {method.section_name for method in METHODS.values()} - {"loss"}
    if parts[0] in ignored:
        return path
    ignored |= {"augment2"} - {parts[0]}
    taken = {path, "augment.views"}  # `views` has always been short for train.views, in the names of cells too
    others = [name for name in setting_names(Config) if name not in taken and name.partition(".")[0] not in ignored]
    ends = (".".join(parts[-count:]) for count in range(1, len(parts)))
    return next((end for end in ends if not any(f".{name}".endswith(f".{end}") for name in others)), path)


def short_setting(path: str, value: Any) -> str:
    """A setting with its value, as names of runs and cells show it. Of a file to start from it is the name."""
    return f"{short_name(path)}={Path(str(value)).name if path in STARTS else value}"


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A config with some settings changed. Raises UserError if a value is not valid.

    As in a preset, a change of the first view also changes the second one if both had the same value.
    """
    table, names = config.model_dump(mode="json"), setting_names(Config)
    for path, value in changes.items():
        second = "augment2." + path.removeprefix("augment.")
        equal = path.startswith("augment.") and get_value(table, path) == get_value(table, second)
        both = equal and second in names and second not in changes and config.augment2 is not None
        for each in (path, second) if both else (path,):
            table = merge(table, nested(each, value))
    return with_weights(make(table))


def preset_table(name: Any) -> dict[str, Any]:
    """The settings of a preset, together with those of the presets that it builds on. Raises UserError if unknown."""
    known = presets()
    if not isinstance(name, str) or name not in known:
        raise unknown("preset", name, known)
    return _on_preset(read_toml(known[name].path))


def _on_preset(table: dict[str, Any]) -> dict[str, Any]:
    """A table of settings, merged over the preset that its key `preset` names."""
    own = {key: value for key, value in table.items() if key != "preset"}
    return merge(preset_table(table["preset"]), own) if "preset" in table else own


def shared(path: str) -> bool:
    """Whether runs that are compared must have the same value: images, seed and machine; the name doesn't matter."""
    return path in ("seed", "name", "device", "memory", "threads") or (
        path.split(".")[0] == "data" and path != "data.normalize"
    )


def preset_on(name: str, config: Config) -> Config:
    """A preset with the precision and the `shared` settings of a config. Raises UserError if it has a time budget."""
    table = flatten(preset_table(name))
    if any(path.startswith("time.") for path in table):
        raise UserError(f"preset '{name}' has a time budget, which only `simclr pretrain` supports: choose another one")
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
    """The Config that a user asked for. Flags that are None were not given. Raises UserError for invalid settings.

    Unless the user names it, it is named after the preset or file and the changes to it, e.g. shapes-temperature=0.1.
    """
    chosen, time = resolve_timed(preset, config, settings, dropped, **flags)
    if time is not None:
        raise UserError(
            f"{chosen.name} has a time budget, which only `simclr pretrain` supports. Run that first, then use the "
            f"config.toml of its run as --config"
        )
    return chosen


def resolve_timed(
    preset: str | None = None,
    config: Path | None = None,
    settings: Sequence[str] = (),
    dropped: Sequence[str] = (),
    **flags: Any,
) -> tuple[Config, TimeBudget | None]:
    """Like `resolve`, but allows a time budget and returns it too."""
    name = "shapes" if preset is None and config is None else preset
    table: dict[str, Any] = {} if name is None else {"name": name} | preset_table(name)
    from_file: dict[str, Any] = {}  # settings of the config file that override those of a preset's choices
    if config is not None:
        file = read_toml(config)
        table = merge(table, {"name": config.stem} | _on_preset(file))
        from_file = {} if get_value(file, "time.choices") else flatten(file)
    changes, own = dict(_changes(settings, flags)), table.get("data", {})
    if changes.get("data.labels") is not None and isinstance(own, dict) and own.get("labels") is None:
        table = merge(table, nested("data.unlabelled", False))  # else the labels would be dropped in silence
    for path, value in changes.items():
        table = merge(table, nested(path, value))
    check_distinct("--drop", dropped)
    for augmentation in dropped:
        table = _drop(table, augmentation)
    if "name" in changes:
        check_new_name(str(changes["name"]))
    else:
        shown = [short_setting(path, value) for path, value in changes.items() if path not in UNNAMED]
        start = table.get("name", "simclr")
        added = [*shown, *(f"no-{name}" for name in dropped)]
        if added and isinstance(start, str):  # else the config is refused
            table["name"] = "-".join([start, *added])
    try:
        time = _Timed.model_validate({"time": table.pop("time", None)}).time
    except ValidationError as error:
        raise readable(error, _Timed) from None
    if time is not None:
        if "train.epochs" in changes:
            budget = "--hours" if "time.hours" in changes else f"preset '{preset}'" if preset else f"{config}"
            raise UserError(
                f"{budget} sets a time budget, which determines the epochs: leave out --epochs (train.epochs)"
                + (", or leave out --hours" if "time.hours" in changes else "")
                + (", or start from --preset cifar10-cpu --dataset folder" if preset == "half-hour" else "")
            )
        choices = tuple(choice.without(from_file | changes) for choice in time.choices)
        smallest = None if "train.batch_size" in from_file | changes else time.smallest_batch
        time = time.model_copy(update={"choices": choices, "smallest_batch": smallest})
    try:
        chosen = with_weights(make(table))
    except UserError as error:
        raise UserError(f"{config}: {error}") if _is_in_file(error, config) else error from None
    check_method(chosen, changes)
    for choice in time.choices if time is not None else ():
        changed(chosen, choice.set)  # also the one that comes last must be valid, before any work
    return chosen, time


def _is_in_file(error: UserError, config: Path | None) -> bool:
    """Whether a mistake in settings is one of the config file: then the file alone has it too."""
    if config is None:
        return False
    table = _on_preset(read_toml(config))
    table.pop("time", None)
    try:
        make(table)
    except UserError as alone:
        return str(alone) == str(error)
    return False


def check_method(config: Config, changes: Iterable[str]) -> None:
    """Raise UserError if a setting of another method was changed, because it would do nothing."""
    for path in changes:
        section, _, name = path.partition(".")
        if section in config.unused_sections():
            own = METHODS[config.method].section_name
            has = name in type(config.method_settings()).model_fields
            remedy = f"set {own}.{name} instead" if has else "leave it out"
            raise UserError(f"{path} has no effect with method '{config.method}': {remedy}, or choose another --method")


def check_augmentation(name: str) -> None:
    """Raise UserError if there is no augmentation of this name."""
    if name in AUGMENTATIONS:
        return
    if set(parts := re.split(r"[,\s]+", name.strip())) <= set(AUGMENTATIONS):
        raise UserError(
            f"'{name}' names several augmentations: repeat the option, such as --drop {' --drop '.join(parts)}"
        )
    raise unknown("augmentation", name, AUGMENTATIONS)


def check_distinct(option: str, names: Sequence[str]) -> None:
    """Raise UserError if an option that can be repeated got the same name twice."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{option} {name} is given twice: leave one out")


def _changes(settings: Sequence[str], flags: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What --set and then the named options change. Raises UserError if two of them set one setting differently."""
    given = [(*parse_setting(text), f"--set {text}") for text in settings]
    for flag, value in flags.items():
        if value is not None:
            plain = str(value) if isinstance(value, Path) else value
            given.append((FLAGS[flag], plain, f"--{flag.replace('_', '-')} {plain}"))
    known: dict[str, tuple[Any, str]] = {}  # the value of each setting, and the words that give it
    for path, value, words in given:
        for name, own in flatten(nested(path, value)).items():
            before, earlier = known.setdefault(name, (own, words))
            if before != own:
                raise UserError(f"{earlier} and {words} give {name} two different values: leave one of them out")
        yield path, value


def _drop(table: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings without one augmentation, in both views. Raises UserError if it is unknown."""
    check_augmentation(name)
    for view in ("augment", "augment2") if "augment2" in table else ("augment",):
        table = merge(table, nested(f"{view}.{name}.p", 0.0))
    return table
