"""Failures that a person can act on: each message names the value, what was expected, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what was asked for: a bad value, a missing file, a name that does not exist."""


class RunFailed(Exception):  # noqa: N818 (it is what happened)
    """A run that cannot go on: a loss that is not finite, a full disk, no memory left."""


class BadSettings(RunFailed):
    """A run that its own settings ended: it diverged, or ran out of memory. Another machine state would not help."""


class UnusableCheckpoint(UserError):  # noqa: N818 (it is a checkpoint)
    """A checkpoint that can't be gone on from here: damaged, of another precision, of other settings."""


LISTED = 15  # names that an error message holds where the nearest one is known


def unknown(kind: str, name: object, choices: Iterable[str]) -> UserError:
    """The error for a name that is not among `choices`, with the nearest one that is."""
    names = sorted(choices)
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hints = [f"did you mean '{near[0]}'?"] if near else []
    if not near or len(names) <= LISTED:
        hints.append(f"choose from {', '.join(names)}")
    return UserError(f"unknown {kind} '{name}': {' '.join(hints)}")
