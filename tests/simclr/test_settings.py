"""Sections, dotted names, TOML, and error messages."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from simclr.errors import UserError, printable, unknown
from simclr.settings import (
    Count,
    Folder,
    Memory,
    Name,
    Pair,
    Section,
    Values,
    _mistake,
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
    base, over = {"a": {"x": 1, "y": 2}, "b": 3, "c": None}, {"a": {"y": 4}, "b": 5, "c": {"z": 6}}
    assert merge(base, over) == {"a": {"x": 1, "y": 4}, "b": 5, "c": {"z": 6}}
    assert merge(over, base) == {"a": {"x": 1, "y": 2}, "b": 3, "c": None}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3, "c": None}
    assert over == {"a": {"y": 4}, "b": 5, "c": {"z": 6}}


@pytest.mark.parametrize(("base", "over"), [({"x": 1}, {"x": {"y": 2}}), ({"x": {"y": 2}}, {"x": 1})])
def test_merge_refuses_a_table_where_the_other_has_a_value(base, over):
    with pytest.raises(UserError, match=r"a\.x has the value 1|a\.x = 1: a\.x is a section"):
        merge({"a": base}, {"a": over})


class Lists(Section):
    needed: int
    counts: Values[Count] = (200,)
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("value", "example"), [(0, "[200]"), (5, "[5]"), ("20,200", "[20,200]"), ("20,0", "[200]"), ("many", "[200]")]
)
def test_an_example_of_a_list_is_one_that_the_setting_takes(value, example):
    for others in ({"needed": 1}, {}):
        with pytest.raises(ValidationError) as caught:
            Lists.model_validate({"counts": value} | others)
        mistakes = [each for each in caught.value.errors() if each["type"] != "missing"]
        assert str(_mistake(mistakes[0], Lists, "setting")).endswith(f": expected a list, such as {example}")


def test_a_list_of_the_wrong_length_is_told_how_many_values_it_may_have():
    class Pairs(Lists):
        sizes: Annotated[list[int], Field(min_length=2)]

    for values, expected in (({"counts": []}, "1 value"), ({"sizes": [1]}, "2 values")):
        with pytest.raises(ValidationError) as caught:
            Pairs.model_validate({"needed": 1, "sizes": [1, 2]} | values)
        assert str(readable(caught.value, Pairs)).endswith(f": expected a list of at least {expected}")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"counts": 1}, "unknown setting 'counts': did you mean 'count'? choose from "),
        ({"count": 1, "inner": {"siez": 2}}, "unknown setting 'inner.siez': did you mean 'inner.size'? choose from "),
        ({"count": 0, "inner": {"siez": 2}}, "unknown setting 'inner.siez'"),  # before other mistakes
        ({}, "count is missing"),
        ({"count": 0}, "count = 0: expected at least 1"),
        ({"count": "many"}, 'count = "many": expected an integer'),
        (
            {"count": 1, "inner": 3},
            "inner = 3: expected a section with keys of its own: set one of them, such as inner.kind",
        ),
        ({"count": 1, "other": {"size": "x" * 100}}, f'other.size = "{"x" * 76}...: expected a number'),
        ({"count": 1, "inner": {"size": float("nan")}}, "inner.size = NaN: expected a finite number"),
        ({"count": 1, "memory": "8 GB"}, 'memory = "8 GB": expected a size such as 8GiB or 8192MiB'),
    ],
)
def test_mistakes_are_reported_in_one_sentence(values, expected):
    text = message(**values)
    assert text.startswith(expected)
    assert "\n" not in text


def test_one_of_suggests_the_nearest_choice():
    with pytest.raises(UserError, match="unknown kind 'squares': did you mean 'square'"):
        Inner(kind="squares")


def test_a_long_unknown_name_is_cut():
    assert str(unknown("name", "x" * 10**6, ["anna"])) == f"unknown name '{'x' * 100}...': choose from anna"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("résumé 日本\u3000語.jpg", None), ("a\nb\t", "a\\nb\\t"), ("\x1b[2J\x9b", "\\x1b[2J\\x9b"),
     ("caf\udce9", "caf\\udce9"), ("\u202egpj.exe", "\\u202egpj.exe")],
)  # fmt: skip
def test_control_characters_are_escaped(text, expected):
    assert printable(text) == (text if expected is None else expected)


def test_unknown_names_have_a_suggestion_or_all_choices():
    many = [f"name{i}" for i in range(20)]
    assert str(unknown("name", "nam3", many)).endswith("did you mean 'name3'?")  # without the other 19
    listed = str(unknown("name", "zzz", many)).partition("of 20 choices, the nearest are ")[2].split(", ")
    assert len(listed) == 10
    assert set(listed) < set(many)
    assert str(unknown("name", "zzz", many[:3])).endswith("choose from name0, name1, name2")
    assert "did you mean" not in str(unknown("head", "conv", ["none", "mlp"]))  # too far away
    assert str(unknown("name", "ann", ["bob", "anna"])) == (
        "unknown name 'ann': did you mean 'anna'? choose from anna, bob"
    )


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 2**33), ("8188MiB", 8188 * 2**20), ("1.5 GiB", 3 * 2**29), ("0.5MiB", 2**19)]
)
def test_memory_sizes(text, size):
    assert memory_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "8", "8GB", "-1GiB", "0GiB", "1.2.3GiB", "inf GiB", "²GiB", "٣GiB", f"{'9' * 400}GiB", "1e3GiB"]
)
def test_bad_memory_sizes_are_rejected(text):
    with pytest.raises(ValueError, match="expected a size such as 8GiB or 8192MiB"):
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


NESTED = 3000
NOT_SETTINGS = {
    "lists too deep": ("[" * NESTED + "]" * NESTED, "nested too deeply"),
    "tables too deep": ("{ a = " * NESTED + "1" + "}" * NESTED, "nested too deeply"),
    "dotted names too deep": ("{ " + "a." * NESTED + "b = 1 }", "nested too deeply"),
    "5,000 digits": ("1" * 5000, "thousands of digits"),
    "5,000 hexadecimal digits": ("0x" + "f" * 5000, "more than 64 bits"),
    "65 bits": (str(2**63), "more than 64 bits"),
    "a long integer in a list": ("[1, [0x" + "1" * 17 + "]]", "more than 64 bits"),
    "a date": ("1979-05-27", "1979-05-27 can't be the value of a setting"),
    "infinity": ("inf", "inf can't be the value"),
    "not a number": ("[nan]", "nan can't be the value"),
}


@pytest.mark.parametrize(("value", "message"), NOT_SETTINGS.values(), ids=NOT_SETTINGS)
def test_what_no_setting_can_be_is_rejected(value, message, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(f"x = {value}\n")
    with pytest.raises(UserError, match=message) as of_file:
        read_toml(path)
    with pytest.raises(UserError, match=message) as of_setting:
        parse_setting(f"a.b={value}")
    assert str(of_file.value).startswith(str(path))
    assert str(of_setting.value).startswith("a.b")
    assert len(str(of_setting.value)) < 200


@pytest.mark.parametrize("text", ["1\nseed = 2", "1\r", "word\x1b[2J", "word\u202e", "'\x00'"])
def test_a_setting_is_one_line_without_control_characters(text):
    with pytest.raises(UserError, match="expected a single line without control characters") as caught:
        parse_setting(f"a.b={text}")
    assert printable(str(caught.value)) == str(caught.value)


def test_a_name_with_thousands_of_parts_is_not_a_setting():
    with pytest.raises(UserError, match="is not a setting"):
        parse_setting("a." * NESTED + "b=1")


def test_only_the_start_of_an_endless_file_is_read():
    with pytest.raises(UserError, match=r"/dev/zero has more than 1048576 bytes"):
        read_toml(Path("/dev/zero"))


class Types(Section):
    whole: Annotated[int, Field(le=10)] = 1
    real: float = 1.0
    switch: bool = True
    text: str = ""
    name: Name = "a"
    pair: Pair[float] = (0.0, 1.0)
    values: Values[int] = (1,)
    folder: Folder | None = None


@pytest.mark.parametrize(
    "values",
    [
        {"real": 2},
        {"pair": [1, 2.5], "values": [3, 4]},
        {"folder": "/tmp"},
        {"name": "résumé 日本\u3000語 #1 / 50 %"},
    ],
)
def test_values_of_the_right_type_are_accepted(values):
    made = Types.model_validate(values)
    assert made.model_dump(mode="json", exclude_unset=True) == values
    assert isinstance(made.real, float)


@pytest.mark.parametrize(
    "values",
    [
        {"whole": True}, {"whole": 1.0}, {"whole": "1"}, {"whole": 11}, {"whole": 10**30}, {"whole": None},
        {"real": True}, {"real": "0.1"}, {"real": 10**400}, {"real": [1.0]},
        {"switch": 1}, {"switch": "true"}, {"text": 1}, {"text": ["a"]}, {"text": True},
        {"name": ""}, {"name": " "}, {"name": "a\nb"}, {"name": "\x1b[2J"}, {"name": "\x7f"}, {"name": "\udce9"},
        {"name": "a" * 1001}, {"name": "\u202egpj"},
        {"pair": [1.0]}, {"pair": [1.0, True]}, {"pair": "12"}, {"pair": {"a": 1, "b": 2}}, {"pair": 1.0},
        {"values": []}, {"values": [1, 1]}, {"values": list(range(101))}, {"values": 1}, {"values": [1.0]},
        {"folder": 1}, {"folder": "a\0b"}, {"folder": {"a": 1}},
    ],
)  # fmt: skip
def test_values_of_another_type_are_rejected(values):
    with pytest.raises(ValidationError) as caught:
        Types.model_validate(values)
    text = str(readable(caught.value, Types))
    assert text.startswith(next(iter(values)))
    assert len(text) < 250


class Optional(Section):
    limit: int | None = None
    size: Annotated[int, Field(ge=4)] | None = None
    column: str | None = None
    count: int = 3


def test_none_stands_for_a_default_that_toml_can_not_write():
    found = Optional(limit="none", size="none", column="none")
    assert (found.limit, found.size, found.column) == (None, None, "none")  # a column may be called so
    for values, message in {
        "limit": 'limit = "all": expected an integer or none',
        "size": "size = 2: expected at least 4 or none",
        "count": 'count = "none": expected an integer',
    }.items():
        given = {"limit": "all", "size": 2, "count": "none"}[values]
        with pytest.raises(ValidationError) as caught:
            Optional(**{values: given})
        assert str(readable(caught.value, Optional)) == message
