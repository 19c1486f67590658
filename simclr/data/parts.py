"""The parts of a data set: which images are for training, validation and testing, with copies kept together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from simclr.data.images import Array, Files
from simclr.data.source import UNLABELLED, Contents
from simclr.errors import UserError, printable
from simclr.randomness import permutation


def divide(
    splits: Mapping[str, Array],
    labels: Array,
    *,
    fraction: float,
    seed: int,
    limit: int | None = None,
    units: Array | None = None,
) -> dict[str, Array]:
    """Cut the rows of a source's splits into disjoint, stratified train, val and test.

    A split that the source lacks is held out of train: this fraction of its labelled images. Rows of one unit (`units`
    has a number for each row) stay together. `pretrain` is train and all unlabelled images, of which `limit` are drawn.
    Raises UserError if that leaves no image to train on.
    """
    train = _shuffle(splits["train"], labels, seed)
    known = labels[train] != UNLABELLED
    train, unknown = train[known], train[~known]
    held_out = {}
    count = max(1, round(fraction * len(train))) if fraction and len(np.unique(labels[train])) > 1 else 0
    for part in ("val", "test"):
        if part in splits:
            held_out[part] = splits[part]
            continue
        held_out[part], train = _hold_out(train, count, units)
        if units is not None:
            unknown = unknown[~np.isin(units[unknown], units[held_out[part]])]
    if not len(train) and (count or not len(unknown)):
        raise _none_left(splits, labels, fraction, units)
    everything = np.concatenate([train, unknown, splits.get("unlabeled", train[:0])])
    pretrain = _shuffle(everything, labels, seed)[:limit]
    train = np.intersect1d(train, pretrain)
    labelled = {part: rows[labels[rows] != UNLABELLED] for part, rows in ({"train": train} | held_out).items()}
    return {part: np.sort(rows) for part, rows in ({"pretrain": pretrain} | labelled).items()}


def _none_left(splits: Mapping[str, Array], labels: Array, fraction: float, units: Array | None) -> UserError:
    """Why no image is left to train on."""
    rows, parts = splits["train"], ["train", *(part for part in ("val", "test") if part not in splits)]
    number = len(rows) if units is None else len(np.unique(units[rows[labels[rows] != UNLABELLED]]))
    if units is not None and number < len(parts):
        return UserError(
            f"the {len(rows):,} images can't be divided into {', '.join(parts)}, because images that stay together "
            f"(by data.group, or as copies) form only {number} group{'s' * (number > 1)}: add images of other groups, "
            f"or let data.group make more of them"
        )
    return UserError(
        f"data.val_fraction = {fraction:g} of {len(rows)} images leaves none to train on: lower it, or add images"
    )


def _shuffle(rows: Array, labels: Array, seed: int) -> Array:
    """Shuffle rows by a seed, stratified: the first n rows have each class in its proportion, for any n."""
    rows = rows[permutation(len(rows), seed, "split").numpy()]
    position = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        same = np.flatnonzero(labels[rows] == label)
        position[same] = (np.arange(len(same)) + 0.5) / len(same)
    return rows[np.argsort(position, kind="stable")]


def _hold_out(rows: Array, count: int, units: Array | None) -> tuple[Array, Array]:
    """The first `count` rows, and the others. Of units of several rows, the first ones that fit into that number.

    If none fits, the smallest unit is held out.
    """
    if units is None or not count or not len(rows):
        return rows[:count], rows[count:]
    _, first, number, sizes = np.unique(units[rows], return_index=True, return_inverse=True, return_counts=True)
    order, chosen, left = np.argsort(first), [], count
    for unit in order:
        if sizes[unit] <= left:
            chosen.append(unit)
            left -= sizes[unit]
        if not left:
            break
    held = np.isin(number, chosen or [order[np.argmin(sizes[order])]])
    return rows[held], rows[~held]


def held_out_whole(rows: Array, labels: Array, units: Array) -> Array:
    """A fifth of some rows, stratified and at random, in which rows of one unit stay together."""
    return _hold_out(_shuffle(rows, labels, 0), max(1, len(rows) // 5), units)[0]


def joined(first: Array, second: Array) -> Array:
    """Units of rows, from two numberings of them: rows with an equal number in either belong to one unit."""
    _, one = np.unique(first, return_inverse=True)
    _, two = np.unique(second, return_inverse=True)
    nodes = int(one.max()) + 1
    links = coo_array((np.ones(len(one)), (one, two + nodes)), shape=(nodes + int(two.max()) + 1,) * 2)
    units: Array = connected_components(links, directed=False)[1][one]
    return units


def group_numbers(contents: Contents, pattern: str) -> Array:
    """A number for each row's group: the value in a column of a table, if `pattern` is the name of one.

    Else a regular expression finds it in the name of the file (its first group, or all of it). Raises UserError if a
    name doesn't match, or a row has no value.
    """
    found: list[str] = []
    unmatched: list[str] = []
    blank: list[str] = []
    for split in contents.splits.values():
        column = (split.columns or {}).get(pattern)
        if column is None and not isinstance(split.images, Files):
            raise UserError("data.group needs images in files, whose names say the group: leave it out")
        names = split.images.names if isinstance(split.images, Files) else [""] * len(split.labels)
        for row, name in enumerate(names):
            if column is not None:
                (found if column[row] else blank).append(column[row] or name or f"row {row + 1}")
            elif (match := re.search(pattern, name)) is None:
                unmatched.append(name)
            else:
                found.append(match[1] if match.re.groups and match[1] is not None else match[0])
    if unmatched:
        raise UserError(
            f"data.group = {pattern!r} finds no group in {len(unmatched):,} of {len(unmatched) + len(found):,} names, "
            f"such as '{printable(unmatched[0])}': expected a regular expression that matches the name of every file, "
            f"or a column of a table (--labels TABLE)"
        )
    if blank:
        raise UserError(
            f"data.group = '{pattern}' has no value for {len(blank):,} of {len(blank) + len(found):,} images, such as "
            f"'{printable(blank[0])}': fill in the column, with a value of its own for an image that is in no group"
        )
    return np.unique(found, return_inverse=True)[1].astype(np.uint64)


def describe_copies(hashes: Array, labels: Array, parts: Mapping[str, Array]) -> list[str]:
    """A sentence about equal images in several parts, and one about equal images with different labels."""
    found = [f"{what} also occur in {where}" for what, where in _shared(hashes, parts)]
    known = labels != UNLABELLED
    pairs = np.unique(np.stack([hashes[known], labels[known].astype(hashes.dtype)]), axis=1)
    if several := int((np.unique(pairs[0], return_counts=True)[1] > 1).sum()):
        found.append(f"{several:,} image{'s occur' if several > 1 else ' occurs'} in more than one class")
    return found


def describe_unlearned(labels: Array, classes: Sequence[str], parts: Mapping[str, Array]) -> list[str]:
    """A sentence about classes that validation or test images have and no training image has."""
    held = labels[np.concatenate([parts["val"], parts["test"]])]
    lost = np.setdiff1d(held[held != UNLABELLED], labels[parts["train"]])
    if not len(lost):
        return []
    what = f"{len(lost):,} classes have" if len(lost) > 1 else "a class has"
    return [
        f"{what} validation or test images but no training images, such as '{printable(classes[lost[0]])}', so no "
        f"classifier can learn {'them' if len(lost) > 1 else 'it'}: add images, or raise data.limit if it is set"
    ]


def describe_groups(groups: Array, parts: Mapping[str, Array]) -> list[str]:
    """A sentence about groups in several parts, which only splits that the source comes with can have."""
    return [f"{what} belong to groups that {where} has too" for what, where in _shared(groups, parts)]


def _shared(numbers: Array, parts: Mapping[str, Array]) -> list[tuple[str, str]]:
    """How many test images have a number that is in train or val too, and how many val images one that is in train."""
    found = []
    others = {"test": np.concatenate([parts["pretrain"], parts["val"]]), "val": parts["pretrain"]}
    for part, elsewhere in others.items():
        if shared := int(np.isin(numbers[parts[part]], numbers[elsewhere]).sum()):
            where = "train or val" if part == "test" else "train"
            found.append((f"{shared:,} of {len(parts[part]):,} {part} images", where))
    return found


def told_by_labels(splits: Mapping[str, Array], labels: Array) -> bool:
    """Whether the order of the labels shows where each split begins: all splits are sorted by class, as in folders."""
    unknown = labels == UNLABELLED
    ends = (labels[1:] < labels[:-1]) | (unknown[1:] != unknown[:-1])
    begins = sorted(int(rows[0]) for rows in splits.values() if len(rows))
    return begins == [0, *(np.flatnonzero(ends) + 1).tolist()]


def hash_parts(parts: Mapping[str, Array]) -> str:
    """Sixteen hexadecimal digits that identify the rows of each part."""
    digest = hashlib.blake2b(digest_size=8)
    for part, rows in parts.items():
        digest.update(f"{part} {len(rows)} ".encode() + rows.astype(np.int64).tobytes())
    return digest.hexdigest()
