"""What a planned study can show, by the spread of finished runs."""

from __future__ import annotations

from typing import Any

from analysis.power import POWER, Spread, detectable, measured_spread, pairs_for_width, pairs_needed
from analysis.summary import SIGNIFICANT
from experiments.studies.cell import Cell
from experiments.studies.opening import protocols_of
from experiments.studies.plan import StudyPlan
from experiments.tracking.store import Store
from simclr.data.dataset import open_dataset
from simclr.device import resolve
from simclr.train.loop import count_steps

WANTED = (0.5, 1.0, 2.0, 5.0)  # points for which the needed seeds are listed, beside the margin
EFFECTS = (1.0, 2.0)  # differences, in standard deviations of paired differences, for which they are listed too
MOST = 100  # seeds that are tried for that
# The root mean square over the 18 differences in linear accuracy of the page that the source names, which computes it.
ASSUMED = Spread(0.73, 0)
ASSUMED_SOURCE = "a guess from other runs, our studies of CIFAR-10 (docs/results/ablations.md), because {}"
ASSUMED_DATA, ASSUMED_STEPS = "cifar10", 780  # of those studies. Shorter runs, and other images, vary by other amounts
TOO_FEW = "too few finished runs on these images, with this network and number of epochs, have this study's protocol"
OTHER_DIVISION = "runs on one split of the images don't show how much differences vary between splits"


def outlook(plan: StudyPlan, store: Store, seeds: int) -> dict[str, Any]:
    """What `seeds` seeds can show, and how many seeds wanted differences need, by the paired t test.

    The test's level is the one that the largest difference has to meet after Holm's correction. The data of the plan
    must be in the store. The spread (deviation) is None where nothing is known about it. Then what can be detected is
    only known as an effect: a multiple of that spread.
    """
    design, (spread, source) = plan.design, _spread(plan.cells[0], store)
    others = sum(cell.against is not None for cell in plan.cells)
    comparisons = len(plan.cells) - 1 + others
    level = SIGNIFICANT / comparisons
    effect = detectable(seeds, level)
    known = {
        "source": source,
        "comparisons": comparisons,
        "others": others,  # of these, those with another cell than the baseline
        "power": POWER,
        "effect": effect,
        "needed_for_effects": [{"effect": each, "seeds": pairs_needed(each, level, MOST)} for each in EFFECTS],
    }
    if spread is None:
        return {"deviation": None, **known}
    interval = list(spread.interval()) if spread.freedom else None
    found = {
        "deviation": spread.deviation,
        "interval": interval,
        **known,
        "detectable": spread.deviation * effect,
        "detectable_interval": interval and [end * effect for end in interval],
        "needed": [
            {"points": points, "seeds": pairs_needed(points / spread.deviation, level, MOST)}
            for points in sorted({*WANTED, design.margin})
        ],
    }
    if design.until is not None:
        found["expected_seeds"] = pairs_for_width(spread.deviation, seeds, design.until)
    return found


def _spread(baseline: Cell, store: Store) -> tuple[Spread | None, str]:
    """The spread of paired differences in the study's first metric, in points, and where it comes from.

    If it can't be estimated, it is ASSUMED for runs like those that this value comes from, or else None with the
    reason.
    """
    config = baseline.config
    data = open_dataset(config.data, store.folder)
    alike = config.data.dataset == ASSUMED_DATA and count_steps(config, data).total >= ASSUMED_STEPS

    def unmeasured(why: str) -> tuple[Spread | None, str]:
        return (ASSUMED, ASSUMED_SOURCE.format(why)) if alike else (None, why)

    if baseline.resplit:
        return unmeasured(OTHER_DIVISION)
    metric, protocol = next(iter(protocols_of(baseline, data, resolve(config.device)).items()))
    same = {name: str(value) for name, value in config.flat().items() if name.startswith(("model.", "train.epochs"))}
    values: dict[tuple[str, str], float] = {}  # by settings and seed; a newer run replaces an older one
    for run in reversed(store.records(kind="pretrain", data_digest=data.identity)):
        if run.finished and run.protocols.get(metric) == protocol and same.items() <= run.params.items():
            settings = sorted(f"{name}={value}" for name, value in run.params.items() if name not in ("name", "seed"))
            values["\n".join(settings), run.params["seed"]] = 100 * run.metrics[f"eval/{metric}"]
    cells, seeds = [cell for cell, _ in values], [seed for _, seed in values]
    if values and (spread := measured_spread(list(values.values()), cells, seeds)) is not None:
        return spread, (
            f"estimated from {len(values)} finished runs on these images with this network, number of epochs and "
            f"protocol ({spread.freedom} degrees of freedom)"
        )
    return unmeasured(TOO_FEW)
