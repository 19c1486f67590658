"""What the tables of a study can't say: how often its test images were used, what is in doubt, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.findings import compared, count, in_other_metrics, metric_words
from analysis.statistics import FEWEST_SEEDS
from analysis.summary import CANT_TELL
from analysis.tables import metric_label
from experiments.runs.compare import reads_labels
from experiments.runs.evaluate import references
from experiments.runs.use_of_test_set import count_uses, describe_uses
from experiments.studies.plan import COSTS, RATE
from experiments.studies.results import NOT_EVALUATED, Results, StudyDocument
from experiments.tracking.images import images_of
from experiments.tracking.store import Record
from simclr.data.dataset import digest_of
from simclr.optim import OPTIMIZERS

IMAGES = {"test": "test images", "val": "validation images"}  # that a study is evaluated on
RESPLIT = (
    "Each seed has its own split of the images, the same for all cells. The splits share most of their training "
    "images, so the intervals are somewhat too narrow (Nadeau and Bengio, 2003)."
)
SIGN_FLIP = (
    "p (sign flip) is the share of all ways to flip the signs of the differences whose mean is at least as far from 0. "
    "It assumes no distribution."
)
PAPER = (
    "Expected is the paper's difference from its own baseline in points, or its direction (ImageNet, ResNet-50). The "
    "verdict is about the direction."
)
SINGLE = "Each interval is for a single comparison, while p (Holm) is corrected for all of them."
ADDED = (
    "This study had {} seeds before it had {}: if you decided to add seeds after reading its results, its claims are "
    "wrong more often than their p values say."
)
POOLED = "p (Dunnett) pools the spread of all cells. It is shown if their spreads are similar, and decides no verdict."


def about(study: Record, results: Results) -> list[str]:
    """What a study's images are and how many, the network and training of its baseline, and its seeds."""
    name, counts = images_of(study)
    own, seeds = baseline_run(results).params, results.seeds()
    images = f"{listed([f'{number:,}' for number in results.images()])} {IMAGES[results.document.on]}"
    training = f"{counts['pretrain']:,} training and " if "pretrain" in counts else ""
    return [
        f"{name}, {training}{images}",
        f"{own['model.backbone'].replace('resnet', 'ResNet-')} of width {float(own['model.width']):g}",
        f"{count(int(own['train.epochs']), 'epoch')} with {OPTIMIZERS[own['optim.name']].title}, batches of "
        f"{own['train.batch_size']}",
        f"seed{'s' * (len(seeds) > 1)} {listed(seeds)}",
    ]


def how_to_read(study: Record, results: Results, summaries: Mapping[str, pd.DataFrame]) -> list[str]:
    """The data, its digest, and how to read the tables, in sentences."""
    document, run, seeds = results.document, baseline_run(results), results.seeds()
    measured = [cell.protocols_of(seed).values() for cell in document.cells for seed in seeds]
    protocols = {protocol for identities in measured for protocol in identities}
    data, *baseline, own = about(study, results)
    images, table = IMAGES[document.on], next(iter(summaries.values()))
    held_out = (
        "Evaluated on validation images. Each classifier's own settings, such as its L2 penalty, are chosen on a fifth "
        "of the training images, and it is then fitted on all of them. `simclr ablate ... --on test` evaluates the "
        "same runs on the test images."
    )
    intervals = (
        "Intervals are 95 % Student's t intervals over seeds, from three seeds on. Differences are paired by seed. p "
        f"comes from a paired t test, and p (Holm) is corrected for {compared(**_comparisons(table))} by Holm's "
        f"method, in each metric by itself: below 0.05, a cell is called lower or higher. {SINGLE} McNemar's test is "
        f"exact, on the {images}, for each seed."
    )
    same = (
        "A cell is called the same as the baseline if p (same) is below 0.05: then a difference of "
        f"{document.design.margin:g} or more points can be ruled out, by two one-sided t tests. It is corrected "
        "together with p (Holm); both tests of a comparison count once, because a difference can't be both 0 and that "
        "large (Shaffer, 1986). If neither p is below 0.05, the study can't tell."
    )
    tested = bool(table["p_holm"].notna().any())
    pooled: dict[str, list[str]] = {}
    for metric, each in summaries.items():
        pooled.setdefault(each.attrs["pooled"], []).append(metric_label(metric))
    return [
        f"Data: {data}. Baseline: {', '.join(baseline)}. {own.capitalize()}.",
        f"Digest of the data: {run.tags['data_digest'][:8]}.",
        *chosen(document),
        *[held_out] * (document.on == "val"),
        f"Protocols, which identify how accuracies are measured: {listed(sorted(protocols))}.",
        *[intervals, same] * tested,
        *[PAPER] * bool((table["verdict"] != "").any()),
        "Seconds are the training time, computed from images per second.",
        *[SIGN_FLIP] * bool(table["p_sign_flip"].notna().any()),
        *[POOLED] * any(each["p_dunnett"].notna().any() for each in summaries.values()),
        *[f"{', '.join(names)}: {text}" for text, names in pooled.items() if tested and len(table) > 2],
        f"Made by: {document.command}",
    ]


def _comparisons(table: pd.DataFrame) -> dict[str, int]:
    """What `compared` needs."""
    return {key: table.attrs[key] for key in ("comparisons", "others")}


def _beside_zero(summaries: Mapping[str, pd.DataFrame]) -> list[str]:
    """Why some cells don't differ clearly from the baseline although their interval excludes 0, if there are any."""
    for table in summaries.values():
        apart = (table["difference_low"] > 0) | (table["difference_high"] < 0)
        if (apart & (table["finding"] == CANT_TELL)).any():
            return [f"{SINGLE} So a cell can be called '{CANT_TELL}' although its interval excludes 0."]
    return []


def caveats(study: Record, results: Results, summaries: Mapping[str, pd.DataFrame]) -> list[str]:
    """How often the test images were used, and what is in doubt, in sentences."""
    document, cells = results.document, results.document.cells
    found = [_test_use(study, document), *[RESPLIT] * bool(cells[0].by_seed), *_seeds(results, summaries)]
    found += [
        *in_other_metrics(summaries, document.design.margin),
        *_beside_zero(summaries),
        *_levels(results, summaries),
    ]
    if others := [cell.cell for cell in cells if cell.layer == "h" and cell.protocols != cells[0].protocols]:
        found.append(f"Evaluated on images of another size than the baseline: {listed(others)}.")
    if supervised := sorted({cell for (cell, _), record in results.runs.items() if reads_labels(record)}):
        found.append(f"Trained on labels: {listed(supervised)}.")
    trained = results.table[results.table["status"].isin(["FINISHED", NOT_EVALUATED])]
    if missing := int(trained[document.metrics()].isna().sum().sum()):
        found.append(
            f"Results left out because they were not measured under the study's protocol: {missing}. Run the study's "
            "command again to measure them."
        )
    unnamed = [run for run in results.runs.values() if run.params.get("train.precision") == "auto"]
    if len(precisions := sorted({run.tags.get("precision", "unknown") for run in unnamed})) > 1:
        found.append(
            f"Trained in several precisions ({listed(precisions)}), because an earlier version continued this study "
            f"on another machine. This may explain some differences between cells."
        )
    return found


def _levels(results: Results, summaries: Mapping[str, pd.DataFrame]) -> list[str]:
    """What chance and the baseline's untrained network reach, in the first metric, if its runs say so."""
    metric, table = next(iter(summaries.items()))
    own = results.table[results.table["cell"] == results.document.cells[0].cell].dropna(subset=[metric])
    runs = [results.runs[cell, seed] for cell, seed in zip(own["cell"], own["seed"], strict=True)]
    known = pd.DataFrame([references(run).get(metric, {}) for run in runs])
    if not {"untrained", "chance"} <= set(known):
        return []
    untrained, chance = 100 * known["untrained"].mean(), 100 * known["chance"].mean()
    level = (
        f"In {metric_words(metric)}, chance is {chance:.1f} %, and the untrained network of the baseline reaches "
        f"{untrained:.1f} %."
    )
    if 100 * own[metric].min() <= untrained:
        which = "The" if table["mean"].iloc[0] <= untrained else "With some seeds, the"
        level += (
            f" {which} trained baseline is no better than that, so differences between cells say little: training for "
            f"longer may help."
        )
    return [level]


def _test_use(study: Record, document: StudyDocument) -> str:
    """How often the test images were used, where all seeds have the same ones."""
    if document.test_by_seed:
        return (
            "Each seed holds out different test images, so every image may have been used by some seed: keep a "
            "separate test set for the final accuracy."
        )
    digest = digest_of(study.tags["data_digest"])
    if document.on == "test":
        return describe_uses(study.store, digest)
    evaluations, runs = count_uses(study.store, digest)
    others = f" {count(evaluations, 'other evaluation')} of {count(runs, 'run')} used them." * (evaluations > 0)
    return f"This study has not used the test images.{others}"


def _seeds(results: Results, summaries: Mapping[str, pd.DataFrame]) -> list[str]:
    """How many seeds the study's rule asked for, or that seeds were added without a rule."""
    document, seeds = results.document, len(results.seeds())
    metric = document.metrics()[0]
    if document.design.until is None:
        fewer = [number for number in document.earlier if FEWEST_SEEDS <= number < seeds]
        return [ADDED.format(listed(fewer), seeds)] if fewer else []
    return [document.design.note(summaries[metric], metric, results.seeds_wanted())] if metric in summaries else []


def baseline_run(results: Results) -> Record:
    """A run of the baseline, or of the first cell that has one."""
    order = [cell.cell for cell in results.document.cells]
    return results.runs[min(results.runs, key=lambda job: (order.index(job[0]), job[1]))]


def chosen(document: StudyDocument) -> list[str]:
    """What the study chose for each cell."""
    found = []
    if document.equal is not None:
        costs = [f"{cell.cell} {cell.chosen['train.epochs']} ({cell.cost:.0%})" for cell in document.cells]
        how = ", as predicted from a few steps on the machine that planned the study" * (document.equal == "time")
        found.append(f"Equal {COSTS[document.equal]} of training{how}, by the number of epochs: {listed(costs)}.")
    if document.cells[0].rates:
        rates = [f"{cell.cell} {cell.chosen[RATE]:g} of {listed(cell.rates)}" for cell in document.cells]
        found.append(
            f"Learning rates were tuned in the same way for all cells, including the baseline: each cell uses the best "
            f"of {len(document.cells[0].rates)} on validation, found in one run per rate, with a seed that this study "
            f"doesn't use. {'; '.join(rates)}. These runs are in the study whose name ends in -rates."
        )
        ends = [cell.cell for cell in document.cells if cell.chosen[RATE] in {min(cell.rates), max(cell.rates)}]
        if ends and len(document.cells[0].rates) > 1:
            found.append(
                f"The lowest or highest rate that was tried is the best for {listed(ends)}, so a rate beyond it may be "
                f"better still."
            )
    return found


def listed(values: Sequence[object]) -> str:
    """Values in one line."""
    return ", ".join(map(str, values))
