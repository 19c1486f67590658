"""What the figures that need no labels mean, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

MATCHES = "contrastive_h_top1"  # the share of images whose other view was found
CLEARLY = "clearly"
FAR = 2  # times the odds of the untrained network, or of the start, from which an encoder is clearly better


def explain(figures: Sequence[Mapping[str, Any]], dimensions: Mapping[str, int]) -> list[str]:
    """What the figures without labels say, and how to read them; empty if there are none.

    `figures` have a metric, and in percent trained, low, untrained and chance. `dimensions` are those of h and z.
    """
    row = next((row for row in figures if row["metric"] == MATCHES), None)
    if row is None:
        return []
    found, chance, untrained = (f"{row[key]:.2g}" for key in ("trained", "chance", "untrained"))
    most = " and ".join(f"{count} for {layer}" for layer, count in dimensions.items())
    return [
        f"For {found} in 100 images, the encoder finds the other view of the same image{among(row['chance'])} (chance "
        f"{chance}, untrained {untrained}). {verdict(row)}",
        f"These figures need no labels. Rows that end in h are about the encoder's output, those in z about the "
        f"head's, which only training uses. Of contrastive accuracies higher is better, of alignment, uniformity and "
        f"entropy lower. An effective rank is at most {most}. Near 1, all images look the same to the encoder; above "
        f"that, neither more nor less is known to be better.",
    ]


def among(chance: float) -> str:
    """Among the views of how many images the other view is found, given the chance of guessing it in percent."""
    return "" if isnan(chance) else f" among the views of {(100 / chance + 1) / 2:,.0f} images"  # two views of each


def verdict(row: Mapping[str, Any]) -> str:
    """Whether an encoder finds other views much more often than before training, and what follows.

    `row` has trained, low and untrained in percent, and start if training started from weights. The last two may be
    nan.
    """
    others = {"the untrained network": row["untrained"], "the weights that it started from": row.get("start", nan)}
    found = {name: _how_much(row, value) for name, value in others.items() if not isnan(value)}
    if not found:
        return ""
    told = ", and ".join(
        f"{how} better{'' if number else ' at this'} than {name}" for number, (name, how) in enumerate(found.items())
    )
    if set(found.values()) == {CLEARLY}:
        return (
            f"The encoder is {told}, so it has learned from its images: simclr neighbours and simclr explore show what "
            f"it finds alike."
        )
    return f"The encoder is {told}: train for longer, or on more images."


def _how_much(row: Mapping[str, Any], other: float) -> str:
    """How much better an encoder is than one that finds `other` percent."""
    trained = row["trained"]
    if trained <= other:
        return "no"
    far = row["low"] > other and trained * (100 - other) >= FAR * other * (100 - trained)
    return CLEARLY if far else "hardly"
