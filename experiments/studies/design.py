"""How many seeds a study takes and which differences matter to it, as decided before it runs."""

from __future__ import annotations

from math import isnan

import pandas as pd
from pydantic import BaseModel

from analysis.power import pairs_for_width
from analysis.statistics import FEWEST_SEEDS
from analysis.summary import MARGIN
from analysis.tables import metric_label
from simclr.errors import UserError


class Design(BaseModel, frozen=True):
    """What a study's tests and its number of seeds follow from. `until` is None if that number is fixed."""

    margin: float = MARGIN  # points: differences below it don't matter
    until: float | None = None  # points that the intervals of all differences may reach to each side
    first: tuple[int, ...] = ()  # the seeds whose spread then decides how many follow
    most: int = 0  # seeds, whatever their spread

    def seeds_wanted(self, records: pd.DataFrame, metric: str, baseline: str) -> int:
        """How many seeds Stein's rule asks for, by the differences of the first seeds from the baseline.

        `records` are those of a study (see `analysis.summary.summary`), with accuracies in [0, 1].
        """
        done = records[(records["status"] == "FINISHED") & records["seed"].isin(self.first)]
        values = 100 * done.pivot(index="seed", columns="cell", values=metric)
        control = values.get(baseline, pd.Series(dtype=float))
        differences = [(values[cell] - control).dropna() for cell in values if cell != baseline]
        measured = [each for each in differences if len(each) >= FEWEST_SEEDS]
        half = self.until or 0.0
        return max([len(self.first), *(pairs_for_width(float(each.std()), len(each), half) for each in measured)])

    def check_continues(self, started: Design, name: str) -> None:
        """Raise UserError unless a study that was started by another design may go on by this one."""
        if started.until is not None and (self.until is None or self.first != started.first):
            raise UserError(
                f"the first {len(started.first)} seeds of study '{name}' decide how many follow: add --seeds "
                f"{len(started.first)} --until {started.until:g}, or choose another --name"
            )

    def note(self, table: pd.DataFrame, metric: str, wanted: int) -> str:
        """How the number of seeds was chosen and whether the intervals are as narrow as asked for, for the report.

        `table` is the study's summary by `metric`, and `wanted` what `seeds_wanted` says.
        """
        half, first = self.until or 0.0, len(self.first)
        widest = float((table["difference_high"] - table["difference_low"]).max()) / 2
        ended = f"The widest interval reaches {widest:.2g}, as asked for."
        if isnan(widest):
            ended = "There are no intervals yet."
        elif widest > half + 1e-9:
            why = f"--max-seeds allowed {self.most}" if wanted > self.most else "runs are missing"
            ended = f"The widest interval reaches {widest:.2g}, because {why}."
        return (
            f"The number of seeds followed Stein's two-stage rule (1945). By the spread of the first {first}, "
            f"{wanted} are needed for the 95 % intervals of all differences in {metric_label(metric)} to reach at most "
            f"{half:g} points to each side. {ended} Intervals and p values use the spread of the first {first} alone, "
            "which keeps them exact."
        )
