"""Settings without torch: sections, TOML, dotted names, and errors that suggest the nearest name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from simclr.errors import UserError, unknown


class Section(BaseModel):
    """A frozen table of settings. Unknown keys and infinite numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def effective_settings(self) -> dict[str, Any]:
        """The settings that can change the result, as plain values. Sections that do the same return the same."""
        return self.model_dump(mode="json")


def one_of(kind: str, choices: Callable[[], Iterable[str]]) -> AfterValidator:
    """A validator that accepts only the names that `choices` returns. `kind` names them in the error message."""

    def check(name: str) -> str:
        if name not in (names := list(choices())):
            raise unknown(kind, name, names)
        return name

    return AfterValidator(check)


Count = Annotated[int, Field(ge=1)]

UNITS = {"MiB": 2**20, "GiB": 2**30}


def memory_bytes(text: str) -> int:
    """The number of bytes in a text such as "8GiB" or "8188MiB". Raises ValueError for any other text."""
    number, unit = text[:-3].strip(), text[-3:]
    if unit not in UNITS or not number.replace(".", "", 1).isdigit() or float(number) == 0:
        raise ValueError("write it as 8GiB or 8188MiB")
    return round(float(number) * UNITS[unit])


def _check_memory(text: str) -> str:
    memory_bytes(text)
    return text


Memory = Annotated[str, AfterValidator(_check_memory)]


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted name, without those that are None."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated with the values of `over`, recursively in nested tables."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nested(path: str, value: Any) -> dict[str, Any]:
    """The nested tables for one dotted name: `nested("loss.temperature", 0.1)` -> `{"loss": {"temperature": 0.1}}`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def get_value(table: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted name in nested tables, or None if it is absent."""
    value: Any = table
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def parse_setting(text: str) -> tuple[str, Any]:
    """Split `section.key=value` into (section.key, value). The value is read as TOML, else kept as a string."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"'{text}' is not a setting: expected section.key=value, e.g. loss.temperature=0.2")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return path.strip(), parsed


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises UserError if it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read the config file {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None


def readable(error: ValidationError, model: type[BaseModel]) -> UserError:
    """The first mistake that pydantic found in the settings of `model`, as one sentence."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")  # misspelt names come first
    parts = [str(part) for part in first["loc"]]
    misspelt = parts[-1:] if first["type"] == "extra_forbidden" else []
    tables = [part for part in parts[: len(parts) - len(misspelt)] if not set("-[") & set(part)]  # drop pydantic's tags
    path = ".".join(tables + misspelt)
    if misspelt:
        return unknown("setting", path, setting_names(model))
    if first["type"] == "missing":
        return UserError(f"{path} is missing")
    if first["type"] == "value_error":
        return UserError(f"{path + ' = ' + _shown(first['input']) + ': ' if path else ''}{first['ctx']['error']}")
    message = first["msg"].removeprefix("Input should be ")
    return UserError(f"{path + ' = ' if path else ''}{_shown(first['input'])}: expected {message}")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 80 else text[:77] + "..."


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted name of every setting of `model` that `--set` and a TOML file can use."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        kinds = field.annotation, *get_args(field.annotation)  # `Section | None` has its section among its arguments
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        names += setting_names(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return names
