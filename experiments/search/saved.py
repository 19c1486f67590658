"""Optuna's studies of searches, as they are kept in the home: read them, and delete them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from experiments.tracking import local
from experiments.tracking.store import Record, Store
from simclr.errors import UserError

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)  # how trials end that count; one that was interrupted is FAIL
IDENTITY = "identity"  # attribute of a study: what its name stands for. Keep it, so that searches can be resumed
STATE = "search.db"  # Optuna's record of all searches, next to the tracking store


@contextmanager
def optuna_errors(path: Path) -> Iterator[None]:
    """Turns errors of Optuna's database into a UserError."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"can't use the search database {path}: {reason}. Stop other processes that use it") from None
    except RuntimeError as error:
        if "optuna" not in str(error).lower():
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the search database {path} was written by a different version of Optuna ({reason}): move the file away, "
            f"or install that version"
        ) from None


def saved_study(name: str, store: Store) -> optuna.Study:
    """Optuna's study with this name, to read its trials. Raises UserError if it is missing."""
    if (study := _find(name, store)) is None:
        path = store.folder / STATE
        raise UserError(f"the trials of search '{name}' are not in {path}: they were recorded in another home")
    return study


def trials_ended(name: str, store: Store) -> int:
    """How many trials of the search with this name have ended in this home."""
    study = _find(name, store)
    return 0 if study is None else len(study.get_trials(deepcopy=False, states=ENDED))


def saved_identity(name: str, store: Store) -> dict[str, Any] | None:
    """What the name of a search stands for in this home, if there is such a search."""
    study = _find(name, store)
    return None if study is None else study.user_attrs.get(IDENTITY)


def confirmation_of(name: str, store: Store) -> Record | None:
    """The finished study with fresh seeds that confirms the search with this name, if there is one."""
    studies = store.records(kind="study", confirms=name)
    return next((study for study in studies if study.finished), None)


def _find(name: str, store: Store) -> optuna.Study | None:
    path = local.check_path(store.folder / STATE, "SIMCLR_HOME")
    with optuna_errors(path), suppress(KeyError):  # it has no study of this name
        if path.exists():
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            return optuna.load_study(study_name=name, storage=local.address(path))
    return None


def forget(name: str, store: Store) -> None:
    """Delete Optuna's study with this name, if this home has one, so that a search of this name starts from the
    beginning."""
    path = local.check_path(store.folder / STATE, "SIMCLR_HOME")
    if path.exists():
        with optuna_errors(path), suppress(KeyError):
            optuna.delete_study(study_name=name, storage=local.address(path))
