"""Settings without torch: sections, TOML, dotted names, and errors that suggest the nearest name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from simclr.errors import UserError, unknown


def _one_of(kind: str, choices: Callable[[], Iterable[str]]) -> AfterValidator:
    """Checks that a string is among the names of a table."""

    def check(name: str) -> str:
        if name not in (names := list(choices())):
            raise unknown(kind, name, names)
        return name

    return AfterValidator(check)


class Section(BaseModel):
    """A frozen table of settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


Beta = Annotated[float, Field(ge=0, lt=1)]


Count = Annotated[int, Field(ge=1)]


UNITS = {"MiB": 2**20, "GiB": 2**30}


def memory_bytes(text: str) -> int:
    """The bytes that "8GiB" or "8188MiB" is. Raises ValueError for anything else."""
    number, unit = text[:-3].strip(), text[-3:]
    if unit not in UNITS or not number.replace(".", "", 1).isdigit() or float(number) == 0:
        raise ValueError("write it as 8GiB or 8188MiB")
    return round(float(number) * UNITS[unit])


def _memory(text: str) -> str:
    memory_bytes(text)
    return text


Memory = Annotated[str, AfterValidator(_memory)]


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names and their values, without those that are None."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in their place, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nested(path: str, value: Any) -> dict[str, Any]:
    """`nested("loss.temperature", 0.1)` -> `{"loss": {"temperature": 0.1}}`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def parse_setting(text: str) -> tuple[str, Any]:
    """`section.key=value` as (section.key, value); the value is TOML, or else a plain string."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"'{text}' is not a setting: expected section.key=value, e.g. loss.temperature=0.2")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return path.strip(), parsed


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file, or a UserError that names the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read the config file {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None


def readable(error: ValidationError, model: type[BaseModel]) -> UserError:
    """The first mistake that pydantic found, in a sentence."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")  # a misspelt name, before others
    parts = [str(part) for part in first["loc"]]
    misspelt = parts[-1:] if first["type"] == "extra_forbidden" else []
    tables = [part for part in parts[: len(parts) - len(misspelt)] if not set("-[") & set(part)]  # pydantic's own tags
    path = ".".join(tables + misspelt)
    if misspelt:
        return unknown("setting", path, settings(model))
    if first["type"] == "missing":
        return UserError(f"{path} is missing")
    if first["type"] == "value_error":
        return UserError(f"{path + ' = ' + _shown(first['input']) + ': ' if path else ''}{first['ctx']['error']}")
    message = first["msg"].removeprefix("Input should be ")
    return UserError(f"{path} = {_shown(first['input'])}: expected {message}")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 80 else text[:77] + "..."


def settings(model: type[BaseModel]) -> list[str]:
    """Every dotted name of a setting of Config, or of another model, that `--set` and a TOML file may use."""

    def walk(model: type[BaseModel], prefix: str) -> Iterable[str]:
        for name, field in model.model_fields.items():
            kinds = field.annotation, *get_args(field.annotation)  # also of `Section | None`
            if section := next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None):
                yield from walk(section, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    return list(walk(model, ""))
