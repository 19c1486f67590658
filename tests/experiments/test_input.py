"""Whatever is typed or written in a file is either refused in a sentence or kept exactly as it was given.

The number of examples is small here. docs/results/reliability.md has the command for all of them.
"""

from __future__ import annotations

import copy
import datetime
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from typing import Any

import pytest
import tomli_w
import typer
from hypothesis import event, given
from hypothesis import strategies as st

import cli
from experiments.configs.resolve import Choice, TimeBudget, resolve, resolve_timed
from experiments.search.space import Parameter, load_space
from experiments.studies.axes import Axis, AxisCell, axes
from experiments.studies.plan import plan_study
from experiments.tracking.store import Store
from simclr.config import Config, make, to_toml
from simclr.errors import UserError
from simclr.evaluate.protocol import Protocol, make_protocol
from simclr.settings import Section, flatten, get_value, setting_names
from tests.experiments import refused
from tests.experiments.commands.helpers import invoke
from tests.helpers import ROOT, tiny

SECONDS = 10  # of computing that any request may take until it is refused or the work begins


@contextmanager
def quick() -> Iterator[None]:
    """Fails if the block computes for too long. Time in which other processes run does not count."""
    start = time.process_time()
    yield
    assert time.process_time() - start < SECONDS


def on_list(listed: dict[str, list[Any]], name: str, value: Any) -> bool:
    """Whether the written list says that a setting must refuse a value. 1, 1.0 and true are different values."""
    values = listed.get(name.replace("augment2.", "augment."), [])
    return any(type(each) is type(value) and repr(each) == repr(value) for each in values)


def literal(value: Any) -> str:
    """A value as one line of TOML."""
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)} = {literal(each)}" for key, each in value.items()) + "}"
    return tomli_w.dumps({"a": value}).partition("=")[2].strip()


# --- strategies -------------------------------------------------------------------------------------------------------

CONFIG_NAMES = setting_names(Config)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGERS = st.integers() | st.sampled_from([0, 1, 2, -1, 256, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30])
WORDS = st.sampled_from(
    ["auto", "shapes", "resnet18", "mlp", "none", "cosine", "adamw", "8GiB", "../x", "a\nb", "\x1b["]
)
SCALARS = st.one_of(
    INTEGERS, st.floats(), st.booleans(), TEXT, WORDS, st.just(datetime.date(2026, 1, 2)), st.floats(0, 2), st.just(0.5)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


def pairs(model: type[Section], listed: dict[str, list[Any]]) -> st.SearchStrategy[tuple[str, Any]]:
    """A setting with its default, with a value near it, with any other, or with one that the list says is refused."""
    names, defaults = setting_names(model), flatten(model().model_dump(mode="json"))
    good = st.sampled_from(sorted(defaults)).flatmap(lambda name: st.tuples(st.just(name), near(defaults[name])))
    bad = st.sampled_from(sorted(listed)).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(listed[name])))
    return good | good | bad | st.tuples(st.sampled_from(names), VALUES)


def near(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same type, most of them valid where this one is."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.sampled_from([value, value + 1, 2 * value])
    return (
        st.just(value) if not isinstance(value, float) else st.sampled_from([value, value / 2, min(0.99, value * 1.5)])
    )


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values, tables and lists of a TOML file are."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


@st.composite
def spoilt_files(draw: Any) -> bytes:
    """A file that comes with the suite, with one or two of its values, tables or lists replaced."""
    content: Any = [draw(st.sampled_from(VALID_FILES))]
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from(places(content[0], (0,))[1:]))
        holder = reduce(lambda each, key: each[key], path, content)
        old = holder[last]
        others = [near(old), st.just([old]), st.just({"a": old}), VALUES]
        holder[last] = draw(st.one_of(others if not isinstance(old, dict | list) else others[1:]))
    return tomli_w.dumps(content[0]).encode()


OTHER_KEYS = {*TimeBudget.model_fields, *Choice.model_fields, *Parameter.model_fields, *Axis.model_fields}
OTHER_KEYS |= {*AxisCell.model_fields, "preset", "time", "parameter"}
KEYS = st.sampled_from([*sorted(OTHER_KEYS), *dict.fromkeys(part for name in CONFIG_NAMES for part in name.split("."))])
TABLES = st.dictionaries(
    KEYS | st.sampled_from(CONFIG_NAMES) | TEXT,
    st.recursive(
        VALUES | st.sampled_from(CONFIG_NAMES),
        lambda inner: st.dictionaries(KEYS, inner, max_size=4) | st.lists(st.dictionaries(KEYS, inner), max_size=3),
        max_leaves=12,
    ),
    max_size=6,
)
EXPERIMENTS = ROOT / "experiments"
VALID_FILES = [
    make({}).model_dump(mode="json", exclude_none=True),
    *(
        tomllib.loads(path.read_text())
        for path in (*sorted(EXPERIMENTS.glob("presets/*.toml")), EXPERIMENTS / "space.toml", EXPERIMENTS / "axes.toml")
    ),
]
FILES = st.one_of(
    spoilt_files(),
    spoilt_files(),
    TABLES.map(lambda table: tomli_w.dumps(table).encode()),
    st.lists(pairs(Config, refused.SETTINGS), max_size=5).map(
        lambda found: "\n".join(f"{name} = {literal(value)}" for name, value in found).encode(errors="replace")
    ),
    st.binary(max_size=60),
    st.text(alphabet="[]{}='\",.#\n \\a1-_e:T", max_size=60).map(str.encode),
    st.sampled_from([b"a=" + b"[" * 3000 + b"]" * 3000, b"[" + b"a." * 3000 + b"b]", b"seed=" + b"1" * 5000]),
    st.integers(1, 400).map(lambda depth: b"loss = " + b"{a = " * depth + b"1" + b"}" * depth),
)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_list_names_every_setting() -> None:
    assert set(refused.SETTINGS) == {name for name in CONFIG_NAMES if not name.startswith("augment2.")}
    assert set(refused.PROTOCOL) == set(setting_names(Protocol))


@pytest.mark.parametrize("listed", [refused.SETTINGS, refused.PROTOCOL], ids=["config", "protocol"])
def test_what_the_list_says_is_refused(listed: dict[str, list[Any]]) -> None:
    accepted = []
    for name, values in listed.items():
        for value in values:
            text = f"{name}={literal(value)}"
            with suppress(UserError):
                resolve(settings=[text]) if listed is refused.SETTINGS else make_protocol([text])
                accepted.append(text)
    assert accepted == []


def keeps(made: dict[str, Any], name: str, value: Any) -> bool:
    """Whether the settings hold the value as it was given: a whole number may have become the equal real one."""
    kept = get_value(made, name)
    types = (type(kept), type(value)) in ((float, int), (type(value), type(kept))) or type(kept) is type(value)
    return bool(types and kept == value)


@given(st.lists(pairs(Config, refused.SETTINGS), min_size=1, max_size=4, unique_by=lambda pair: pair[0]))
def test_a_setting_is_refused_or_kept(found: list[tuple[str, Any]]) -> None:
    texts = [f"{name}={literal(value)}" for name, value in found]
    with quick():
        try:
            config = resolve(settings=texts)
        except UserError:
            return
        event("accepted")
        assert make(tomllib.loads(to_toml(config))) == config
        assert len(config.key()) == 16
    made = config.model_dump(mode="json")
    for name, value in found:
        assert not on_list(refused.SETTINGS, name, value)
        assert name == "data.dir" or keeps(made, name, value)  # Path removes what means nothing, such as "./"


@given(st.lists(pairs(Protocol, refused.PROTOCOL), min_size=1, max_size=4, unique_by=lambda pair: pair[0]))
def test_a_setting_of_a_protocol_is_refused_or_kept(found: list[tuple[str, Any]]) -> None:
    with quick():
        try:
            protocol = make_protocol([f"{name}={literal(value)}" for name, value in found])
        except UserError:
            return
    event("accepted")
    made = protocol.model_dump(mode="json")
    for name, value in found:
        assert not on_list(refused.PROTOCOL, name, value)
        assert keeps(made, name, value)


@given(st.text(max_size=40) | st.tuples(st.sampled_from(CONFIG_NAMES), st.text(max_size=40)).map("=".join))
def test_any_text_as_a_setting_is_refused_or_makes_a_config(text: str) -> None:
    with quick():
        try:
            config = resolve(settings=[text])
        except UserError:
            return
        assert make(tomllib.loads(to_toml(config))) == config


# --- files ------------------------------------------------------------------------------------------------------------


@given(FILES)
def test_a_file_is_refused_or_makes_a_config_a_space_or_an_axis(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.toml"
    path.write_bytes(content)
    with quick():
        with suppress(UserError):
            config, _ = resolve_timed(config=path)
            event("accepted as a config")
            assert make(tomllib.loads(to_toml(config))) == config
            asked = tomllib.loads(content.decode())
            for name in CONFIG_NAMES:
                value = get_value(asked, name)
                assert value is None or name == "name" or not on_list(refused.SETTINGS, name, value)  # old: any name
        for read in (load_space, axes):
            with suppress(UserError):
                read(path)
                event("accepted as a space or axes")
        with suppress(UserError):
            plan_study(tiny(), axis=str(path))


# --- options ----------------------------------------------------------------------------------------------------------


class Begins(UserError):  # noqa: N818 (it describes what happened)
    """The work would begin now."""


# Where the work of the commands begins: everything before has been checked by then.
WORK = [
    "experiments.configs.time_budget.choose_config",
    "experiments.runs.prepare.prepare",
    "experiments.studies.opening.check_study_name",
    "experiments.studies.paper.predict",
    "experiments.search.identity.prepare_labelled",
    "experiments.runs.encoders.open_subject",
    "experiments.runs.encoders.find_encoder",
    "experiments.commands.terminal.find_encoder",
    "experiments.runs.exchange.export_run",
    "experiments.runs.exchange.import_run",
    "experiments.commands.ui._show",
    "simclr.data.dataset.open_dataset",
    "simclr.build.check_images",
]
ARGUMENTS = {
    "eval": ["a"],
    "embed": ["a", "."],
    "export": ["a"],
    "tsne": ["a"],
    "explore": ["a"],
    "neighbours": ["a", "a.png"],
    "plot": ["loss", "a"],
    "compare": ["a"],
    "report": ["a"],
    "delete": ["a"],
    "import": ["a.pth"],
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands run in an empty folder with an empty record, and stop where their work would begin."""

    def begin(*_: object, **__: object) -> None:
        raise Begins("the work begins")

    folder = tmp_path_factory.mktemp("input")
    Store(folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SIMCLR_HOME", str(folder / "home"))
        for name in WORK:
            patch.setattr(name, begin, raising=not name.startswith("experiments.commands.terminal"))
        yield


def run(*arguments: str) -> Any:
    with quick():
        done = invoke(*arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1, 2), done.output
    assert "Traceback" not in done.output
    return done


@pytest.mark.parametrize("command", refused.OPTIONS)
@pytest.mark.usefixtures("work")
def test_what_the_list_says_of_options_is_refused(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tracking.local.check_known", lambda *_: None)  # it would refuse before they do
    accepted = []
    for option, values in refused.OPTIONS[command].items():
        for value in values:
            done = run(command, *ARGUMENTS.get(command, []), f"{option}={value}")
            if done.exit_code != 2 or "the work begins" in done.output or "no run" in done.output:
                accepted.append((option, value[:50], done.output[:200]))
    assert accepted == []


def options_of(command: str) -> list[tuple[str, bool]]:
    """The options of a command, and whether each takes a value."""
    parent: Any = typer.main.get_command(cli.app)
    found = parent.commands[command].make_context(command, [], resilient_parsing=True).command.params
    return [(each.opts[0], not each.is_flag) for each in found if each.opts[0].startswith("--") and each.name != "help"]


LISTED = {value for options in refused.OPTIONS.values() for values in options.values() for value in values}
VALUE_TEXTS = st.one_of(
    st.sampled_from(sorted(LISTED)),
    st.sampled_from(["shapes", "1", "2", "64", "0.1", "cpu", "hpu", "cuda:99", "auto", "flip", "~nobody/x", "a" * 300]),
    st.sampled_from(
        ["augmentations", "optim.lr=0.1,0.2", "loss.temperature=0.3", "caf\udce9", "é", "-", "--", "a" * 3000]
    ),
    st.text(st.characters(exclude_characters="\0"), max_size=20),
)


VALID = {
    "--preset": "shapes", "--dataset": "digits", "--epochs": "3", "--batch-size": "64", "--seed": "1",
    "--device": "cpu", "--memory": "8GiB", "--set": "loss.temperature=0.3",
    "--drop": "flip", "--only": "flip", "--axis": "augmentations",
    "--vary": "optim.lr=0.1,0.2", "--seeds": "2", "--out": "a.png", "--layer": "z", "--backbone": "resnet34",
    "--head": "mlp", "--lr": "0.1", "--temperature": "0.2", "--hours": "1", "--micro-batch": "auto", "--name": "a",
    "--precision": "fp32", "--images": "10", "--perplexity": "30", "--trials": "3", "--top": "1", "--side": "32",
    "--smooth": "2", "--count": "3", "--data-dir": ".", "--on-bad-image": "skip", "--max-hours": "1",
    "--proxy": "seed=1", "--until": "1", "--max-seeds": "9", "--margin": "1", "--threads": "1",
}  # fmt: skip


@st.composite
def lines(draw: Any) -> list[str]:
    """A command line with some options and arguments."""
    command = draw(st.sampled_from(sorted(cli.COMMANDS)))
    line = [command, *(ARGUMENTS.get(command, []) if draw(st.booleans()) else draw(st.lists(VALUE_TEXTS, max_size=3)))]
    options = options_of(command)
    for option, takes_value in draw(st.lists(st.sampled_from(options), max_size=4)) if options else []:
        value = draw(st.sampled_from([VALID[option]] * 3) | VALUE_TEXTS) if option in VALID else draw(VALUE_TEXTS)
        line.append(f"{option}={value}" if takes_value else option)
    return line


@pytest.mark.usefixtures("work")
@given(lines())
def test_no_command_line_ends_in_a_traceback(line: list[str]) -> None:
    if "the work begins" in run(*line).output:
        event("accepted")
