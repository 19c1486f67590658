"""Settings without torch: sections, TOML, dotted names, and errors that suggest the nearest name."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.fields import FieldInfo

from simclr.errors import UserError, printable, unknown


class Section(BaseModel):
    """A frozen table of settings.

    Unknown keys, infinite numbers and values of another type are errors, but a whole number is also a real one. Where
    the default is none and a text would not do, "none" stands for it, because TOML has no such value.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_none(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        unset = [key for key, value in values.items() if value == "none" and takes_none(cls.model_fields.get(key))]
        return values | dict.fromkeys(unset)

    def effective_settings(self) -> dict[str, Any]:
        """The settings that can change the result, as plain values. Sections that do the same return the same."""
        return self.model_dump(mode="json")


def takes_none(field: FieldInfo | None) -> bool:
    """Whether "none" stands for the default of a setting, which can't be a text then."""
    kinds = {get_args(kind)[0] if get_args(kind) else kind for kind in get_args(field and field.annotation)}
    return field is not None and field.default is None and not kinds & {str, Path}


def later(default: Any, **bounds: Any) -> Any:
    """A setting that was added later. Records leave out its default, so earlier runs keep their keys and names."""
    return Field(default, exclude_if=lambda value: value == default, **bounds)


def _check_one_of(name: str, kind: str, choices: Callable[[], Iterable[str]]) -> str:
    if name not in (names := list(choices())):
        raise unknown(kind, name, names)
    return name


def one_of(kind: str, choices: Callable[[], Iterable[str]]) -> AfterValidator:
    """A validator that accepts only the names that `choices` returns. `kind` names them in the error message."""
    return AfterValidator(partial(_check_one_of, kind=kind, choices=choices))


# Bounds that settings share. They lie far above anything in use. What is within them can be computed and recorded.
MOST_EPOCHS = 10**7  # published runs have up to 5,000, but an epoch of a few images takes milliseconds
MOST_IMAGES = 10**9  # of a data set; the largest published ones have a few billion, for many machines
STARTS = ("init", "distill.teacher")  # settings that may be the path of a file that training starts from
LARGEST_BATCH = 2**20  # published ones have up to 65,536 images
LARGEST = 1e30  # of a learning rate or a penalty: with it, a step still fits into float32, which ends at 3e38
LARGEST_SEED = 2**63 - 1  # TOML's largest integer
MOST_VALUES = 100  # in a list, each of which is measured or trained
LONGEST_NAME = 1000  # characters, also of what the suite adds, such as the names of cells
LONGEST_NEW_NAME = 250  # MLflow's databases allow as many

Count = Annotated[int, Field(ge=1, le=MOST_IMAGES)]
Epochs = Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
BatchSize = Annotated[int, Field(ge=2, le=LARGEST_BATCH)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Rate = Annotated[float, Field(gt=0, le=LARGEST)]

T = TypeVar("T")


def _check_pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("expected two numbers, such as [0.2,1.0]")
    return value


Pair = Annotated[tuple[T, T], Strict(False), BeforeValidator(_check_pair)]  # TOML has lists
Many = Annotated[tuple[T, ...], Strict(False)]


def check_distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    """Raises ValueError if a value occurs twice."""
    if len(set(values)) < len(values):
        raise ValueError("expected each value once")
    return values


Values = Annotated[Many[T], Field(min_length=1, max_length=MOST_VALUES), AfterValidator(check_distinct)]


def check_name(name: str) -> str:
    """Raises ValueError for a name that is empty or too long, or that has control characters."""
    if not name.strip():
        raise ValueError("expected a name that is not empty")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"expected at most {LONGEST_NAME} characters, got {len(name)}")
    if printable(name) != name:
        raise ValueError("expected a name without control characters, such as line ends")
    return name


Name = Annotated[str, AfterValidator(check_name)]


def check_new_name(name: str) -> str:
    """A name that a user gives to something new. Raises UserError unless it is a `Name`, short, and not a path."""
    try:
        check_name(name)
    except ValueError as error:
        raise UserError(f"name = {shown(name)}: {error}") from None
    if "/" in name or "\\" in name:
        raise UserError(f"name = {shown(name)}: expected a name, not a path: leave out / and \\")
    if len(name) > LONGEST_NEW_NAME:
        raise UserError(
            f"name = {shown(name)}: expected at most {LONGEST_NEW_NAME} characters, got {len(name)}: choose a --name"
        )
    return name


def _check_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("expected a path without null characters")
    return path


Folder = Annotated[Path, Strict(False), AfterValidator(_check_path)]  # TOML has strings

UNITS = {"MiB": 2**20, "GiB": 2**30}
MEMORY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(MiB|GiB)")
MOST_MEMORY = 2**50  # bytes, 1 PiB: a thousand times what an accelerator has


def memory_bytes(text: str) -> int:
    """The number of bytes in a text such as "8GiB" or "8188MiB". Raises ValueError for any other text."""
    found = MEMORY.fullmatch(text)
    if found is None or not 1 <= (size := float(found[1]) * UNITS[found[2]]) <= MOST_MEMORY:
        raise ValueError("expected a size such as 8GiB or 8192MiB")
    return round(size)


def _check_memory(text: str) -> str:
    memory_bytes(text)
    return text


Memory = Annotated[str, AfterValidator(_check_memory)]


DEEPEST = 8  # levels of tables and lists in a TOML file; the deepest, a list of a cell of an axis, has 5
LARGEST_FILE = 2**20  # bytes of a TOML file; the presets have about 1,000


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted name, without those that are None."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def merge(base: Mapping[str, Any], over: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`base` updated with the values of `over`, recursively in nested tables.

    Raises UserError if one of them has a table where the other has a value. `prefix` comes before names in its message.
    """
    merged = dict(base)
    for key, value in over.items():
        before, name = merged.get(key), f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = merge(before, value, f"{name}.")
        elif isinstance(before, Mapping) and value is not None:
            example = f"{name}.{next(iter(before), 'KEY')}"
            raise UserError(f"{name} = {shown(value)}: {name} is a section, so set one of its keys, such as {example}")
        elif isinstance(value, Mapping) and before is not None:
            raise UserError(f"{name} has the value {shown(before)}, so it is not a section and has no keys")
        merged[key] = value
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
    if not equals or not path.strip() or path.count(".") > DEEPEST:
        raise UserError(f"'{text}' is not a setting: expected section.key=value, e.g. loss.temperature=0.2")
    return path.strip(), parse_value(value, path.strip())


def parse_value(text: str, name: str) -> Any:
    """The value in a text, read as TOML, else kept as a string. Errors call the setting `name`.

    Raises UserError for control characters (a second line would be a second setting), and as `parse_toml` does.
    """
    if printable(text) != text:
        raise UserError(f"{name} = {shown(text)}: expected a single line without control characters")
    try:
        return parse_toml(f"value = {text}", name)["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The content of TOML. Raises tomllib.TOMLDecodeError for other text.

    Raises UserError, which names the `source`, for what no setting can be: a date, an infinite number, an integer of
    more than 64 bits (as the TOML standard has it), and tables and lists that are nested more than DEEPEST levels deep.
    """
    too_deep = UserError(f"{source}: tables and lists are nested too deeply: expected at most {DEEPEST} levels")

    def check(value: Any, depth: int = 0) -> None:
        if depth > DEEPEST:
            raise too_deep
        if isinstance(value, dict | list):
            for each in value.values() if isinstance(value, dict) else value:
                check(each, depth + 1)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{source}: an integer has more than 64 bits: expected one from {-(2**63)} to {2**63 - 1}")
        elif not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(
                f"{source}: {value} can't be the value of a setting: expected a finite number, a text, "
                "true, false, a list or a table"
            )

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise too_deep from None
    except ValueError:  # Python's limit on the digits of an integer
        raise UserError(f"{source}: an integer has thousands of digits: expected at most 64 bits") from None
    check(table)
    return table


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises UserError if it can't be read, is too large, or holds no settings."""
    try:
        with path.open("rb") as file:  # not all of /dev/zero
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"can't read the config file {path}: {error.strerror or error}") from None
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path} has more than {LARGEST_FILE} bytes: expected a TOML file with settings")
    try:
        return parse_toml(content.decode(), str(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None


def readable(error: ValidationError, model: type[BaseModel], kind: str = "setting") -> UserError:
    """The mistakes that pydantic found in the settings of `model`, in one line, which calls them `kind`.

    These are all misspelt names, or else the first mistake.
    """
    if misspelt := [each for each in error.errors() if each["type"] == "extra_forbidden"]:
        return UserError("; ".join(str(_mistake(each, model, kind)) for each in misspelt[:MOST_MISTAKES]))
    return _mistake(error.errors()[0], model, kind)


def _mistake(first: Mapping[str, Any], model: type[BaseModel], kind: str) -> UserError:
    """One of the errors that pydantic lists, as one sentence."""
    parts = [str(part) for part in first["loc"]]
    misspelt = parts[-1:] if first["type"] == "extra_forbidden" else []
    tables = [  # without pydantic's tags and the positions in lists
        part for part in parts[: len(parts) - len(misspelt)] if not set("-[") & set(part) and not part.isdigit()
    ]
    path = ".".join(tables + misspelt)
    names = setting_names(model)
    sections = {name.partition(".")[0] for name in names if "." in name}
    if misspelt and isinstance(first["input"], Mapping) and sections and not tables:
        return unknown("section", path, sections)
    if misspelt:
        return unknown(kind, path, names)
    if first["type"] == "missing":
        return UserError(f"{path} is missing")
    if first["type"] == "value_error":
        return UserError(f"{path + ' = ' + shown(first['input']) + ': ' if path else ''}{first['ctx']['error']}")
    wanted = expected(first)
    if first["type"] in ("tuple_type", "list_type"):
        wanted = f"a list, such as {_list_for(path, first['input'], model)}"
    if first["type"] == "model_type" and (inner := [name for name in names if name.startswith(f"{path}.")]):
        wanted += f": set one of them, such as {inner[0]}"
    if takes_none(_field(model, path)):
        wanted += " or none"
    return UserError(f"{path + ' = ' if path else ''}{shown(first['input'])}: expected {wanted}")


MOST_MISTAKES = 5  # that one message lists

EXPECTED = {  # by pydantic's name of a mistake, where its own words would not help
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "model_type": "a section with keys of its own",
    "dict_type": "a table of settings",
    "too_short": "a list of at least {min_length} value{s}",
    "too_long": "a list of at most {max_length} value{s}",
    "tuple_type": "a list",
    "list_type": "a list",
    "greater_than_equal": "at least {ge:.10g}",
    "greater_than": "more than {gt:.10g}",
    "less_than_equal": "at most {le:.10g}",
    "less_than": "less than {lt:.10g}",
}


def _field(model: type[BaseModel], path: str) -> FieldInfo | None:
    """The field of a dotted name, if the model has one."""
    name, _, rest = path.partition(".")
    field = model.model_fields.get(name)
    return _field(_section_of(field) or BaseModel, rest) if field is not None and rest else field


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    kinds = field.annotation, *get_args(field.annotation)  # `Section | None` has its section among its arguments
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


NUMBERS = re.compile(r"[-+\d][-+\d., e]*")  # of a list whose brackets are missing


def expected(error: Mapping[str, Any]) -> str:
    """What a value should have been, from one of the errors that pydantic lists."""
    words, facts = EXPECTED.get(error["type"]), error.get("ctx", {})
    plural = "" if 1 in (facts.get("min_length"), facts.get("max_length")) else "s"
    return words.format(**facts, s=plural) if words else error["msg"].removeprefix("Input should be ")


def _list_for(path: str, value: Any, model: type[BaseModel]) -> str:
    """A list that a setting of `model` can have: `value` in brackets if that is one, or else the default."""
    if NUMBERS.fullmatch(example := str(value)):
        try:
            model.model_validate(nested(path, parse_value(f"[{example}]", path)))
            return f"[{example}]"
        except ValidationError as error:
            if not any(".".join(map(str, each["loc"])).startswith(path) for each in error.errors()):
                return f"[{example}]"  # other settings lack a value
    default: Any = model.model_construct()
    for name in path.split("."):
        default = getattr(default, name, None)
    return shown(list(default or [3]))


def shown(value: Any) -> str:
    """A value as messages show it: in one line, and cut if it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) < 80 else text[:77] + "..."


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted name of every setting of `model` that `--set` and a TOML file can use."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        section = _section_of(field)
        names += setting_names(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return names
