"""How often the intervals and verdicts of studies are right, in simulated studies whose truth is known.

python -m benchmarks.intervals [--studies 3000] [--cells 4] [--scenarios "all alike" ...]

Each study has a baseline and some cells. The seed moves all of them alike, three times as much as each varies by itself
where nothing else is said. All of this is drawn from normal distributions, except in the scenarios that say otherwise.
The functions are those that make the reports. Prints a table in Markdown, in percent. Each row has its own random
numbers, so those of chosen scenarios equal those of the whole table.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import numpy as np
import pandas as pd
import scipy
from numpy.random import Generator
from numpy.typing import NDArray

from analysis.blocks import pooled_differences
from analysis.power import pairs_for_width
from analysis.statistics import Mean, equivalence_p, holm, mean_interval, paired_difference
from analysis.summary import SIGNIFICANT
from analysis.tables import markdown

Noise = Callable[[Generator, int], NDArray[np.float64]]  # what a cell varies by itself, with so many seeds; mean 0


def normal(deviation: float) -> Noise:
    return lambda draw, seeds: draw.normal(0, deviation, seeds)


def heavy_tails(draw: Generator, seeds: int) -> NDArray[np.float64]:
    """Student's t with 3 degrees of freedom, of standard deviation 1: 1 run in 72 is off by more than 3."""
    values: NDArray[np.float64] = draw.standard_t(3, seeds) / np.sqrt(3)
    return values


def collapses(draw: Generator, seeds: int) -> NDArray[np.float64]:
    """Normal, but 1 run in 20 loses 20 standard deviations. The true value is the mean, which counts these runs too."""
    return draw.normal(size=seeds) - 20 * ((draw.random(seeds) < 1 / 20) - 1 / 20)


SEEDS = (3, 5, 10)
SCENARIOS: dict[str, tuple[Noise, Noise, Noise]] = {  # how the baseline, the last cell and all other cells vary
    "all alike": (normal(1), normal(1), normal(1)),
    "baseline twice as much": (normal(2), normal(1), normal(1)),
    "baseline three times as much": (normal(3), normal(1), normal(1)),
    "one cell twice as much": (normal(1), normal(2), normal(1)),  # the last one, as in all that start with one cell
    "one cell three times as much": (normal(1), normal(3), normal(1)),
    "all with heavy tails": (heavy_tails, heavy_tails, heavy_tails),
    "all collapse in 1 of 20 runs": (collapses, collapses, collapses),
    "one cell collapses in 1 of 20 runs": (normal(1), collapses, normal(1)),
}
SHARED = 3  # what the seed moves all cells by, in the same unit
MARGIN = 10.0  # so wide that only chance can call cells the same that differ by as much
HALF = 1.0  # to each side, for Stein's rule

Study = NDArray[np.float64]  # cells x seeds, the baseline first; all true values are 0


def draw_study(draw: Generator, cells: Sequence[Noise], seeds: int) -> Study:
    """A study without effects whose cells vary like this."""
    return np.array([noise(draw, seeds) for noise in cells]) + draw.normal(0, SHARED, seeds)


def covers(interval: Mean) -> bool:
    return interval.low <= 0 <= interval.high


def any_below(p_values: Iterable[float]) -> bool:
    return any(p < SIGNIFICANT for p in p_values)


def pooled_covers(x: Study) -> list[bool]:
    """Whether intervals of differences from the common error of all cells cover."""
    cells, seeds = x.shape
    residuals = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    freedom = (cells - 1) * (seeds - 1)
    error = np.sqrt(2 * (residuals**2).sum() / freedom / seeds)
    return list(np.abs(x[1:].mean(1) - x[0].mean()) <= error * scipy.special.stdtrit(freedom, 0.975))


def outcomes(x: Study, first: int | None = None) -> dict[str, list[bool]]:
    """What the report of a study gets right (intervals) or wrong (all else)."""
    base, *cells = x
    found = [paired_difference(cell, base, first=first) for cell in cells]
    covered = [covers(each) for each in found]
    pooled = pooled_differences(x, first)
    return {
        "interval of a mean": [covers(mean_interval(values, first=first)) for values in x],
        "interval of a difference": covered,
        "interval of the affected cell's difference": covered[-1:],
        "wrong: lower or higher": [any_below(holm([each.p for each in found]))],
        "wrong: the same": [any_below(holm([equivalence_p(cell - base + MARGIN, MARGIN, first) for cell in cells]))],
        "common error": [pooled.holds()],
        "wrong: p (Dunnett)": [pooled.holds() and any_below(pooled.p_dunnett)],
    }


def until(draw: Generator, noises: Sequence[Noise], x: Study) -> dict[str, list[bool]]:
    """The same of a study that adds seeds to those of x by Stein's rule, and whether intervals are narrow enough."""
    first = x.shape[1]
    wanted = max(pairs_for_width(float(np.std(cell - x[0], ddof=1)), first, HALF) for cell in x[1:])
    whole = np.hstack([x, draw_study(draw, noises, wanted - first)])
    intervals = [paired_difference(cell, whole[0], first=first) for cell in whole[1:]]
    usual = [covers(paired_difference(cell, whole[0])) for cell in whole[1:]]
    return outcomes(whole, first) | {
        "narrow enough": [(each.high - each.low) / 2 <= HALF + 1e-9 for each in intervals],
        "not used: usual interval": usual,
        "not used: usual interval of the affected cell": usual[-1:],
    }


def rates(seeds: int, scenario: str, studies: int, cells: int = 4) -> tuple[dict[str, float], dict[str, float]]:
    """The share of each outcome among studies with so many seeds, and among studies that add seeds to so many."""
    draw = np.random.default_rng(seeds)
    baseline, last, others = SCENARIOS[scenario]
    noises = [baseline, *[others] * (cells - 1), last]
    fixed: dict[str, list[bool]] = defaultdict(list)
    added: dict[str, list[bool]] = defaultdict(list)
    for _ in range(studies):
        x = draw_study(draw, noises, seeds)
        once = outcomes(x)
        once["not used: pooled interval"] = pooled_covers(x) if once["common error"][0] else []
        for kept, new in ((fixed, once), (added, until(draw, noises, x))):
            for name, happened in new.items():
                kept[name] += happened if scenario.startswith("one cell") or "affected" not in name else []
    return _shares(fixed), _shares(added)


def _shares(outcomes: dict[str, list[bool]]) -> dict[str, float]:
    return {name: float(np.mean(happened)) if happened else math.nan for name, happened in outcomes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=3000)
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    options = parser.parse_args()
    clock, rows = time.perf_counter(), []
    kinds = list(product(options.scenarios, SEEDS))
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(rates, seeds, scenario, options.studies, options.cells) for scenario, seeds in kinds]
        for (scenario, seeds), job in zip(kinds, jobs, strict=True):
            for kind, shares in zip((f"{seeds}", f"{seeds}, then --until"), job.result(), strict=True):
                percent = {name: None if math.isnan(share) else f"{100 * share:.1f}" for name, share in shares.items()}
                rows.append({"cells vary": scenario, "seeds": kind, **percent})
    taken, error = time.perf_counter() - clock, 100 * math.sqrt(0.05 * 0.95 / options.studies)
    notes = [
        f"{options.studies} studies of a baseline and {options.cells} cells in each row, in {taken:.0f} s",
        f"a share of 5 or 95 % of the studies has a standard error of {error:.1f} points",
    ]
    print(markdown(pd.DataFrame(rows, dtype=object), notes))


if __name__ == "__main__":
    main()
