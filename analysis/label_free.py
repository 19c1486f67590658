"""What the figures that need no labels mean, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

MATCHES = "contrastive_h_top1"  # the share of images whose other view was found
CLEARLY = "clearly"
UNTRAINED = "the untrained network"
START = "the weights that it started from"
FAR = 2  # times the odds of the untrained network from which an encoder is clearly better


def explain(
    figures: Sequence[Mapping[str, Any]], dimensions: Mapping[str, int], used: tuple[int, int] | None = None
) -> list[str]:
    """What the label-free metrics say, and how to read them; empty if there are none. `figures` have a metric, and in
    percent trained, low, untrained and chance. `dimensions` are those of h and z. `used` is as in `of_images`.
    """
    row = next((row for row in figures if row["metric"] == MATCHES), None)
    if row is None:
        return []
    found, chance, untrained = (f"{row[key]:.1f} %" for key in ("trained", "chance", "untrained"))
    most = " and ".join(f"{count} for {layer}" for layer, count in dimensions.items())
    return [
        f"For {found} {of_images(used)}, the encoder finds the other view of the same image{among(row['chance'])} "
        f"(chance {chance}, untrained {untrained}). {verdict(row)}",
        "These metrics need no labels. Rows with h are about the encoder's output, rows with z about the head's, which "
        "only training uses. Higher is better for contrastive accuracies, lower for alignment, uniformity and entropy. "
        f"An effective rank is at most {most}. If it is near 1, all images look the same to the encoder; above that, "
        "neither higher nor lower is known to be better.",
    ]


def of_images(used: tuple[int, int] | None) -> str:
    """Of which images a share is, given how many were used and of how many, if it is known: only whole batches are."""
    if used is None or used[0] == used[1]:
        return "of the images"
    return f"of the images ({used[0]:,} of {used[1]:,} were used, in whole batches)"


def among(chance: float) -> str:
    """Among how many views the other one of an image is found, given the chance of guessing it in percent."""
    others = 100 / chance
    return "" if isnan(chance) else f" among {others:,.0f} views of {(others + 1) / 2:,.0f} images"


def compared(figures: Mapping[str, tuple[float, float, float]]) -> str:
    """Which of several encoders finds the other view of an image most often, and whether that is clear.

    `figures` are MATCHES of the same images by name, in percent: the value, and its interval. Whether intervals overlap
    says less than a paired test would, so what it calls clear is clear.
    """
    (best, (value, low, _)), *others = sorted(figures.items(), key=lambda item: -item[1][0])
    second = others[0][0]
    than = f"more often than {second}" if len(others) == 1 else f"most often, followed by {second}"
    shares = f"{value:.1f} and {others[0][1][0]:.1f} % of the images"
    if value == others[0][1][0]:
        return f"{best} and {second} find the other view of an image equally often: {value:.1f} % of the images."
    clear = low > max(high for _, (_, _, high) in others)
    why = "This is clear: the intervals don't overlap." if clear else "This may be chance: the intervals overlap."
    return f"{best} finds the other view of an image {than} ({shares}). {why}"


def verdict(row: Mapping[str, Any]) -> str:
    """Whether an encoder finds other views much more often than before training, and what follows.

    `row` has trained, low and untrained in percent, and start if training started from weights. The last two may be
    nan.
    """
    others = {UNTRAINED: row["untrained"], START: row.get("start", nan)}
    found = {name: _how_much(row, name, value) for name, value in others.items() if not isnan(value)}
    if not found:
        return ""
    comparison = ", and ".join(
        f"{how} better{'' if number else ' at this'} than {name}" for number, (name, how) in enumerate(found.items())
    )
    if set(found.values()) == {CLEARLY}:
        return (
            f"The encoder is {comparison}, so it has learned from its images: simclr neighbours and simclr explore "
            f"show which images it finds similar."
        )
    return f"The encoder is {comparison}: train for longer, or on more images."


def _how_much(row: Mapping[str, Any], name: str, other: float) -> str:
    """How much better an encoder is than one of this name that finds `other` percent.

    Almost any training beats an untrained network a little, so a clear gain has to be far above that.
    """
    trained = row["trained"]
    if trained <= other:
        return "no"
    if not row["low"] > other:
        return "not clearly"
    far = trained * (100 - other) >= FAR * other * (100 - trained)
    return CLEARLY if far or name != UNTRAINED else "only slightly"
