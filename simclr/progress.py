"""What a long-running function reports while it works, and how it is asked to stop."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

KNN = re.compile(r"val/knn_(?:k(\d+)_)?top1")  # the accuracy that training is monitored with, named after a smaller k
TRIAL_METRIC = "val/linear_top1"  # the accuracy that a search maximizes, logged to the run of each trial


def knn_metric(names: Iterable[str]) -> str | None:
    """The name of the kNN accuracy on validation among those of metrics."""
    return next(filter(KNN.fullmatch, names), None)


def knn_label(name: str) -> str:
    """How such a metric is called in texts: kNN, or kNN (k = 54)."""
    k = re.sub(KNN, r"\1", name)
    return f"kNN (k = {k})" if k else "kNN"


class Elsewhere(NamedTuple):
    """A run of a study or a search in another process, as far as the record knows about it."""

    name: str
    host: str = ""  # the machine that trains it. Empty before and after training
    step: int = 0  # number of steps done
    steps: int = 0  # total number of steps
    metrics: Mapping[str, float] = {}  # the latest value of each


class Observer:
    """Watches work in progress. This one shows nothing and never stops anything; subclasses override what they need.

    One observer is passed down through training, studies and searches, so that no function has a list of callbacks.
    """

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` units of `what` (such as "decoding train") are finished."""

    def overall(self, what: str, done: int, total: int, best: str, seconds: float = inf) -> None:
        """`done` of `total` runs of a study, or trials of a search, have ended (`what` is "run" or "trial").

        `best` is the best result so far in words, or empty. No new one starts after this many `seconds`.
        """

    def elsewhere(self, runs: Sequence[Elsewhere]) -> None:
        """All runs of a study or a search that are in progress in other processes."""

    def began(self, run_id: str, steps: int) -> None:
        """A run of this many steps is about to train."""

    def reused(self, run_id: str, name: str) -> None:
        """A finished run of the same config and data is returned instead of training again."""

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of a run after `step` steps."""

    def saving(self, step: int) -> None:
        """A checkpoint of `step` is about to be saved. What was reported before has to be as safe as it will be."""

    def say(self, text: str) -> None:
        """A message for the user, one or more lines."""

    def note(self, text: str, folder: Path | None = None) -> None:
        """Something that the user should know about the images. A command shows the same text once.

        If the folder of the decoded images is given, later commands that use them don't show it again, except for
        warnings.
        """

    def stop(self) -> bool:
        """Whether the work should stop as soon as its state is saved."""
        return False


class Forwarding(Observer):
    """Passes everything on to another observer. Subclasses add to what they override."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def progress(self, what: str, done: int, total: int) -> None:
        self.observer.progress(what, done, total)

    def overall(self, what: str, done: int, total: int, best: str, seconds: float = inf) -> None:
        self.observer.overall(what, done, total, best, seconds)

    def elsewhere(self, runs: Sequence[Elsewhere]) -> None:
        self.observer.elsewhere(runs)

    def began(self, run_id: str, steps: int) -> None:
        self.observer.began(run_id, steps)

    def reused(self, run_id: str, name: str) -> None:
        self.observer.reused(run_id, name)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.observer.metrics(metrics, step)

    def saving(self, step: int) -> None:
        self.observer.saving(step)

    def say(self, text: str) -> None:
        self.observer.say(text)

    def note(self, text: str, folder: Path | None = None) -> None:
        self.observer.note(text, folder)

    def stop(self) -> bool:
        return self.observer.stop()


SILENT = Observer()
