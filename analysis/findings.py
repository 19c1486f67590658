"""What a study, a run or a search found, in sentences that start its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

import pandas as pd

from analysis.label_free import MATCHES, START, UNTRAINED, among, of_images, verdict
from analysis.statistics import FEWEST_SEEDS, accuracy_interval
from analysis.summary import SAME, SIGNIFICANT
from analysis.tables import is_accuracy, is_classification, is_on_validation, metric_label, signed
from analysis.text import percent

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NO_INTERVAL = ", so it has no interval"  # an accuracy that was chosen because it is the highest
ROUNDED = 1e-4  # by which the accuracies of trials in a table differ at most from those that were measured
FEW = 50  # test images below which an accuracy says little, or is in doubt if its interval is not over them
MOST_NAMED = 6  # cells that one sentence lists


def of_study(table: pd.DataFrame, metric: str, *, unfinished: bool = False) -> list[str]:
    """The finding of a study, given a table from `analysis.summary.summary` whose first row is the baseline.

    The first sentence is about the cell with the largest clear difference from the baseline, or says that there is
    none. A difference is clear if its p value, corrected for all comparisons, is below 0.05. Cells that are the same as
    the baseline within a margin are named separately from those that can't be told from it. For an `unfinished` study,
    nothing is recommended that it may be doing already.
    """
    cells = table.iloc[1:].to_dict("records")
    compared = [cell for cell in cells if not isnan(cell["difference"])]
    if not compared:
        best = table.dropna(subset=["mean"]).sort_values("mean").iloc[-1]
        return [
            f"No cell can be compared with the baseline yet. The best result so far is {_value(best['mean'], metric)} "
            f"{metric_words(metric)}, of '{best['cell']}'."
        ]
    ranked = sorted(compared, key=lambda cell: -abs(cell["difference"]))
    clear = [cell for cell in ranked if cell["p_holm"] < SIGNIFICANT]
    baseline = float(table["mean"].iloc[0])
    if not clear:
        return _nothing_clear(ranked, baseline, metric, unfinished)
    sentences = [_difference(clear[0], metric), *_paper(clear[0])]
    others = [cell for cell in ranked if cell is not clear[0]]
    for word, side in (("lower", -1), ("higher", 1)):
        also = [cell for cell in clear[1:] if cell["difference"] * side > 0]
        if also:
            named = [f"{_lower(cell['cell'])} ({signed(cell['difference'], '.1f')})" for cell in also]
            sentences.append(f"Also {word}: {_listed(named)}.")
    unclear = [_lower(cell["cell"]) for cell in others if cell not in clear and not _is_same(cell)]
    if unclear:
        sentences.append(f"No clear difference: {_listed(unclear)}.")
    sentences += _same(others)
    return [sentences[0], " ".join(sentences[1:])] if len(sentences) > 1 else sentences


def in_other_metrics(summaries: Mapping[str, pd.DataFrame], margin: float) -> list[str]:
    """Which cells differ clearly from the baseline in a metric other than the first, but not in the first.

    `summaries` are tables from `analysis.summary.summary` by metric. Differences of less than the `margin` that the
    study was made with, in points, are called small.
    """
    (_, first), *others = summaries.items()

    def clear(table: pd.DataFrame) -> dict[tuple[str, bool], float]:
        """The differences by cell and side."""
        rows = table[table["p_holm"] < SIGNIFICANT]
        return {(row["cell"], row["difference"] > 0): row["difference"] for row in rows.to_dict("records")}

    sentences = []
    for metric, table in others:
        if new := {place: size for place, size in clear(table).items() if place not in clear(first)}:
            small = f", less than the study's margin of {margin:g}"
            named = [
                f"{_lower(cell)} ({signed(size, '.1f')}{_points(metric)}{small * (abs(size) < margin)})"
                for (cell, _), size in new.items()
            ]
            sentences.append(
                f"In {metric_words(metric)} alone, there is a significant difference from the baseline (p < "
                f"{SIGNIFICANT:g}, corrected within this metric): {_listed(named)}."
            )
    return sentences


def _is_same(cell: Mapping[Any, Any]) -> bool:
    return str(cell["finding"]).startswith(SAME)


def _same(cells: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Which cells are the same as the baseline within the margin, if any are."""
    same = [cell for cell in cells if _is_same(cell)]
    return [f"{same[0]['finding'].capitalize()}: {_listed([_lower(cell['cell']) for cell in same])}."] if same else []


def _nothing_clear(ranked: Sequence[Mapping[Any, Any]], baseline: float, metric: str, unfinished: bool) -> list[str]:
    largest = ranked[0]
    size, low, high = (signed(largest[f"difference{end}"], ".1f") for end in ("", "_low", "_high"))
    size += _points(metric)
    if largest["pairs"] < FEWEST_SEEDS:
        repeat = "" if unfinished else " Repeat the study with --seeds 3 or more."
        return [
            f"{_seeds(largest['pairs']).capitalize()} can't tell any difference in {metric_words(metric)} from luck.",
            f"The largest is {size}, {_lower(largest['cell'])}; the baseline has {_value(baseline, metric)}.{repeat}",
        ]
    if isnan(largest["difference_low"]):
        return [
            f"{describe_cell(largest['cell'])}, {metric_words(metric)} is {size.lstrip('+-')} "
            f"{'below' if largest['difference'] < 0 else 'above'} the baseline's {_value(baseline, metric)}, over "
            f"{_seeds(largest['pairs'])}.",
            "There is nothing to test it against: the difference is the same in all seeds, or fewer than three of the "
            "seeds that measure the spread have results.",
        ]
    return [
        f"No cell differs clearly from the baseline in {metric_words(metric)} ({_value(baseline, metric)}), over "
        f"{_seeds(largest['pairs'])}.",
        " ".join(
            [
                "No p, corrected for all comparisons in this metric, is below 0.05. The largest difference is "
                f"{size} ({low} to {high}), {_lower(largest['cell'])}.",
                *_same(ranked),
            ]
        ),
    ]


def _difference(cell: Mapping[Any, Any], metric: str) -> str:
    """`Without colour jitter, linear accuracy falls by 28.4 points (19.9 to 36.9), from 96.3 to 67.9, over ...`."""
    difference = cell["difference"]
    verb, sign = ("falls", -1) if difference < 0 else ("rises", 1)
    low, high = sorted(sign * cell[f"difference_{end}"] for end in ("low", "high"))
    # Only if no seed lacks a partner is the difference that of the means.
    change = f", from {cell['mean'] - difference:.1f} to {cell['mean']:.1f}" if cell["pairs"] == cell["n"] else ""
    return (
        f"{describe_cell(cell['cell'])}, {metric_words(metric)} {verb} by {abs(difference):.1f}{_points(metric)} "
        f"({low:.1f} to {high:.1f}){change}, over {_seeds(cell['pairs'])}."
    )


def _paper(cell: Mapping[Any, Any]) -> list[str]:
    """What the paper reports of the same change, by the verdict on it."""
    verdict = str(cell["verdict"] or "")
    where = f" ({cell['source'].partition(':')[0]})" if cell["source"] else ""
    if verdict == "agrees":
        return [f"The paper reports the same direction{where}."]
    if verdict == "differs":
        return [f"The paper reports the opposite direction{where}."]
    if verdict.startswith("not comparable"):
        return [f"The paper's result is {verdict}."]
    return [f"The paper's comparison: {verdict}."] if verdict.startswith(("agrees (", "differs (", SAME)) else []


def describe_cell(cell: str) -> str:
    """How a sentence about a cell starts: its name says what was changed."""
    for word, phrase in (("no ", "Without "), ("only ", "With only ")):
        if cell.startswith(word):
            parts = cell.removeprefix(word).replace(" + ", ", ").split(", ")
            names = [part.replace("_", " ").replace("color", "colour") for part in parts if "=" not in part]
            settings = [part.replace("=", " = ") for part in parts if "=" in part]
            return phrase + _and(names) + (f", with {_and(settings)}" if settings else "")
    if cell.startswith("trial "):
        return f"With the settings of {cell}"
    return f"With {cell.replace('=', ' = ')}"


def _lower(cell: str) -> str:
    phrase = describe_cell(cell)
    return phrase[0].lower() + phrase[1:]


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _listed(texts: Sequence[str]) -> str:
    """Texts, of which the last are only counted if they are many."""
    if len(texts) <= MOST_NAMED:
        return "; ".join(texts)
    return f"{'; '.join(texts[: MOST_NAMED - 1])}; and {len(texts) - MOST_NAMED + 1} more"


def _seeds(n: int) -> str:
    return f"{NUMBERS[n] if n < len(NUMBERS) else n} {'seed' if n == 1 else 'seeds'}"


def compared(comparisons: int, others: int) -> str:
    """A number of comparisons, `others` of which are not with the baseline."""
    split = (
        f" ({comparisons - others} with the baseline, and {others} with the cells with which the paper compares them)"
    )
    return count(comparisons, "comparison") + split * bool(others)


def count(n: int, what: str) -> str:
    """A number of things, such as `1 epoch` or `3 epochs`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def metric_words(metric: str) -> str:
    """A metric as it is called in a sentence."""
    return metric_label(metric).replace("top-1", "accuracy").replace("top-5", "top-5 accuracy")


def _points(metric: str) -> str:
    return " points" if is_accuracy(metric) else ""


def _value(value: float, metric: str) -> str:
    return f"{value:.1f} %" if is_accuracy(metric) else f"{value:.4g}"


def of_run(
    figures: pd.DataFrame, images: int | None, trained: str, command: str, used: tuple[int, int] | None = None
) -> list[str]:
    """The finding of a run, given its evaluations: metric, trained, low, high, untrained, pixels and chance,
    and start if its training started from weights.

    They are about its own images unless a column `elsewhere` has the name of others. Own images come first, even if
    they have no labels.

    `images` is the number of images that the first accuracy is about, `trained` says how it was trained (`for 10 epochs
    on shapes`), and `command` evaluates a run that has not been evaluated. `used` is as in `label_free.of_images`.
    """
    elsewhere = figures["elsewhere"] if "elsewhere" in figures else pd.Series(None, figures.index, object)
    kinds = figures["metric"].map(is_classification).astype(bool)
    matches = figures[(figures["metric"] == MATCHES) & elsewhere.isna()]
    accuracies = figures[kinds & elsewhere.isna()]
    if accuracies.empty and len(matches):
        return _of_matches(matches.iloc[0], trained, used)
    if accuracies.empty:
        accuracies = figures[kinds]
    if accuracies.empty:
        return [f"Trained {trained}, and not evaluated yet.", f"To evaluate it, run {command}."]
    linear = accuracies[accuracies["metric"] == "linear_top1"]
    row = (linear if len(linear) else accuracies).iloc[0]
    place = row.get("elsewhere")
    part = "validation" if is_on_validation(row["metric"]) else "test"
    of = f"{images} {part} images" if images else f"the {part} images"
    of += f" of {place}" if place else ""
    interval = "" if isnan(row["low"]) else f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    words = metric_words(row["metric"].rpartition("/")[2] if place else row["metric"].removeprefix("val/"))
    reached = f"The encoder's {words} is {100 * row['trained']:.1f} % on {of}{interval}."
    if row["metric"].removeprefix("val/") == "linear_top1":
        share = f"{100 * row['trained']:.1f} % of {of}"
        reached = f"A linear classifier on the encoder's features classifies {share} correctly{interval}."
    known = {
        "untrained": "an untrained network gives",
        "start": START,
        "pixels": "kNN on raw pixels",
        "chance": "chance",
    }
    others = [f"{name} {100 * row[key]:.1f} %" for key, name in known.items() if not isnan(row.get(key, nan))]
    sentences = [f"{reached} The encoder was trained {trained}."]
    rest = [f"For comparison: {_and(others)}."] if others else []
    if images is not None and images < FEW:
        rest.append(f"With only {count(images, f'{part} image')}, this says little.")
    before = {UNTRAINED: row["untrained"], START: row.get("start", nan)}
    if unclear := [name for name, value in before.items() if row["low"] <= value]:
        rest.append(f"The encoder has no clear gain over {_and(unclear)}.")
    return [*sentences, " ".join(rest)] if rest else sentences


def _of_matches(row: pd.Series[Any], trained: str, used: tuple[int, int] | None) -> list[str]:
    """The finding of a run whose images have no labels: for how many it finds the other view of the same image."""
    shares = {key: 100 * row.get(key, nan) for key in ("trained", "low", "untrained", "start", "chance")}
    names = {"untrained": "untrained", "start": "before training", "chance": "chance"}
    known = [f"{name} {shares[key]:.1f} %" for key, name in names.items() if not isnan(shares[key])]
    return [
        f"For {shares['trained']:.1f} % {of_images(used)}, the encoder finds the other view of the same image"
        f"{among(shares['chance'])}. It was trained {trained}.",
        " ".join([*[f"For comparison: {_and(known)}."] * bool(known), verdict(shares)]).strip(),
    ]


def of_search(
    trials: pd.DataFrame, start: float, selection: pd.DataFrame | None, images: int | None = None
) -> list[str]:
    """The finding of a search, given its trials (trial, accuracy) and the accuracy in [0, 1] of its start (or nan).

    `selection` has the accuracies of the baseline and of the best trials in the search, and with n fresh seeds.
    `images` is the number of validation images, from which the interval of the start follows, if it is known. The best
    trial has none, because that of one accuracy misses the true one too often if it is the highest of several.
    """
    completed = trials.dropna(subset=["accuracy"])
    if completed.empty:
        return [f"No trial ran to the end ({count(len(trials), 'trial')})."]
    best = completed.iloc[completed["accuracy"].astype(float).to_numpy().argmax()]
    gain = percent(best["accuracy"] - start)
    size = f"{abs(gain):.1f} points" if abs(gain) >= 0.05 else "less than 0.1 points"
    own, several = f"{100 * start:.1f} %", len(completed) > 1 and images is not None
    if images is not None and not isnan(start):
        low, high = accuracy_interval(round(start * images), images)
        own += f", {100 * low:.1f} to {100 * high:.1f}"
    opening, change = "The", "" if isnan(start) else f", {size} above your config ({own})"
    if gain <= 0:
        opening = f"No trial beat your config ({own}). The"
        change = f", {size} below your config" if gain else ", the same as your config"
    first = (
        f"{opening} best of {count(len(trials), 'trial')}, trial {best['trial']}, reaches "
        f"{100 * best['accuracy']:.1f} % on validation{change}."
    )
    others = []
    if selection is not None and _is_about(selection, best["accuracy"]):
        others.append(_confirmed(selection.iloc[0], selection.iloc[1]))
    if not others and not gain <= 0:
        first += f" This is not confirmed with fresh seeds, and part of it is luck{NO_INTERVAL * several}."
    elif several:
        first += f" As the best of several, it will probably be lower next time{NO_INTERVAL}."
    return [first, *others]


def _is_about(selection: pd.DataFrame, best: float) -> bool:
    """Whether the best trial or the start was trained again: a search that continued may have found a better one since.

    Earlier versions recorded no accuracies in the search.
    """
    if len(selection) < 2 or selection["fresh seeds"].iloc[:2].isna().any():
        return False
    return bool(best <= selection.get("in the search", pd.Series([1.0])).max() + ROUNDED)


def _confirmed(baseline: pd.Series[Any], chosen: pd.Series[Any]) -> str:
    """Whether the gain of the best trial held with fresh seeds. Earlier versions recorded no interval of it."""
    mean = percent(chosen.get("gain", chosen["fresh seeds"] - baseline["fresh seeds"]))
    low, high, searched = (percent(chosen.get(name, nan)) for name in ("gain_low", "gain_high", "gain in the search"))
    n = int(chosen["n"])
    interval = "" if isnan(low) else f" ({signed(low, '.1f')} to {signed(high, '.1f')})"
    outcome = (
        f"Trained again with {_seeds(n)} that took no part in the choice, {chosen['cell']} is {abs(mean):.1f} points "
        f"{'above' if mean >= 0 else 'below'} your config on validation{interval}."
    )
    if n < FEWEST_SEEDS:
        return (
            f"{outcome} Fewer than three fresh seeds can't tell this from chance: search again with --seeds 3 or more."
        )
    if isnan(low):
        return outcome
    if high < 0:
        return f"{outcome} So your config is better{', and the gain in the search was luck' * bool(searched > 0)}."
    if low <= 0:
        return f"{outcome} That may be chance: the gain is not confirmed. More --seeds can detect smaller gains."
    smaller = f", but it is smaller than in the search ({signed(searched, '.1f')}), where part of it was luck"
    held = f"{outcome} So the gain holds with fresh seeds{smaller * bool(mean < searched)}."
    if isnan(chosen.get("test", nan)):
        return f"{held} Add --on test to see whether it also holds on test images."
    return held
