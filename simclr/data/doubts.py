"""Warnings about names of files that are understood in one way, but may well be meant in another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from simclr.data.suffixes import IMAGE_SUFFIXES, suffix_of
from simclr.errors import printable


def doubtful_names(images: Iterable[str]) -> list[str]:
    """A warning about images that have one name but for the suffix, or an empty list."""
    pairs = [(name.rpartition(".")[0], name) for name in images if suffix_of(name) in IMAGE_SUFFIXES]
    last = dict(pairs)
    if not (count := len(pairs) - len(last)):
        return []
    one, other = next((name, last[stem]) for stem, name in pairs if last[stem] != name)
    return [
        f"warning: {count:,} image{'s have' if count > 1 else ' has'} the name of another one but for the suffix, such "
        f"as {printable(one)} and {printable(other)}: if they are one picture, or a picture and its mask, remove one "
        f"of them"
    ]


def doubtful_classes(inner: Mapping[str, Collection[str]]) -> list[str]:
    """A warning if all classes have the same folders, as splits with other names have, or an empty list.

    `inner` are the folders in that of each class.
    """
    same = sorted(set.intersection(*map(set, inner.values())))
    if len(inner) < 2 or len(same) < 2:
        return []
    names = sorted(inner), same
    outer, shown = (printable(", ".join(some[:5]) + ", ..." * (len(some) > 5)) for some in names)
    return [
        f"warning: {outer} are taken as classes, although each has folders {shown}: if they are splits, call them "
        "train, val and test; if the inner folders are the classes, move them out"
    ]
