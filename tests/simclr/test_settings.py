"""Sections, dotted names, TOML, and error messages."""

import subprocess
import sys
from typing import Annotated

import pytest
from pydantic import ValidationError

from simclr.errors import UserError, unknown
from simclr.settings import (
    Count,
    Memory,
    Section,
    flatten,
    get_value,
    memory_bytes,
    merge,
    nested,
    one_of,
    parse_setting,
    read_toml,
    readable,
    setting_names,
)
from tests.helpers import ROOT


class Inner(Section):
    kind: Annotated[str, one_of("kind", lambda: ["round", "square"])] = "round"
    size: float = 1.0


class Outer(Section):
    count: Count
    memory: Memory | None = None
    inner: Inner = Inner()
    other: Inner | None = None


def message(**values):
    """The error message for an Outer with these values."""
    with pytest.raises(ValidationError) as caught:
        Outer(**values)
    return str(readable(caught.value, Outer))


def test_importing_settings_does_not_import_torch():
    program = "import sys, simclr.settings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_sections_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Inner().size = 2.0


def test_dotted_names():
    assert setting_names(Outer) == [
        "count", "memory", "inner.kind", "inner.size", "other.kind", "other.size",
    ]  # fmt: skip
    table = {"a": 1, "b": {"c": {"d": [2]}, "e": None}}
    assert flatten(table) == {"a": 1, "b.c.d": [2]}
    assert nested("b.c.d", [2]) == {"b": {"c": {"d": [2]}}}
    assert [get_value(table, path) for path in ("a", "b.c.d", "b.c", "b.x", "a.x", "x")] == [
        1, [2], {"d": [2]}, None, None, None,
    ]  # fmt: skip


def test_merge_replaces_values_and_keeps_its_arguments():
    base, over = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "b": {"z": 5}}
    assert merge(base, over) == {"a": {"x": 1, "y": 4}, "b": {"z": 5}}
    assert merge(over, base) == {"a": {"x": 1, "y": 2}, "b": 3}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}
    assert over == {"a": {"y": 4}, "b": {"z": 5}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"counts": 1}, "unknown setting 'counts': did you mean 'count'? choose from "),
        ({"count": 1, "inner": {"siez": 2}}, "unknown setting 'inner.siez': did you mean 'inner.size'? choose from "),
        ({"count": 0, "inner": {"siez": 2}}, "unknown setting 'inner.siez'"),  # before other mistakes
        ({}, "count is missing"),
        ({"count": 0}, "count = 0: expected greater than or equal to 1"),
        ({"count": "many"}, 'count = "many": expected a valid integer'),
        ({"count": 1, "inner": 3}, "inner = 3: expected a valid dictionary"),
        ({"count": 1, "other": {"size": "x" * 100}}, f'other.size = "{"x" * 76}...: expected a valid number'),
        ({"count": 1, "inner": {"size": float("nan")}}, "inner.size = NaN: expected a finite number"),
        ({"count": 1, "memory": "8 GB"}, 'memory = "8 GB": write it as 8GiB or 8188MiB'),
    ],
)
def test_mistakes_are_reported_in_one_sentence(values, expected):
    text = message(**values)
    assert text.startswith(expected)
    assert "\n" not in text


def test_one_of_suggests_the_nearest_choice():
    with pytest.raises(UserError, match="unknown kind 'squares': did you mean 'square'"):
        Inner(kind="squares")


def test_unknown_names_have_a_suggestion_or_all_choices():
    many = [f"name{i}" for i in range(20)]
    assert str(unknown("name", "nam3", many)).endswith("did you mean 'name3'?")  # without the other 19
    assert str(unknown("name", "zzz", many)).endswith(", ".join(sorted(many)))
    assert str(unknown("name", "ann", ["bob", "anna"])) == (
        "unknown name 'ann': did you mean 'anna'? choose from anna, bob"
    )


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 2**33), ("8188MiB", 8188 * 2**20), ("1.5 GiB", 3 * 2**29), ("0.5MiB", 2**19)]
)
def test_memory_sizes(text, size):
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "8", "8GB", "-1GiB", "0GiB", "1.2.3GiB", "inf GiB"])
def test_bad_memory_sizes_are_rejected(text):
    with pytest.raises(ValueError, match="write it as 8GiB or 8188MiB"):
        memory_bytes(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=0.2", ("a.b", 0.2)),
        (" a = [1, 2]", ("a", [1, 2])),
        ("a=word", ("a", "word")),
        ("a='0.2'", ("a", "0.2")),
        ("a=b=c", ("a", "b=c")),
        ("a=", ("a", "")),
    ],
)
def test_settings_are_parsed_as_toml_or_kept_as_strings(text, expected):
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["a", "=1", " =1"])
def test_text_that_is_not_a_setting_is_rejected(text):
    with pytest.raises(UserError, match=r"is not a setting: expected section\.key=value"):
        parse_setting(text)


def test_files_that_are_not_toml_are_rejected(tmp_path):
    path = tmp_path / "a.toml"
    with pytest.raises(UserError, match=r"can't read the config file .*a\.toml: No such file"):
        read_toml(path)
    path.write_bytes(b"a = \xff")
    with pytest.raises(UserError, match=r"a\.toml is not a TOML file"):
        read_toml(path)
    path.write_text("a = ")
    with pytest.raises(UserError, match=r"a\.toml is not a TOML file"):
        read_toml(path)
    path.write_text("[b]\nc = 1\n")
    assert read_toml(path) == {"b": {"c": 1}}
