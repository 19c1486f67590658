"""A job on its way to another process, and what happens there."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from experiments.tracking.signals import Signals
from experiments.tracking.store import Store
from simclr.errors import RunFailed, UserError
from simclr.progress import Observer
from simclr.train.loop import Interrupted


class Unfit(UserError):  # noqa: N818 (it describes the machine)
    """A machine of a cluster can't do what the driver asks for: other images, another precision, no way to the record.

    It ends the whole study or search, because every job that this machine gets would fail.
    """


class Outcome(NamedTuple):
    """How a task ended. It is picklable."""

    host: str  # where it ran
    answer: Any = None
    error: UserError | RunFailed | None = None
    stopped: int | None = None  # the step after which it stopped, as it was asked to
    said: tuple[str, ...] = ()  # messages for the user


class Lost(NamedTuple):
    """A task whose machine or process died. The pool starts the job again."""

    reason: str  # what happened, as the beginning of a sentence: "the machine n7 is gone"


@dataclass(frozen=True)
class Origin:
    """The process that gives out tasks, and where it records."""

    driver: str  # letters and digits that are this process's own
    host: str
    home: Path
    database: Path | None  # the file that is the record. None if that is a server
    variables: Mapping[str, str]  # of the environment: where the record and checkpoints are, and how to log in

    @classmethod
    def of(cls, store: Store, driver: str) -> Origin:
        """That of this process."""
        shared = ("MLFLOW_TRACKING_", "SIMCLR_CHECKPOINTS")
        variables = {name: value for name, value in os.environ.items() if name.startswith(shared)}
        return cls(driver, platform.node(), store.folder, store.database, variables)

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
        os.environ.update(self.variables)
        home = self.home if here == self.host else Path(os.environ.get("SIMCLR_HOME") or self.home)
        try:
            return _opened(home)
        except UserError as error:
            raise Unfit(f"{here} {error}") from error


_opened = cache(Store)  # as a process may do several tasks


@dataclass(frozen=True)
class Task:
    """A job on its way. An engine carries it to a process of its own on some machine, and calls it there."""

    origin: Origin
    token: str  # letters and digits that are this attempt's own
    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self, said: Said | None = None) -> Outcome:
        """Do the job. It stops when `said` asks to.

        Raises what is neither a mistake of the user nor a failure of the run: a bug.
        """
        host, said = platform.node(), said or Said()
        try:
            store = self.origin.store()
            with ExitStack() as stack:
                signals = stack.enter_context(Signals(store, self.origin.driver, self.token, said))
                return Outcome(host, self.call(store, signals, *self.arguments), said=tuple(said.texts))
        except Interrupted as stopped:
            return Outcome(host, stopped=stopped.step, said=tuple(said.texts))
        except (UserError, RunFailed) as error:
            return Outcome(host, error=error, said=tuple(said.texts))
        except RuntimeError as error:  # torch raises it for most of its failures
            return Outcome(host, error=RunFailed(f"{type(error).__name__}: {error}"), said=tuple(said.texts))


class Said(Observer):
    """Keeps what it is told for the user."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)
