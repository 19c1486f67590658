"""Warnings about names of files and classes that are understood in one way, but may well be meant in another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from simclr.data.suffixes import IMAGE_SUFFIXES, suffix_of
from simclr.errors import printable

FEW = 5  # a class of fewer images may be a mistake
SHOWN = 5  # such classes that are named
COMPARED = 20  # such classes whose names are compared with those of the others
SIMILAR = 0.8  # similarity of two names, from 0 to 1, one of which may be a misspelling


def doubtful_names(images: Iterable[str]) -> list[str]:
    """A warning about images whose names differ only in the suffix, or an empty list."""
    pairs = [(name.rpartition(".")[0], name) for name in images if suffix_of(name) in IMAGE_SUFFIXES]
    last = dict(pairs)
    if not (count := len(pairs) - len(last)):
        return []
    one, other = next((name, last[stem]) for stem, name in pairs if last[stem] != name)
    return [
        f"warning: {count:,} image{'s have' if count > 1 else ' has'} the same name as another, except for the suffix, "
        f"such as {printable(one)} and {printable(other)}: if they show the same picture, or a picture and its mask, "
        f"remove one of them"
    ]


def doubtful_classes(inner: Mapping[str, Collection[str]]) -> list[str]:
    """A warning if all classes have the same subfolders, which suggests that they are splits, or an empty list.

    `inner` are the folders in that of each class.
    """
    same = sorted(set.intersection(*map(set, inner.values())))
    if len(inner) < 2 or len(same) < 2:
        return []
    names = sorted(inner), same
    outer, shown = (printable(", ".join(some[:5]) + ", ..." * (len(some) > 5)) for some in names)
    return [
        f"warning: {outer} are taken for classes, although each of them has the folders {shown}: if they are splits, "
        "call them train, val and test; if the inner folders are the classes, move them out"
    ]


def doubtful_labels(counts: Mapping[str, int]) -> list[str]:
    """Warnings about classes that may be the same, and about those of few images, which may be misspelled.

    `counts` has the number of images of each class.
    """
    alike: dict[str, list[str]] = {}
    for name in counts:
        alike.setdefault(unicodedata.normalize("NFC", name).strip().casefold(), []).append(f"'{name}'")
    warnings = [
        f"warning: {' and '.join(names)} are different classes: give a class one name if they are the same"
        for names in alike.values()
        if len(names) > 1
    ][:1]
    few = sorted((name for name, count in counts.items() if 0 < count < FEW), key=lambda name: counts[name])
    if few:
        others = [name for name, count in counts.items() if count >= FEW]
        meant = {name: _meant(name, others) for name in few[:COMPARED]}
        first = sorted(meant, key=lambda name: not meant[name])[:SHOWN]
        shown = ", ".join(f"'{name}' ({counts[name]}{meant[name]})" for name in first)
        more = f" and {len(few) - SHOWN:,} more" if len(few) > SHOWN else ""
        warnings.append(
            f"warning: {len(few):,} of {len(counts):,} classes {'have' if len(few) > 1 else 'has'} fewer than {FEW} "
            f"images: {shown}{more}. Add images, or correct the labels"
        )
    return warnings


def _meant(name: str, others: Iterable[str]) -> str:
    """A question after the one of other names that differs little, and not only in digits, or an empty text."""
    near = get_close_matches(name, others, 1, SIMILAR)
    differs = near and re.sub(r"\d", "", near[0]) != re.sub(r"\d", "", name)
    return f", did you mean '{near[0]}'?" if differs else ""
