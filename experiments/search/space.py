"""What a search varies, as data: the parameters of space.toml or of a file in its format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from experiments.configs.resolve import at, changed
from experiments.studies.plan import refuse_fixed
from simclr.config import Config
from simclr.errors import UserError, unknown
from simclr.settings import Section, read_toml, readable, settings


class Parameter(Section):
    """A [[parameter]]: see the header of space.toml."""

    setting: str
    choices: tuple[Any, ...] = ()
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    when: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)

    @model_validator(mode="after")
    def _a_range_or_choices(self) -> Parameter:
        known = settings(Config)
        for name in (self.setting, *self.when):
            if name not in known:
                raise unknown("setting", name, known)
        refuse_fixed(self.setting)
        whole = self.low is not None and self.high is not None
        if whole == bool(self.choices) or (self.choices and (self.low, self.high, self.log) != (None, None, False)):
            raise ValueError("expected either choices, or low and high (and log, if it is to be)")
        if self.low is not None and self.high is not None:
            if not self.low < self.high:
                raise ValueError(f"an empty range: low = {self.low} is not below high = {self.high}")
            if self.log and self.low <= 0:
                raise ValueError(f"a logarithmic range begins above 0, not at low = {self.low}")
        return self

    @property
    def name(self) -> str:
        """Of the parameter in Optuna: the setting, and when it is varied."""
        conditions = ", ".join(f"{name}={value}" for name, value in self.when.items())
        return f"{self.setting} ({conditions})" if conditions else self.setting

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Its choices, or the ends of its range."""
        return self.choices or (self.low, self.high)

    def given(self, value: Any) -> Any:
        """A value as `suggest` knows it; None where it is not in the space."""
        if self.choices:
            return label if (label := json.dumps(value)) in map(json.dumps, self.choices) else None
        low, high = self.extremes
        return value if isinstance(value, int | float) and low <= value <= high else None

    def suggest(self, trial: Any) -> Any:
        """A trial's value of it; a trial is Optuna's."""
        if self.choices:
            labels = {json.dumps(choice): choice for choice in self.choices}  # Optuna knows no lists
            return labels[trial.suggest_categorical(self.name, list(labels))]
        low, high = self.extremes
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(self.name, low, high, log=self.log)
        return trial.suggest_float(self.name, low, high, log=self.log)


def space(path: Path | None = None) -> list[Parameter]:
    """The parameters in a file (default: those that come with the suite). Raises UserError for what is not valid."""
    path = path or Path(str(files("experiments") / "space.toml"))
    tables = read_toml(path).get("parameter")
    if not isinstance(tables, list) or not tables:
        raise UserError(f"{path} has no [[parameter]]: expected them as in experiments/space.toml")
    found: list[Parameter] = []
    for number, table in enumerate(tables, 1):
        try:
            parameter = Parameter.model_validate(table)
        except ValidationError as error:
            raise UserError(f"{path}, parameter {number}: {readable(error, Parameter)}") from None
        if parameter.name in {other.name for other in found}:
            raise UserError(f"{path} has '{parameter.name}' twice: one of them needs a `when`")
        found.append(parameter)
    places = {parameter.setting: number for number, parameter in enumerate(found)}  # of the last one
    for number, parameter in enumerate(found):
        for name in parameter.when:
            if places.get(name, -1) >= number:
                raise UserError(f"{path}: '{parameter.name}' depends on '{name}', which must stand before it")
    return found


def check_space(parameters: Sequence[Parameter], baseline: Config) -> None:
    """Raises UserError where a choice, or an end of a range, is no value of its setting."""
    for parameter in parameters:
        for value in parameter.extremes:
            changed(baseline, {**parameter.when, parameter.setting: value})


def suggested(trial: Any, parameters: Sequence[Parameter], baseline: Config) -> dict[str, Any]:
    """A value for each setting that is varied, in this trial's conditions."""
    values: dict[str, Any] = {}
    table = baseline.model_dump(mode="json")
    for parameter in parameters:
        if all(values.get(name, at(table, name)) == value for name, value in parameter.when.items()):
            values[parameter.setting] = parameter.suggest(trial)
    return values


def starting_point(parameters: Sequence[Parameter], baseline: Config) -> dict[str, Any]:
    """Optuna's parameters of the trial that is the baseline, but for values that are not in the space."""
    table = baseline.model_dump(mode="json")
    met = [p for p in parameters if all(at(table, name) == value for name, value in p.when.items())]
    return {p.name: given for p in met if (given := p.given(at(table, p.setting))) is not None}
