"""The names in the tables of the suite, for help texts, read without importing torch."""

from __future__ import annotations

import ast
from importlib.resources import files


def names_in(table: str) -> list[str]:
    """The keys of a table such as "simclr.model.HEADS", which its module writes out as a dict.

    They are read from the source of the module, because importing it takes seconds, and help should not.
    """
    module, _, name = table.rpartition(".")
    package, *folders, file = module.split(".")
    source = files(package).joinpath(*folders, f"{file}.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return [key.value for key in node.value.keys]  # type: ignore[attr-defined]
    raise LookupError(f"{module} has no table {name}")
