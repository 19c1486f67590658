"""Errors that a user can act on. Each message names the value, what was expected, and a remedy."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path


class UserError(Exception):
    """A mistake in the request, such as a bad value, a missing file or an unknown name."""


class RunFailed(Exception):  # noqa: N818 (it describes what happened)
    """A run that can't continue: the loss is not finite, the disk is full, or memory ran out."""


class BadSettings(RunFailed):
    """A run that failed because of its settings: it diverged or ran out of memory. Trying again would not help."""


class Deserted(RunFailed):
    """Ends this process of a run because another one has ended, which prints the reason. This one prints nothing."""

    exit_code = 3


class UnusableCheckpoint(UserError):  # noqa: N818 (it describes the checkpoint)
    """A checkpoint that can't be resumed here: it is damaged, or belongs to other settings or another precision."""


class UnusableWeights(UserError):  # noqa: N818 (it describes the weights)
    """Weights of this suite that can't be used: they are damaged, or belong to another version or network."""


def printable(text: str) -> str:
    """The text with control characters, line ends and what is not valid Unicode replaced by escapes such as \\x1b.

    Names of files can hold them. On a terminal they could move the cursor, hide text or make it look different.
    """
    return "".join(_escape(character) if _controls(character) else character for character in text)


def _controls(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


LISTED = 15  # if there are more choices than this, a message lists only the nearest
NEAREST = 10  # choices that it lists then
CLOSE = 0.6  # a name that is at least this similar (from 0 to 1) may have been meant
PROBABLE = 0.8  # a name that is at least this similar is probably meant, also if only a word of it is


def first_few(texts: Sequence[str], separator: str = ", ") -> str:
    """The first NEAREST texts of a list, and how many more there are."""
    more = [f"and {len(texts) - NEAREST} more"] if len(texts) > NEAREST else []
    return separator.join([*texts[:NEAREST], *more])


LONGEST = 100  # characters of a name that a message repeats


def unknown(kind: str, name: object, choices: Iterable[str], listing: str = "") -> UserError:
    """The error for a name that is not among `choices`. The message suggests a close one, or lists them.

    If they are many and none is close, it says `listing`, which names what lists them all, or else the nearest ones.
    """
    given = str(name) if len(str(name)) <= LONGEST else f"{str(name)[:LONGEST]}..."
    return UserError(f"unknown {kind} '{given}': {suggest(given, choices, listing)}")


def nearest(name: str, names: Iterable[str], count: int = 5) -> list[str]:
    """The few of many names that users gave, which may be long, that are most similar to a name."""
    return get_close_matches(name, list(names), n=count, cutoff=0)


def similar_path(path: Path) -> str | None:
    """The path in the same folder whose name is most similar to that of a path that doesn't exist, if one is close."""
    try:
        names = [each.name for each in path.parent.iterdir() if each.name != path.name]
    except (OSError, ValueError):  # no path has a null character
        return None
    near = map(path.with_name, get_close_matches(path.name, names, cutoff=CLOSE))
    return next((str(each) for each in near if each.exists()), None)


def suggest(given: str, choices: Iterable[str], listing: str = "") -> str:
    """A question that suggests the choice that is close to a name, or a list of choices (see `unknown`), or both."""
    ordered = list(choices)
    names = sorted(ordered)
    # A name without its section means the first setting of that name: loss.temperature, not dcl.temperature.
    ends = [name for name in ordered if name.endswith(f".{given}")]
    lowered = {name.lower(): name for name in names}
    near = ends[:1] or _most_similar(given, lowered, PROBABLE) or _by_word(given, names)
    near = near or _most_similar(given, lowered, CLOSE)
    hints = [f"did you mean '{near[0]}'?"] if near else []
    if len(names) <= LISTED:
        hints.append(f"choose from {', '.join(names)}")
    elif not near:
        near = nearest(given, names, NEAREST)
        hints.append(listing or f"of {len(names)} choices, the nearest are {', '.join(near)}")
    return " ".join(hints)


def _most_similar(given: str, names: Mapping[str, str], cutoff: float) -> list[str]:
    """The name, by its lower-case form, that is most similar to what was given, if one is similar enough."""
    return [names[each] for each in get_close_matches(given.lower(), names, n=1, cutoff=cutoff)]


def _by_word(given: str, names: Sequence[str]) -> list[str]:
    """The name that has a word like what was given, which no other name has: color_jitter for "colour"."""
    words = [(word, name) for name in names for word in set(re.findall("[a-z0-9]+", name.lower()))]
    counts = Counter(word for word, _ in words)
    return _most_similar(given, {word: name for word, name in words if counts[word] == 1}, PROBABLE)
