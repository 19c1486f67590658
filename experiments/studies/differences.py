"""What differs between a study or a search as it was recorded and a command that is to continue it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from experiments.configs.resolve import changed
from experiments.studies.plan import StudyPlan
from experiments.studies.results import PLAN_FILE, StudyDocument
from experiments.tracking.store import Record
from simclr.config import Config
from simclr.errors import UserError, first_few
from simclr.settings import flatten, parse_value

UNSET = "not set"


def differences(study: Record, plan: StudyPlan) -> list[str]:
    """What differs between a recorded study and a plan for this command, as far as the record says it."""
    found = list(setting_differences(study, plan.cells[0].config))
    if study.find_artifact(PLAN_FILE) is not None:
        found += _cells(StudyDocument.read(study), plan)
    return found


def setting_differences(study: Record, baseline: Config) -> Iterator[str]:
    """The settings that differ between the baseline of a recorded study or search and a config, and that matter."""
    defaults = flatten(Config().model_dump(mode="json"))  # which records may leave out
    recorded, own = ({**defaults, **table} for table in (study.params, baseline.flat()))
    for name in own | recorded:
        there, here = (str(table.get(name, UNSET)) for table in (recorded, own))
        if there != here and _matters(name, there, baseline):
            yield f"{name} was {there} and is {here} now"


def _matters(setting: str, text: str, baseline: Config) -> bool:
    """Whether results depend on a setting, of which a record has another value as text."""
    try:
        value = None if text == UNSET else parse_value(text, setting)
        return changed(baseline, {setting: value}).key() != baseline.key()
    except UserError:  # it is not valid together with the others
        return True


def _cells(document: StudyDocument, plan: StudyPlan) -> Iterator[str]:
    """The cells that only one has, or that differ, and what is asked of all cells."""
    there, here = {cell.cell: cell for cell in document.cells}, {cell.name: cell for cell in plan.asked or plan.cells}
    for one, other, place in ((there, here, "in the study"), (here, there, "in this command")):
        if names := [f"'{name}'" for name in one if name not in other]:
            yield f"cells only {place}: {first_few(names)}"
    for name in (name for name in here if name in there):
        if _asked(there[name]) != _asked(here[name]):
            yield f"cell '{name}' has other settings"
    if (resplit := any(cell.by_seed for cell in document.cells)) != plan.cells[0].resplit:
        yield "--resplit was given and now is not" if resplit else "--resplit was not given and now is"
    if document.equal != plan.equal:
        yield f"--equal was {document.equal or 'not given'} and is {plan.equal or 'not given'} now"


def _asked(cell: Any) -> str:
    """What is asked of a cell, whether it is recorded or planned."""
    return json.dumps([cell.settings, cell.layer, cell.rates])
