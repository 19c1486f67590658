"""A job on its way to another process, and what happens there."""

from __future__ import annotations

import os
import pickle
import platform
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from experiments.tracking.signals import Signals
from experiments.tracking.store import Store, home
from simclr.errors import RunFailed, UserError
from simclr.progress import Observer
from simclr.train.loop import Interrupted

SHARED = ("MLFLOW_TRACKING_", "SIMCLR_CHECKPOINTS")  # beginnings of variables: the record, checkpoints, how to log in


class Unfit(UserError):  # noqa: N818 (it describes the machine)
    """A machine of a cluster can't do what the driver asks for: other images, another precision, no way to the record.

    It ends the whole study or search, because every job that this machine gets would fail.
    """


class Outcome(NamedTuple):
    """How a task ended. It is picklable."""

    host: str  # where it ran
    answer: Any = None
    error: Exception | None = None
    stopped: int | None = None  # the step after which it stopped, as it was asked to
    said: tuple[str, ...] = ()  # messages for the user


class Lost(NamedTuple):
    """A task whose machine or process died. The pool starts the job again."""

    reason: str  # what happened, as the beginning of a sentence: "the machine n7 is gone"


@dataclass(frozen=True)
class Origin:
    """The process that gives out tasks, and where it records."""

    driver: str  # a unique id of this process
    host: str
    home: Path
    database: Path | None  # the file that is the record. None if that is a server
    variables: Mapping[str, str]  # of the environment, those in SHARED

    @classmethod
    def of(cls, store: Store, driver: str) -> Origin:
        """That of this process."""
        variables = {name: value for name, value in os.environ.items() if name.startswith(SHARED)}
        if folder := variables.get("SIMCLR_CHECKPOINTS"):  # tasks are in other folders
            variables["SIMCLR_CHECKPOINTS"] = str(Path(folder).absolute())
        return cls(driver, platform.node(), store.folder, store.database, variables)

    @property
    def shares_checkpoints(self) -> bool:
        """Whether every task can read the checkpoints of all others."""
        return self.database is not None or "SIMCLR_CHECKPOINTS" in self.variables

    def store(self) -> Store:
        """The record, opened in a process of a task. Images, checkpoints and so on are in the home of its machine.

        Raises Unfit if this machine can't use the record.
        """
        here = platform.node()
        if here != self.host and self.database is not None:
            raise Unfit(
                f"the record is the file {self.database} on {self.host}, and {here} can't use it, not even on a shared "
                f"disk: start an MLflow server, and set MLFLOW_TRACKING_URI to its address"
            )
        for name in [name for name in os.environ if name.startswith(SHARED)]:
            del os.environ[name]  # of the shell in which the cluster was started
        os.environ.update(self.variables)
        named = os.environ.get("SIMCLR_HOME", "") if here != self.host else ""
        try:
            return _opened(home() if Path(named).is_absolute() else self.home)
        except UserError as error:
            raise Unfit(f"{here}: {error}") from error


_opened = cache(Store)  # as a process may do several tasks


@dataclass(frozen=True)
class Task:
    """A job on its way. An engine carries it to a process of its own on some machine, and calls it there."""

    origin: Origin
    token: str  # a unique id of this attempt
    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self, said: Said | None = None) -> Outcome:
        """Do the job. It stops when `said` asks to. An error that it raises is in the Outcome."""
        host, said = platform.node(), said or Said()
        try:
            store = self.origin.store()
            with Signals(store, self.origin.driver, self.token, said) as signals:
                return Outcome(host, self.call(store, signals, *self.arguments), said=tuple(said.texts))
        except Interrupted as stopped:
            return Outcome(host, stopped=stopped.step, said=tuple(said.texts))
        except Exception as error:
            return Outcome(host, error=portable(error), said=tuple(said.texts))


def portable(error: Exception) -> Exception:
    """An error as another process can read it: as it is, or one of the same kind with its text.

    One that is neither a mistake of the user nor a failure of the run, but a bug, gets its traceback as a note.
    """
    if isinstance(error, RuntimeError):  # torch raises it for most of its failures
        return RunFailed(f"{type(error).__name__}: {error}")
    if not isinstance(error, UserError | RunFailed):
        error.add_note(f"On {platform.node()}:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return UserError(str(error)) if isinstance(error, UserError) else RunFailed(f"{type(error).__name__}: {error}")
    return error


class Said(Observer):
    """Keeps the messages for the user."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)
