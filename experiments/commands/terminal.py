"""What commands show on a terminal while they work, and what Ctrl-C does."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from simclr.errors import UserError, printable
from simclr.progress import Elsewhere, Observer, knn_label, knn_metric

if TYPE_CHECKING:
    from experiments.runs.encoders import FoundEncoder
    from experiments.tracking.store import Store
    from simclr.data.dataset import Dataset

LONG = 3600  # seconds of work above which a command asks before it starts
SIGNALS = (signal.SIGINT, signal.SIGTERM)
WARNING = "warning: "  # which every command repeats


class Terminal(Observer):
    """Prints messages on stderr, shows progress bars if that is a terminal, and stops training after SIGINT or SIGTERM.

    Once a run has begun to train, the first signal asks it to save its state and stop. Before that, and the second
    time, a signal raises KeyboardInterrupt. `resumes` is for work that can be resumed from its very beginning, such as
    a study: the first signal is then always such a request. `noted` are notes that were printed before, and are not
    repeated. Without `alone`, this is one of several processes that train the run. When one of them fails, the program
    that started them sends signals to the others: a signal then prints nothing, and a second one changes nothing.
    Use it as a context manager.
    """

    def __init__(self, *, resumes: bool = False, noted: Iterable[str] = (), alone: bool = True) -> None:
        self._asks = resumes  # whether a signal asks the work to stop
        self.bars: Progress | None = None
        self.latest: dict[str, float] = {}  # the newest value of each metric of the run that trains
        self._tasks: dict[str, TaskID] = {}
        self.step, self.steps = 0, 0  # steps done and total steps of the run that trains; 0 in total before it begins
        self.group = GroupProgress()
        self._elsewhere: set[str] = set()  # the names of runs that train elsewhere, with their places
        self._stopping = False
        self._alone = alone
        self.noted = dict.fromkeys(noted)
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            # The description comes last, because a narrow terminal cuts off the end.
            columns = (BarColumn(bar_width=6), TimeRemainingColumn(compact=True), TextColumn("{task.description}"))
            self.bars = Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
        self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_handlers()
        if self.bars is not None:
            self.bars.stop()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        if not self._asks:
            raise KeyboardInterrupt
        self._stopping = True
        if not self._alone:
            return
        self._restore_handlers()
        typer.echo("\nstopping: saving a checkpoint (press Ctrl-C again to stop at once)", err=True)

    def stop(self) -> bool:
        return self._stopping

    def say(self, text: str) -> None:
        text = "\n".join(map(printable, text.split("\n")))
        if self.bars is None:
            typer.echo(text, err=True)
        else:  # above the bars, which echo would write into
            self.bars.console.out(text, highlight=False)

    def note(self, text: str, folder: Path | None = None) -> None:
        if text in self.noted:
            return
        self.noted[text] = None
        if folder is not None and not text.startswith(WARNING):
            from simclr.data.source import is_news

            if not is_news(text, folder):
                return
        self.say(text)

    def warnings(self) -> list[str]:
        """The warnings among the notes, without that word."""
        return [text.removeprefix(WARNING) for text in self.noted if text.startswith(WARNING)]

    def progress(self, what: str, done: int, total: int) -> None:
        self._move_bar(what, done, total, what)

    def overall(self, what: str, done: int, total: int, best: str, seconds: float = inf) -> None:
        if what != self.group.what:
            self.group = GroupProgress(what)
        self.step, self.steps = 0, 0
        self.group.done, self.group.total, self.group.best, self.group.end = done, total, best, monotonic() + seconds
        if self.bars is None:
            self.say(self.group.status())
        self._move_bar(what, done, total, self.group.status())

    def began(self, run_id: str, steps: int) -> None:  # noqa: ARG002 (an override)
        self.latest, self.step, self.steps, self._asks = {}, 0, steps, True
        self.group.begun += 1
        if self.bars is not None and "training" in self._tasks:  # of a run that was pruned or that failed
            self.bars.remove_task(self._tasks.pop("training"))

    def elsewhere(self, runs: Sequence[Elsewhere]) -> None:
        training = {f"{run.name} on {run.host}": run for run in runs if run.host}
        for name in training.keys() - self._elsewhere:
            self.group.begun += 1
            if self.bars is None:
                self.say(f"{name}: training")
        for name in self._elsewhere - training.keys():
            self._move_bar(name, 1, 1, "")
        self._elsewhere = set(training)
        share = sum(run.step / run.steps for run in training.values())
        self._move_bar(self.group.what, self.group.done, self.group.total, self.group.status(share, len(training)))
        for name, run in training.items():
            self._move_bar(name, run.step, run.steps, f"{name}: {describe_metrics(run.metrics)}")

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if not self.steps:  # of a run elsewhere
            return
        self.step = step
        self.latest.update(metrics)
        if self.group.total:
            self._move_bar(self.group.what, self.group.done, self.group.total, self.group.status(step / self.steps))
        self._move_bar("training", step, self.steps, self.status())

    def status(self) -> str:
        """The state of the run that trains, in one line."""
        return describe_metrics(self.latest)

    def _move_bar(self, name: str, done: int, total: int, text: str) -> None:
        """Show a bar, which disappears when it is full."""
        if self.bars is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self.bars.add_task(text, completed=done, total=total)
            self.bars.start()
        self.bars.update(self._tasks[name], completed=done, total=total, description=text)
        if done >= total:
            self.bars.remove_task(self._tasks.pop(name))
            if not self._tasks:
                self.bars.stop()  # otherwise it draws nothing, ten times a second


class GroupProgress:
    """The progress of a study or a search."""

    def __init__(self, what: str = "") -> None:
        self.what = what  # it consists of: run or trial
        self.start = monotonic()
        self.done, self.total, self.begun = 0, 0, 0  # have ended, in all, and those that trained since the start
        self.best = ""
        self.end = inf  # when no new one starts

    def status(self, share: float = 0.0, elsewhere: int | None = None) -> str:
        """The state in one line. `share` of the run that trains is done (0: none trains).

        If `elsewhere` runs train at the same time on other workers, `share` is the sum of their shares.
        """
        done = f"{self.done} of {self.total} {self.what}s"
        if elsewhere is None:
            parts = [f"{self.what} {self.done + 1} of {self.total}" if share else done]
        else:
            parts = [done, f"{elsewhere} training"]
        trained = self.begun - (bool(share) if elsewhere is None else elsewhere) + share
        if trained > 0 and self.done < self.total:
            now = monotonic()
            left = min((now - self.start) / trained * (self.total - self.done - share), self.end - now)
            parts.append(f"{describe_duration(left)} left")
        return ", ".join([*parts, *([f"best {self.best}"] if self.best else [])])


@contextmanager
def resumable() -> Iterator[None]:
    """For commands whose work resumes when they run again: a KeyboardInterrupt that says so, for a stopped run too."""
    from simclr.train.loop import Interrupted

    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stopped:
        raise KeyboardInterrupt(f"{str(stopped) or 'stopped'}: run the same command to resume") from None


def describe_metrics(latest: Mapping[str, float], chance: float | None = None) -> str:
    """The newest metrics of a run in a few words, the most important first: a narrow terminal cuts off the end.

    `chance` is the contrastive accuracy of guessing, to be shown beside it.
    """
    parts = []
    if "train/loss" in latest:
        parts.append(f"loss {latest['train/loss']:.2f}")
    if name := knn_metric(latest):
        parts.append(f"val {knn_label(name)} {latest[name]:.1%}")
    if "train/contrastive_top1" in latest:
        beside = f" (chance {chance:.1%})" if chance is not None else ""
        parts.append(f"contrastive top-1 {latest['train/contrastive_top1']:.1%}{beside}")
    if "perf/images_per_second" in latest:
        parts.append(f"{latest['perf/images_per_second']:.0f} img/s")
    return " ".join(parts)


def offer_unlabelled(data: Dataset, observer: Observer) -> None:
    """Say what to do if the folders of the user's images are not classes."""
    from simclr.data.layout import FOLDER_NAMES

    if data.origin == FOLDER_NAMES and len(data.classes) > 1:
        observer.note("if these folders are not classes, add --unlabelled")


def describe_duration(seconds: float) -> str:
    """An estimated duration in seconds, minutes or hours."""
    if seconds < 1:
        return "less than 1 s"
    minutes, hours = seconds / 60, seconds / 3600
    shown = f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"
    return f"about {shown}"


def describe_size(number: int) -> str:
    """A number of bytes in megabytes."""
    return f"{number / 1e6:,.1f} MB"


def command_line() -> str:
    """The command line of this process, for reports that say how to repeat it."""
    return shlex.join(["simclr", *sys.argv[1:]])


def resuming() -> str:
    """The command line that resumes the run of this process."""
    options = [option for option in sys.argv[1:] if option not in ("--again", "--resume")]
    return shlex.join(["simclr", *options, "--resume"])


def confirm_long(seconds: float, *, yes: bool) -> None:
    """Ask before work of more than LONG seconds starts, unless the user said `yes` or nobody is there to answer."""
    if seconds > LONG and not yes and can_ask():
        typer.confirm("Do you want to start?", abort=True, err=True)


def can_ask() -> bool:
    """Whether somebody is there to answer a question."""
    return sys.stdin.isatty()


def open_store() -> Store:
    """The record of this home. What it notes about the names of runs goes to stderr."""
    from experiments.tracking.store import Store, home

    return Store(home(), observer=Terminal())


def open_writable(change: str) -> Store:
    """The same, for a command whose runs are to be "deleted", "renamed" or the like.

    Raises UserError if it can't be written to.
    """
    store = open_store()
    if not store.writable:
        raise UserError(f"{store.folder} is not writable, so no run can be {change}: make it writable first")
    return store


def find_encoder_or_newest(name: str | None, store: Store) -> FoundEncoder:
    """The encoder of this name. Without a name, that of the newest run of no study, and a note on stderr names it."""
    from experiments.runs.encoders import find_encoder

    found = find_encoder(name, store)
    if name is None and found.run_id is not None:
        typer.echo(
            f"using {found.config.run_name()} ({found.run_id[:8]}), the newest run outside studies and searches",
            err=True,
        )
    return found
