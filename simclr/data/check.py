"""Count decoded images that look as if something went wrong, such as black ones, and refuse data sets full of them."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simclr.data.workers import in_chunks

LEVELS = 16  # an image with at most this many values (of 256, over all channels) is counted: 12 bits cut to 4 have 16
FEWEST_IMAGES = 100  # data sets of fewer images are not refused: in these, a few plain images don't mean a fault
MOST = 0.5  # share of images of one colour, or with few levels, above which a data set is refused
LEAST_DISTINCT = 0.1  # share of different images below which it is refused
LEAST_SPAN = 128  # images with few levels that span so many of the 256 values are drawings and not refused


class Measured(NamedTuple):
    """What `measure` counts."""

    images: int
    distinct: int  # images that differ from each other
    repeated: int  # images that are identical to another one
    one_colour: int  # images of a single colour
    few_levels: int  # other images with at most LEVELS values
    lowest: int  # of all values of all images
    highest: int


def measure(images: NDArray[Any]) -> tuple[Measured, NDArray[np.uint64]]:
    """Count such images among uint8 N x 3 x H x W, of which there is at least one.

    Also returns a number for each image, equal for images with equal pixels.
    """
    images = np.asarray(images)  # without the overhead of np.memmap
    step = max(1, images.shape[-1] // 6)
    hashes = np.empty(len(images), np.uint64)

    def count(rows: range) -> tuple[int, int]:
        one_colour = few_levels = 0
        for row in rows:
            image = images[row]
            sample = image[:, ::step, ::step].tobytes()  # some 6 x 6 pixels decide about most images
            hashes[row] = _hash(sample)
            if len(set(sample)) <= LEVELS >= len(np.unique(image)):
                plain = bool((image == image[:, :1, :1]).all())
                one_colour, few_levels = one_colour + plain, few_levels + (not plain)
        return one_colour, few_levels

    counts = [part for _, part in in_chunks(count, len(images), processes=False)]
    one_colour, few_levels = (sum(each) for each in zip(*counts, strict=True))
    _, number, copies = np.unique(hashes, return_inverse=True, return_counts=True)
    for row in np.flatnonzero(copies[number] > 1):  # images with equal samples may differ elsewhere
        hashes[row] = _hash(images[row].data)
    copies = np.unique(hashes, return_counts=True)[1]
    repeated = int(copies[copies > 1].sum())
    lowest, highest = int(images.min()), int(images.max())
    return Measured(len(images), len(copies), repeated, one_colour, few_levels, lowest, highest), hashes


def fingerprints(images: NDArray[Any], rows: NDArray[np.int64]) -> set[int]:
    """A number for each of some rows of uint8 N x 3 x H x W, equal for images with equal pixels."""
    return {_hash(images[row].tobytes()) for row in rows}


def _hash(data: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def describe(found: Measured) -> str:
    """What was counted, in one line. Empty if nothing was."""
    spare = found.images - found.distinct
    copies = f"{spare:,} spare cop{'y' if spare == 1 else 'ies'}; `simclr explore` shows them"
    counts = (
        (found.one_colour, ("is", "are"), "of one colour"),
        (found.few_levels, ("has", "have"), f"at most {LEVELS} of 256 values"),
        (found.repeated, ("is", "are"), f"identical to another one ({copies})"),
    )
    counted = [f"{count:,} {verbs[count != 1]} {what}" for count, verbs, what in counts if count]
    return f"of {found.images:,} images, {', '.join(counted)}" if counted else ""


def find_fault(found: Measured, check: bool) -> str | None:
    """Why a data set can't be used. None if it can. Without `check`, only images that are all equal are a reason."""
    if found.images > 1 and found.distinct == 1:
        colour = " and of one colour" if found.one_colour else ""
        return (
            f"all {found.images:,} images are equal{colour} once they are decoded, so there is nothing to learn: look "
            f"at the files. data.background and data.range determine how transparent images and images of more than "
            f"8 bits are decoded"
        )
    few = found.one_colour + found.few_levels > MOST * found.images and found.highest - found.lowest < LEAST_SPAN
    plain = found.one_colour > MOST * found.images
    if check and found.images >= FEWEST_IMAGES and (few or plain or found.distinct < LEAST_DISTINCT * found.images):
        return (
            f"the images look as if they were decoded wrongly: {describe(found)}; values from {found.lowest} to "
            f"{found.highest}. To look at some, run `simclr views` with --set data.check=report, which accepts them. "
            f"data.background and data.range determine how transparent images and images of more than 8 bits are "
            f"decoded"
        )
    return None
