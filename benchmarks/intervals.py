"""How often the intervals and verdicts of studies are right, in simulated studies whose truth is known.

python -m benchmarks.intervals [--studies 20000] [--cells 4] [--scenarios "all alike" ...]

Each study has a baseline and some cells. The seed moves all of them alike, three times as much as each varies by itself
where nothing else is said. All of this is drawn from normal distributions, except in the scenarios that say otherwise.
The functions are those that make the reports. Prints a table in Markdown, in percent, and which of its shares are
outside the limits. Each row has its own random numbers, so those of chosen scenarios equal those of the whole table.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product

import numpy as np
import pandas as pd
import scipy
from numpy.random import Generator
from numpy.typing import NDArray

from analysis.blocks import dunnett_p, pooled_differences
from analysis.power import pairs_for_width
from analysis.statistics import Mean, equivalence_p, holm, mean_interval
from analysis.summary import SIGNIFICANT
from analysis.tables import markdown

Shape = tuple[int, ...]
Noise = Callable[[Generator, Shape], NDArray[np.float64]]  # what runs of a cell vary by themselves; the mean is 0


def normal(deviation: float) -> Noise:
    return lambda draw, shape: draw.normal(0, deviation, shape)


def heavy_tails(draw: Generator, shape: Shape) -> NDArray[np.float64]:
    """Student's t with 3 degrees of freedom, of standard deviation 1: 1 run in 72 is off by more than 3."""
    values: NDArray[np.float64] = draw.standard_t(3, shape) / np.sqrt(3)
    return values


def collapses(draw: Generator, shape: Shape) -> NDArray[np.float64]:
    """Normal, but 1 run in 20 loses 20 standard deviations. The true value is the mean, which counts these runs too."""
    return draw.normal(size=shape) - 20 * ((draw.random(shape) < 1 / 20) - 1 / 20)


SEEDS = (3, 5, 10)
LOOKS = ((3, 5), (3, 5, 7, 10))  # numbers of seeds after each of which somebody reads the report
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

COVERAGE = (0.93, 0.97)  # the share of intervals that should contain the truth
ERROR = 0.055  # the share of studies that may claim something wrong

Shares = dict[str, float]
Outcomes = dict[str, NDArray[np.bool_]]  # of studies, or of their intervals


def noises_of(scenario: str, cells: int) -> list[Noise]:
    """How the baseline and so many cells vary."""
    baseline, last, others = SCENARIOS[scenario]
    return [baseline, *[others] * (cells - 1), last]


def draw_studies(draw: Generator, noises: Sequence[Noise], studies: int, seeds: int) -> NDArray[np.float64]:
    """Studies without effects (studies x cells x seeds, the baseline first) whose cells vary like this."""
    own = np.stack([noise(draw, (studies, seeds)) for noise in noises], 1)
    return own + draw.normal(0, SHARED, (studies, 1, seeds))


def covers(interval: Mean) -> NDArray[np.bool_]:
    return np.asarray((interval.low <= 0) & (interval.high >= 0))


def corrected(differences: NDArray[np.float64], first: int | None = None) -> list[NDArray[np.float64]]:
    """p (Holm) and p (same) of differences (studies x cells x seeds), as the summaries of studies have them."""
    return holm(mean_interval(differences, first=first).p, equivalence_p(differences, MARGIN, first))


def wrong_claims(differences: NDArray[np.float64], first: int | None = None) -> Outcomes:
    """Which studies claim something wrong, if no cell has an effect, if all have one of the margin, and if half do."""
    cells = np.arange(differences.shape[1])
    truths = {
        "lower or higher": cells < 0,
        "the same": cells >= 0,
        "half null, half at the margin": cells >= len(cells) // 2,
    }
    found: Outcomes = {}
    for name, at_margin in truths.items():
        p, p_same = corrected(differences + MARGIN * at_margin[:, None], first)
        found[f"wrong: {name}"] = np.any(np.where(at_margin, p_same, p) < SIGNIFICANT, axis=1)
    return found


def outcomes(x: NDArray[np.float64], first: int | None = None) -> Outcomes:
    """What the reports of studies get right (intervals) or wrong (all else)."""
    differences = x[:, 1:] - x[:, :1]
    covered = covers(mean_interval(differences, first=first))
    pooled = pooled_differences(x, first)
    held, t = pooled.holds() & (x.shape[1] > 2), np.abs(pooled.t[:, 1:])
    return {
        "interval of a mean": covers(mean_interval(x, first=first)),
        "interval of a difference": covered,
        "interval of the affected cell's difference": covered[:, -1],
        **wrong_claims(differences, first),
        "common error": held,
        "wrong: p (Dunnett)": held & (t.max(1) > dunnett_limit(t.shape[1], pooled.freedom)),
        "not used: pooled interval": (t <= scipy.special.stdtrit(pooled.freedom, 0.975))[held],
    }


@cache
def dunnett_limit(comparisons: int, freedom: int) -> float:
    """The |t| whose p (Dunnett) is SIGNIFICANT."""
    return float(scipy.optimize.brentq(lambda t: float(dunnett_p(t, comparisons, freedom)) - SIGNIFICANT, 1, 100))


def with_fixed_seeds(scenario: str, seeds: int, studies: int, cells: int) -> Shares:
    """The share of each outcome among studies with so many seeds."""
    draw = np.random.default_rng(seeds)
    return _shares(scenario, outcomes(draw_studies(draw, noises_of(scenario, cells), studies, seeds)))


def with_until(scenario: str, first: int, studies: int, cells: int) -> Shares:
    """The same if studies add seeds to so many by Stein's rule, and whether intervals are narrow enough."""
    draw, noises = np.random.default_rng(first), noises_of(scenario, cells)
    x = draw_studies(draw, noises, studies, first)
    largest = (x[:, 1:] - x[:, :1]).std(-1, ddof=1).max(1)
    wanted = np.array([pairs_for_width(deviation, first, HALF) for deviation in largest])
    found: list[Outcomes] = []
    for seeds in np.unique(wanted):
        begun = x[wanted == seeds]
        whole = np.concatenate([begun, draw_studies(draw, noises, len(begun), seeds - first)], 2)
        differences = whole[:, 1:] - whole[:, :1]
        intervals, usual = mean_interval(differences, first=first), covers(mean_interval(differences))
        more = {
            "narrow enough": np.asarray((intervals.high - intervals.low) / 2 <= HALF + 1e-9),
            "not used: usual interval": usual,
            "not used: usual interval of the affected cell": usual[:, -1],
        }
        found.append(outcomes(whole, first) | more)
    return _shares(scenario, {name: np.concatenate([each[name] for each in found]) for name in found[0]})


def with_looks(scenario: str, numbers: Sequence[int], studies: int, cells: int) -> Shares:
    """The share of studies that claim something wrong in at least one report, if these are made with so many seeds."""
    draw = np.random.default_rng(numbers)
    x = draw_studies(draw, noises_of(scenario, cells), studies, max(numbers))
    reports = [wrong_claims(x[:, 1:, :seeds] - x[:, :1, :seeds]) for seeds in numbers]
    return _shares(scenario, {name: np.any([report[name] for report in reports], 0) for name in reports[0]})


def _shares(scenario: str, found: Outcomes) -> Shares:
    """The share of each outcome; nan if it has no meaning in this scenario."""
    known = {
        name: each.size > 0 and (scenario.startswith("one cell") or "affected" not in name)
        for name, each in found.items()
    }
    return {name: float(each.mean()) if known[name] else math.nan for name, each in found.items()}


def misses(shares: Shares) -> list[str]:
    """Which shares of intervals and of wrong claims are outside their limits."""
    low, high = COVERAGE
    outside = {name: each < low or each > high for name, each in shares.items() if name.startswith("interval")}
    outside |= {name: each > ERROR for name, each in shares.items() if name.startswith("wrong")}
    return [f"{name} {100 * shares[name]:.1f}" for name, is_outside in outside.items() if is_outside]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    options = parser.parse_args()
    clock, rows, missed = time.perf_counter(), [], []
    kinds: dict[str, Callable[..., Shares]] = {}
    for seeds in SEEDS:
        kinds |= {f"{seeds}": partial(with_fixed_seeds, seeds=seeds)}
        kinds |= {f"{seeds}, then --until": partial(with_until, first=seeds)}
    kinds |= {f"read with {', '.join(map(str, numbers))}": partial(with_looks, numbers=numbers) for numbers in LOOKS}
    with ProcessPoolExecutor() as pool:
        jobs = {
            (scenario, kind): pool.submit(simulate, scenario, studies=options.studies, cells=options.cells)
            for scenario, (kind, simulate) in product(options.scenarios, kinds.items())
        }
        for (scenario, kind), job in jobs.items():
            shares = job.result()
            percent = {name: None if math.isnan(share) else f"{100 * share:.1f}" for name, share in shares.items()}
            rows.append({"cells vary": scenario, "seeds": kind, **percent})
            if found := misses(shares):
                missed.append(f"{scenario}, {kind}: {', '.join(found)}")
    taken, error = time.perf_counter() - clock, 100 * math.sqrt(0.05 * 0.95 / options.studies)
    low, high = COVERAGE
    notes = [
        f"{options.studies} studies of a baseline and {options.cells} cells in each row, in {taken:.0f} s",
        f"a share of 5 or 95 % of the studies has a standard error of {error:.2f} points",
        f"outside the limits ({100 * low:g} to {100 * high:g} % of intervals, at most {100 * ERROR:g} % wrong):",
        *missed,
    ]
    print(markdown(pd.DataFrame(rows, dtype=object), notes))


if __name__ == "__main__":
    main()
