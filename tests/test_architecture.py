"""The house rules: imports run one way, and mlflow and optuna each have one door to write through."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [ROOT / "cli.py", *(p for room in ("simclr", "experiments", "analysis") for p in (ROOT / room).rglob("*.py"))]
ALLOWED = {
    "simclr": {"simclr"},
    "analysis": {"analysis"},
    "experiments": {"experiments", "analysis", "simclr"},
    "cli": {"experiments", "analysis", "simclr"},
}
DOORS = {
    "mlflow": {"experiments/tracking.py"},
    "optuna": {"experiments/search.py", "analysis/search.py"},  # one runs a study, the other reads it
}


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0] if node.level == 0 else path.parent.name)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert imported(path) & set(ALLOWED) <= ALLOWED[room]


@pytest.mark.parametrize("library", DOORS)
def test_a_tracked_library_has_one_door(library: str) -> None:
    doors = {path.relative_to(ROOT).as_posix() for path in MODULES if library in imported(path)}
    assert doors == DOORS[library]


def test_the_command_line_imports_nothing_heavy_at_its_top() -> None:
    tree = ast.parse((ROOT / "cli.py").read_text())
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in top} <= sys.stdlib_module_names | {"typer"}
