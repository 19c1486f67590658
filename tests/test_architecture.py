"""The rules of the house: imports run one way, MLflow and Optuna each stay behind one door, files stay readable."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import ROOT

ROOMS = ("simclr", "experiments", "analysis", "benchmarks", "website", "tests")
FILES = [ROOT / "cli.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
SOURCES = [path for path in FILES if path.relative_to(ROOT).parts[0] not in ("tests", "benchmarks", "website")]

# Each name may import from the lines above it and from its own line; below the top level, from its own folder too.
ORDER = {
    "": ["simclr analysis", "experiments", "cli"],
    "simclr": [
        "errors progress randomness",
        "files",
        "device settings",
        "processes",
        "augmentation",
        "auto_augment",
        "augment",
        "views",
        "model optim",
        "methods",
        "data",
        "config",
        "build",
        "evaluate weights",
        "train",
    ],
    "experiments": ["tracking", "workers", "configs runs", "studies", "search", "commands"],
}
APART = {
    ("simclr", "analysis"),
    ("analysis", "simclr"),
    ("evaluate", "weights"),
    ("model", "optim"),
    ("configs", "runs"),
}
DOORS = {
    "mlflow": {path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments/tracking").glob("*.py")},
    "optuna": {f"experiments/search/{name}.py" for name in ("saved", "trials", "trial_table")},
    "typer": {"cli.py", *(path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments/commands").glob("*.py"))},
}
MOST_LINES = 400
LONGEST_FUNCTION = 60
REASON = re.compile(r"#.*over 60 lines")  # the comment that states why a function is longer


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names of everything that a file imports, anywhere in it, for type checking too."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.name == "__init__.py", f"{path}: relative import"
            base = node.module or "" if node.level == 0 else ".".join(filter(None, [name_of(path), node.module]))
            names |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return frozenset(names)


def rank(place: str, name: str) -> int:
    (found,) = [number for number, line in enumerate(ORDER[place]) if name in line.split()]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    own = name_of(path).split(".")
    for other in (name.split(".") for name in imported(path) if name.split(".")[0] in (*ROOMS, "cli")):
        for depth, place in enumerate(("", own[0])):
            if place in ORDER and own[:depth] == other[:depth] and len(own) > depth and len(other) > depth:
                mine, its = own[depth], other[depth]
                assert rank(place, its) <= rank(place, mine), f"{'.'.join(other)} stands above"
                assert (mine, its) not in APART, f"{mine} and {its} must not know each other"


def test_there_is_no_import_cycle() -> None:
    graph = {name: {other for other in imported(path) if other in MODULES} for name, path in MODULES.items()}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in finished:
            for other in sorted(graph[name] - {name}):
                visit(other, (*trail, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("library", DOORS)
def test_a_library_is_imported_by_its_doors_alone(library: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users <= DOORS[library]


def test_analysis_needs_arrays_and_frames_alone() -> None:
    heavy = {"torch", "mlflow", "optuna", "typer"}
    for path in (ROOT / "analysis").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & heavy, path


def test_mlflows_objects_stay_in_tracking() -> None:
    """Its attributes (run.info, run.data.tags, the client) and its tags are found nowhere else."""
    for path in SOURCES:
        if path.relative_to(ROOT).as_posix() in DOORS["mlflow"]:
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and ast.unparse(node) != "image.info":  # Pillow's
                assert node.attr not in ("info", "client", "_client", "experiment_id"), f"{path}:{node.lineno}"
                inner = node.value
                mlflow_data = isinstance(inner, ast.Attribute) and inner.attr == "data"
                assert not (mlflow_data and node.attr in ("tags", "params", "metrics")), f"{path}:{node.lineno}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"mlflow\.|tags\.|attributes\.", node.value), f"{path}:{node.lineno}"


def test_the_loss_stays_in_its_method() -> None:
    """Training, memory planning and reports ask the method. Evaluation without labels measures contrastive accuracy."""
    users = {name for name, path in MODULES.items() if "simclr.methods.ntxent" in imported(path)}
    outside = {name for name in users if not name.startswith("simclr.methods.")}
    assert outside == {"simclr.evaluate.label_free"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_states_its_purpose_and_stays_readable(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith('"""'), "the first line states the purpose of the file"
    if path not in SOURCES:
        return
    assert len(lines) <= MOST_LINES
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            stated = any(REASON.search(line) for line in lines[node.lineno - 2 : node.body[0].lineno])
            assert length <= LONGEST_FUNCTION or stated, f"{node.name} has {length} lines"


def test_the_command_line_imports_nothing_heavy_at_its_top() -> None:
    tree = tree_of(ROOT / "cli.py")
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    allowed = sys.stdlib_module_names | {"typer"}
    assert {name for name in top if name.partition(".")[0] not in allowed} <= {"simclr.errors"}
    heavy = {"torch", "mlflow", "optuna"}
    assert not heavy & {name.split(".")[0] for name in imported(ROOT / "simclr" / "errors.py")}
