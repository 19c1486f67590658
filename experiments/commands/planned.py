"""What `simclr ablate` says before it trains: the cells, how long they take, and what the study can show."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

from experiments.commands.terminal import describe_duration

if TYPE_CHECKING:
    from experiments.studies.forecast import Forecast

CROSSED = (
    "--vary is crossed with all other cells: the baseline and each of them are trained with the baseline's own value "
    "and with each value of --vary."
)
CONFOUNDED = (
    "Every cell differs from the baseline in several settings, so this study can't tell which of them matters. To find "
    "out, list the baseline's own values in --vary as well."
)


def planned_cell(forecast: Forecast) -> dict[str, Any]:
    """What --json says about a cell."""
    cell = forecast.cell
    return {
        "cell": cell.name,
        "settings": cell.settings,
        "epochs": cell.config.train.epochs,
        "cost": cell.cost,
        "seeds_done": forecast.done,
        "seconds_per_seed": forecast.seconds + forecast.evaluation,
        "memory_bytes": forecast.memory,
    }


def describe_plan(planned: dict[str, Any]) -> str:
    """What a study will train, and how long that will take."""
    from analysis.text import paragraph, text_table
    from experiments.studies.cell import BASELINE
    from simclr.train.memory import format_bytes

    cells, seeds, most = planned["cells"], planned["seeds"], planned["most_seeds"]
    number = f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})" if len(seeds) > 1 else f"1 seed ({seeds[0]})"
    if most > len(seeds):
        number += f" or up to {most}"
    rows = [
        [
            planned["baseline"] if each["cell"] == BASELINE else each["cell"],
            f"{len(each['seeds_done'])} of {most}",
            str(each["epochs"]) if each["cost"] is not None else "",
            f"{each['cost']:.0%}" if each["cost"] is not None else "",
            "" if len(each["seeds_done"]) == most else describe_duration(each["seconds_per_seed"]),
            format_bytes(each["memory_bytes"]),
        ]
        for each in cells
    ]
    header = ["cell", "seeds done", "epochs", "cost", "time per seed", "memory"]
    left = f"{describe_duration(planned['seconds'])} of training and evaluation left{' at most' * (most > len(seeds))}"
    if all(len(each["seeds_done"]) == most for each in cells):
        left = "all of them already trained"
    summary = (
        f"study {planned['study']}: {len(cells)} cells x {number}, {left}, evaluated on "
        f"{'validation' if planned['on'] == 'val' else planned['on']} images"
    )
    if planned["rates"]:
        summary += f". First, {len(planned['rates'])} runs with another seed choose learning rates on validation images"
    why = [CROSSED] * planned["crossed"] + [CONFOUNDED] * planned["confounded"] + planned["remarks"]
    shown = _describe_power(planned["power"], len(seeds), most)
    return "\n".join([paragraph(summary), *map(paragraph, why), text_table(header, rows), "", shown])


def _describe_power(power: dict[str, Any], seeds: int, most: int) -> str:
    """What this many seeds can show, and how that is known. `most` is the number that --until may take."""
    from analysis.findings import compared, count
    from analysis.text import paragraph, text_table

    chance, effect = f"{power['power']:.0%}".replace("%", " %"), power["effect"]
    too_few = f"{count(seeds, 'seed')} can't show a difference: at least three are needed."
    if power["deviation"] is None:
        one, two = (each["seeds"] or "over 100" for each in power["needed_for_effects"])
        shows = (
            f"With a probability of {chance}, {seeds} seeds detect {effect:.1f} standard deviations of paired "
            f"differences, which aren't known yet: {0.3 * effect:.1f} points if one is 0.3 points."
        )
        return paragraph(
            f"{too_few if isnan(effect) else shows} One standard deviation takes {one} seeds, two take {two} (p "
            f"corrected for {count(power['comparisons'], 'comparison')})."
        )
    points = power["detectable"]
    if isnan(points):
        shows = too_few
    elif points > 100:
        shows = f"{seeds} seeds can't detect even a difference of 100 points with a probability of {chance}."
    else:
        ends = power["detectable_interval"]
        most_points = f"{ends[1]:.2g}" if ends and ends[1] <= 100 else "over 100"
        roughly = f" (roughly: {ends[0]:.2g} to {most_points}, because the spread is an estimate)" if ends else ""
        shows = (
            f"With a probability of {chance}, {seeds} seeds detect a difference of {points:.1f} points in linear "
            f"accuracy{roughly}."
        )
    between = " (95 % interval {:.2g} to {:.2g})".format(*power["interval"]) if power["interval"] else ""
    source = (
        f"This is for a paired t test, with p corrected for {compared(power['comparisons'], power['others'])}, if "
        f"differences vary between seeds with a standard deviation of {power['deviation']:.2g} points{between}. That "
        f"is {power['source']}."
    )
    needed = [[f"{each['points']:g}", str(each["seeds"] or "over 100")] for each in power["needed"]]
    about = ", roughly" * (power["interval"] is not None)
    table = text_table(["difference (points)", f"seeds needed ({chance}{about})"], needed)
    expected = []
    if (needed_seeds := power.get("expected_seeds")) is not None:
        wider = f", more than --max-seeds {most}: the intervals will be wider than requested" * (needed_seeds > most)
        expected = [paragraph(f"--until is expected to need {needed_seeds} seeds{wider}.")]
    return "\n".join([paragraph(shows), table, paragraph(source), *expected])
