"""What the figures that need no labels mean, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

MATCHES = "contrastive_h_top1"  # the share of images whose other view was found
FAR = 2  # times the odds of the untrained network, from which an encoder is clearly better


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
        f"For {found} in 100 images, the encoder finds the other view of the same image (chance {chance}, untrained "
        f"{untrained}). {verdict(row)}",
        f"These figures need no labels. Rows that end in h are about the encoder's output, those in z about the "
        f"head's, which only training uses. Of contrastive accuracies higher is better, of alignment, uniformity and "
        f"entropy lower. An effective rank is at most {most}. Near 1, all images look the same to the encoder; above "
        f"that, neither more nor less is known to be better.",
    ]


def verdict(row: Mapping[str, Any]) -> str:
    """Whether an encoder finds other views much more often than the untrained network, and what follows.

    `row` has trained, low and untrained in percent, of which the last may be nan.
    """
    trained, untrained = row["trained"], row["untrained"]
    if isnan(untrained):
        return ""
    if trained <= untrained:
        return "That is no better than the untrained network: train for longer, or on more images."
    if row["low"] > untrained and trained * (100 - untrained) >= FAR * untrained * (100 - trained):
        return (
            "That is clearly better than the untrained network, so the encoder has learned from its images: "
            "`simclr neighbours` and `simclr explore` show what it finds alike."
        )
    return "That is hardly better than the untrained network: train for longer, or on more images."
