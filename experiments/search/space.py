"""The parameters that a search varies, read from space.toml or a file in its format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from experiments.configs.resolve import changed
from experiments.studies.plan import refuse_fixed
from simclr.config import Config
from simclr.errors import UserError, unknown
from simclr.progress import SILENT, Observer
from simclr.settings import MOST_VALUES, Many, Section, get_value, read_toml, readable, setting_names


class Parameter(Section):
    """A [[parameter]] of a space. The header of space.toml explains the format."""

    setting: str
    choices: Annotated[Many[Any], Field(max_length=MOST_VALUES)] = ()
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    when: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)

    @model_validator(mode="after")
    def _has_choices_or_a_range(self) -> Parameter:
        known = setting_names(Config)
        for name in (self.setting, *self.when):
            if name not in known:
                raise unknown("setting", name, known)
        refuse_fixed(self.setting)
        is_range = self.low is not None and self.high is not None
        if is_range == bool(self.choices) or (self.choices and (self.low, self.high, self.log) != (None, None, False)):
            raise ValueError("expected either choices, or low and high (and optionally log)")
        if self.low is not None and self.high is not None:
            if not self.low < self.high:
                raise ValueError(f"the range is empty: low = {self.low} must be less than high = {self.high}")
            if self.log and self.low <= 0:
                raise ValueError(f"low = {self.low} must be greater than 0 on a logarithmic scale")
        return self

    @property
    def name(self) -> str:
        """The parameter's name in Optuna: the setting, and the condition under which it is varied."""
        conditions = ", ".join(f"{name}={value}" for name, value in self.when.items())
        return f"{self.setting} ({conditions})" if conditions else self.setting

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The choices, or both ends of the range."""
        return self.choices or (self.low, self.high)

    def encode(self, value: Any) -> Any:
        """A value of the setting as Optuna stores it. None if the space doesn't contain it."""
        if self.choices:
            return label if (label := json.dumps(value)) in map(json.dumps, self.choices) else None
        low, high = self.extremes
        return value if isinstance(value, int | float) and low <= value <= high else None

    def suggest(self, trial: Any) -> Any:
        """The value of the setting that Optuna suggests for one of its trials."""
        if self.choices:
            labels = {json.dumps(choice): choice for choice in self.choices}  # Optuna can't store lists
            return labels[trial.suggest_categorical(self.name, list(labels))]
        low, high = self.extremes
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(self.name, low, high, log=self.log)
        return trial.suggest_float(self.name, low, high, log=self.log)


def load_space(path: Path | None = None) -> list[Parameter]:
    """The parameters in a file (default: the space that comes with the suite). Raises UserError if it is not valid."""
    path = path or Path(str(files("experiments") / "space.toml"))
    content = read_toml(path)
    tables = content.pop("parameter", None)
    if not isinstance(tables, list) or not 1 <= len(tables) <= MOST_VALUES:
        raise UserError(
            f"{path} has no [[parameter]], or over {MOST_VALUES}: expected the format of experiments/space.toml"
        )
    if content:
        raise unknown(f"table of {path}", next(iter(content)), ["parameter"])
    parameters: list[Parameter] = []
    for number, table in enumerate(tables, 1):
        try:
            parameter = Parameter.model_validate(table)
        except ValidationError as error:
            raise UserError(f"{path}, parameter {number}: {readable(error, Parameter, 'key')}") from None
        if parameter.name in {other.name for other in parameters}:
            raise UserError(
                f"{path} has '{parameter.name}' twice: remove one, or give them different `when` conditions"
            )
        parameters.append(parameter)
    positions = {parameter.setting: position for position, parameter in enumerate(parameters)}  # of the last one
    for position, parameter in enumerate(parameters):
        for name in parameter.when:
            if positions.get(name, -1) >= position:
                raise UserError(f"{path}: '{parameter.name}' depends on '{name}', so move '{name}' before it")
    return parameters


def check_space(parameters: Sequence[Parameter], baseline: Config) -> None:
    """Raises UserError if a choice or an end of a range is not a valid value of its setting."""
    for parameter in parameters:
        for value in parameter.extremes:
            changed(baseline, {**parameter.when, parameter.setting: value})


def fitting(parameters: Sequence[Parameter], images: int, observer: Observer = SILENT) -> list[Parameter]:
    """The parameters without batches that are larger than the number of images to pre-train on. A message names what is
    left out.

    If none is left, the batch size is not searched, and stays as the config has it.
    """
    found = []
    for parameter in parameters:
        if parameter.setting == "train.batch_size" and parameter.choices:
            parameter = parameter.model_copy(update={"choices": tuple(c for c in parameter.choices if c <= images)})
        if parameter.choices or parameter.low is not None:
            found.append(parameter)
    if found != list(parameters):
        observer.say(
            f"batches of more than {images} images are not tried, because there are no more images to pre-train on"
        )
    return found


def used(parameters: Sequence[Parameter], baseline: Config, observer: Observer = SILENT) -> list[Parameter]:
    """The parameters without those of methods that the config doesn't train. A message names what is left out."""
    unused = baseline.unused_sections()
    found = [parameter for parameter in parameters if parameter.setting.partition(".")[0] not in unused]
    if left := ", ".join(parameter.setting for parameter in parameters if parameter not in found):
        observer.say(f"not searched, because method '{baseline.method}' doesn't use it: {left}")
    return found


def suggest_settings(trial: Any, parameters: Sequence[Parameter], baseline: Config) -> dict[str, Any]:
    """A value for each setting whose condition is met in one of Optuna's trials."""
    values: dict[str, Any] = {}
    table = baseline.model_dump(mode="json")
    for parameter in parameters:
        if all(values.get(name, get_value(table, name)) == value for name, value in parameter.when.items()):
            values[parameter.setting] = parameter.suggest(trial)
    return values


def starting_point(parameters: Sequence[Parameter], baseline: Config) -> dict[str, Any]:
    """Optuna's parameters of the trial that equals the baseline, without the values that the space doesn't contain."""
    table = baseline.model_dump(mode="json")
    met = [p for p in parameters if all(get_value(table, name) == value for name, value in p.when.items())]
    return {p.name: encoded for p in met if (encoded := p.encode(get_value(table, p.setting))) is not None}


def drawn_settings(values: Mapping[str, Any], baseline: Config) -> list[str]:
    """The settings of the trial that starts from a config whose values are not the config's: the space lacks those."""
    own = baseline.model_dump(mode="json")
    return [path for path, value in values.items() if value != get_value(own, path)]


def in_short(value: object) -> str:
    """The value of a setting, with a rounded number."""
    if isinstance(value, bool):
        return str(value).lower()  # as --set accepts it
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def start_trial(number: int, drawn: Sequence[str]) -> str:
    """What the trial that starts from the config has of it, given its `drawn_settings`."""
    if not drawn:
        return f"trial {number} is your config"
    were, values = ("was", "value") if len(drawn) == 1 else ("were", "values")
    return (
        f"trial {number} is as close to your config as the search space allows: {', '.join(drawn)} {were} drawn at "
        f"random, because the space doesn't contain your {values}"
    )
