"""The report of the paper's tables, in four formats: each result beside the paper's, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.findings import count
from analysis.page import Section, markdown_page, page
from analysis.statistics import FEWEST_SEEDS, mean_interval
from analysis.summary import CANT_TELL, SIDES
from analysis.tables import as_shown, csv, in_percent, latex, signed, with_interval
from analysis.verdicts import (
    RULE,
    VERDICTS,
    Comparison,
    RankCorrelation,
    Tested,
    apply_rule,
    rank_correlation,
    tally,
)
from experiments.runs.evaluate import prefix
from experiments.runs.pages import PAGE
from experiments.runs.use_of_test_set import describe_uses
from experiments.studies.opening import study_named
from experiments.studies.paper import Part, own_protocols
from experiments.studies.results import Job, Results, read_results
from experiments.tracking.images import images_of
from experiments.tracking.store import Record, Store
from simclr.config import Config, to_toml
from simclr.data.dataset import digest_of
from simclr.files import written_whole

FILES = (PAGE, "paper.md", "paper.csv", "paper.tex")
STATED_SIDES = SIDES | {"same": 0.0}
PAIRS = "pairs-linear_top1.svg"  # the figure that a study's report has of pairs of augmentations
RANKS = (
    "The order of the rows is compared, where a table has four or more, by Kendall's tau with the paper's figures in "
    "each seed. Its interval is Student's over the seeds, so it describes new runs of these rows, not other rows. p is "
    "the share of all orders of the rows that agree or disagree as much. This is a further test of each column, not "
    "part of the correction."
)
INTERVALS = f"Intervals are 95 % Student's t intervals over seeds, from {FEWEST_SEEDS} seeds on."


class Found(NamedTuple):
    """The results for a table of the paper, as far as its study has run."""

    part: Part
    study: Record | None  # None if it has not begun
    values: dict[str, pd.DataFrame]  # by metric: a row for each seed, a column for each row, in the paper's units
    tested: list[tuple[Comparison, Tested]]
    ranks: dict[tuple[str, str], RankCorrelation]  # by metric, and by the rows that are ranked
    images: int  # number of test images

    def verdicts(self) -> list[str]:
        """The verdicts on its comparisons, none before it is begun. Orders of rows are about the same figures again."""
        return [] if self.study is None else [tested.verdict for _, tested in self.tested]


def find(part: Part, store: Store) -> Found:
    """Read the results of a table's study so far, and compare them with the paper's."""
    study = study_named(part.study, store)
    results = None if study is None else read_results(study, store)
    own = {} if results is None else own_protocols(part, store)
    values = {metric: _values(part, metric, results, own) for metric in part.table.columns}
    wanted = list(_comparisons(part))
    correct = {} if results is None else results.correct
    images = max((len(right) for by_job in correct.values() for right in by_job.values()), default=0)
    tested = list(zip(wanted, apply_rule(values, wanted), strict=True))
    return Found(part, study, values, tested, {} if part.caveat else _ranks(part, values), images)


def _ranks(part: Part, values: Mapping[str, pd.DataFrame]) -> dict[tuple[str, str], RankCorrelation]:
    """How well the order of the rows agrees with the paper's, by metric and rows, where it has enough figures."""
    rows = {row.name: row for row in part.rows}
    ranks = {}
    for order in part.table.orders if part.table.orders is not None else [tuple(rows)]:
        for metric, known in values.items():
            published = {name: rows[name].paper[metric] for name in order if metric in rows[name].paper}
            if (rank := rank_correlation(known, published)) is not None:
                ranks[metric, f"order of the rows from {order[0]} to {order[-1]}"] = rank
    return ranks


def _values(part: Part, metric: str, results: Results | None, own: Mapping[Job, str]) -> pd.DataFrame:
    """A metric of all rows with all seeds, nan where it is unknown, or known under another protocol than its `own`."""
    layers = {cell.name: cell.layer for cell in part.plan.cells}
    known: dict[tuple[str, int], float] = {}
    if results is not None and metric in results.table:
        done = results.table[results.table["status"] == "FINISHED"]
        known = {(row["cell"], row["seed"]): row[metric] for row in done.to_dict("records")}
    elif results is not None:
        names = {cell: prefix(layer) + metric for cell, layer in layers.items()}
        known = {
            job: run.metrics[f"eval/{names[job[0]]}"]
            for job, run in results.runs.items()
            if job in own and run.protocols.get(names[job[0]]) == own[job]
        }
    columns = {
        row.name: [as_shown(metric, known.get((part.cells[row.name], seed), np.nan)) for seed in part.seeds]
        for row in part.rows
    }
    return pd.DataFrame(columns, index=list(part.seeds), dtype=float)


def _comparisons(part: Part) -> Iterator[Comparison]:
    """What the paper says of the rows of a table."""
    table, rows = part.table, {row.name: row for row in part.rows}
    first = next(iter(table.columns))
    for row in part.rows:
        against = row.against or table.against
        if against is None or against == row.name:
            continue
        for metric in table.compared or (first,):
            weights, expected = {row.name: 1.0, against: -1.0}, row.difference
            direction = row.direction or table.direction
            if metric in row.paper and metric in rows[against].paper:
                expected = row.paper[metric] - rows[against].paper[metric]
            if expected is not None or direction is not None:
                yield Comparison(weights, metric, expected, _side(expected, direction), part.caveat)
    for claim in table.claims:
        metric = claim.metric or first
        figures = [rows[name].paper.get(metric, np.nan) * weight for name, weight in claim.weights.items()]
        expected = None if np.isnan(sum(figures)) else sum(figures)
        side = _side(expected, claim.direction)
        yield Comparison(claim.weights, metric, expected, side, part.caveat, claim.says)


def _side(expected: float | None, direction: str | None) -> float:
    return STATED_SIDES[direction] if expected is None else float(np.sign(expected))  # type: ignore[index]


# --- one table of all numbers -----------------------------------------------------------------------------------------


def numbers(found: Sequence[Found]) -> pd.DataFrame:
    """All figures and verdicts as numbers, a line for each: the content of the CSV file."""
    table = pd.DataFrame([line for each in found for line in _lines(each)])
    for name in {"n", "seeds"} & set(table):  # where some are missing, they became floats
        table[name] = pd.Series([None if each != each else int(each) for each in table[name]], dtype=object)
    return table


def _lines(found: Found) -> Iterator[dict[str, Any]]:
    by_row = {(next(iter(each.weights)), each.metric): (each, tested) for each, tested in found.tested if not each.says}
    title = found.part.table.title
    for row in found.part.rows:
        for metric, values in found.values.items():
            mean = mean_interval(values[row.name].dropna())
            if not mean.n and metric not in row.paper and metric != next(iter(found.values)):
                continue
            line = {"table": title, "row": row.name, "metric": metric, "paper": row.paper.get(metric), "n": mean.n}
            line |= {"here": mean.mean, "low": mean.low, "high": mean.high}
            if (pair := by_row.get((row.name, metric))) is not None:
                line |= {"against": list(pair[0].weights)[1]} | _comparison(*pair)
            yield line
    for each, tested in found.tested:
        if each.says:
            yield {"table": title, "row": each.says, "metric": each.metric} | _comparison(each, tested)
    for (metric, says), rank in found.ranks.items():
        tau = {"here": rank.tau.mean, "low": rank.tau.low, "high": rank.tau.high, "n": rank.tau.n}
        yield {"table": title, "row": says, "metric": metric} | tau | {"p": rank.p, "verdict": rank.verdict}


def _comparison(each: Comparison, tested: Tested) -> dict[str, Any]:
    return {
        "paper_difference": None if each.expected is None else round(each.expected, 2),
        "difference": tested.found.mean,
        "difference_low": tested.found.low,
        "difference_high": tested.found.high,
        "seeds": tested.found.n,
        "p": tested.p,
        "verdict": tested.verdict,
        "why": tested.why,
    }


# --- page and files ---------------------------------------------------------------------------------------------------


def report(parts: Sequence[Part], store: Store, command: str, out: Path, *, quick: bool = False) -> list[Found]:
    """Write FILES and the figures of the Markdown page into a folder. Returns what the tables begun by now say."""
    found = [find(part, store) for part in parts]
    content = _page(found, command, quick=quick)
    begun = [each for each in found if each.study is not None]
    figures = [section.content for section in content[-1] if section.kind == "figure"]
    texts = (
        page(*content),
        markdown_page(*content),
        csv(numbers(begun)) + "\n",
        "\n\n".join(_latex(each) for each in begun) + "\n",
    )
    files = {name: text.encode() for name, text in zip(FILES, texts, strict=True)}
    files |= {figure.name: figure.read_bytes() for figure, _ in figures}
    for name, file in files.items():
        with written_whole(out / name) as path:
            path.write_bytes(file)
    return begun


def overview(found: Sequence[Found]) -> pd.DataFrame:
    """How many comparisons of each table have each verdict."""
    rows = [{"table": each.part.table.title} | tally(each.verdicts()) for each in found]
    return pd.DataFrame(rows, columns=["table", *VERDICTS])


def rows_table(found: Found) -> pd.DataFrame:
    """The rows of a table, the paper's figures beside those found here, and the verdicts."""
    columns: dict[str, list[object]] = {found.part.table.title: [row.name for row in found.part.rows]}
    for metric, heading in found.part.table.columns.items():
        paper = [row.paper.get(metric) for row in found.part.rows]
        if any(figure is not None for figure in paper):
            columns[f"{heading}: paper"] = [None if figure is None else f"{figure:.1f}" for figure in paper]
        means = [mean_interval(found.values[metric][row.name].dropna()) for row in found.part.rows]
        columns[f"{heading}: here"] = [with_interval(*mean[:3], _style(metric)) for mean in means]
    pairs = {next(iter(each.weights)): (each, tested) for each, tested in found.tested if not each.says}
    if pairs:
        shown = [_shown(*pairs[row.name]) if row.name in pairs else ("", "", "") for row in found.part.rows]
        for position, heading in enumerate(("difference: paper", "difference: here", "verdict")):
            columns[heading] = [texts[position] for texts in shown]
    return pd.DataFrame(columns, dtype=object)


def claims_table(found: Found) -> pd.DataFrame:
    """What else the paper says of a table, and the order of its rows."""
    lines = [(each.says, *_shown(each, tested)) for each, tested in found.tested if each.says]
    for (metric, says), rank in found.ranks.items():
        heading = found.part.table.columns[metric].removesuffix(" (%)")
        lines.append(
            (
                f"{says[0].upper()}{says[1:]}, by {heading}\nKendall's tau",
                "1",
                with_interval(*rank.tau[:3], ".2f") or "",
                f"{rank.verdict}\np = {rank.p:.2g}",
            )
        )
    return pd.DataFrame(lines, columns=["The paper says", "paper", "here", "verdict"], dtype=object)


def _shown(each: Comparison, tested: Tested) -> tuple[str, str, str]:
    """The paper's difference, that found here, and the verdict, as texts for the page."""
    if each.expected is not None:
        paper = signed(each.expected, ".1f")
    else:
        paper = next(name for name, side in STATED_SIDES.items() if side == each.side)
    rows = list(each.weights)
    paper += f"\nagainst {rows[1]}" if not each.says else ""
    here = with_interval(*tested.found[:3], _style(each.metric), signed) or ""
    return paper, here, f"{tested.verdict}\n{tested.why}"


def _style(metric: str) -> str:
    return ".1f" if in_percent(metric) else ".2f"


def _latex(found: Found) -> str:
    def flat(value: object) -> object:
        first, *rest = str(value).split("\n")
        return f"{first} ({', '.join(rest)})" if rest else value

    table = found.part.table
    caption = f"{table.title} of arXiv 2002.05709: {table.about}."
    return latex(rows_table(found).map(flat), [caption], found.part.study)


def _page(found: Sequence[Found], command: str, *, quick: bool) -> tuple[str, str, list[str], list[str], list[Section]]:
    """The arguments of `page` and `markdown_page`."""
    config = found[0].part.plan.cells[0].config
    counts = tally([verdict for each in found for verdict in each.verdicts()])
    total = sum(counts.values())
    finding = [
        f"Of {total} statements in the paper, these results agree with {counts['agrees']} and differ from "
        f"{counts['differs']}. For {counts[CANT_TELL]} they can't tell, and {counts['not comparable']} are not "
        "comparable."
    ]
    if quick:
        finding.append(
            "This is a quick look with one seed, which can't tell a difference from chance. Run "
            "the command without --quick for verdicts."
        )
    if waiting := [each.part.table.title for each in found if each.study is None]:
        finding.append(f"Not started yet: {', '.join(waiting)}.")
    images = config.data.dataset
    for study in [each.study for each in found if each.study is not None][:1]:  # all have the same images
        finding.append(describe_uses(study.store, digest_of(study.tags["data_digest"])))
        images, _ = images_of(study)
    here = _described(images, config)
    begun = [each for each in found if each.study is not None]
    facts = [here, f"{max(each.images for each in found):,} test images", count(len(begun), "table")]
    sections = [Section("", "table", overview(begun))] * bool(begun)
    sections += [section for each in begun for section in _sections(each)]
    theirs = "The paper: ImageNet at 224 pixels, ResNet-50, LARS, batches of 4,096 images, 100 epochs."
    sections += [
        Section("How to read the tables", "text", "\n\n".join([RULE, RANKS, INTERVALS, f"{theirs} Here: {here}."])),
        Section("Config of the preset", "code", to_toml(config), folded=True),
        Section("To repeat", "code", command, folded=True),
    ]
    return "The SimCLR paper, reproduced with", config.name, finding, facts, sections


def _described(images: str, config: Config) -> str:
    side = config.view_size() or config.data.side
    width = "" if config.model.width == 1 else f" of width {config.model.width:g}"
    return (
        f"{images}{f' at {side} pixels' if side else ''}, {config.model.backbone}{width}, "
        f"{config.optim.name}, batches of {config.train.batch_size:,} images, {count(config.train.epochs, 'epoch')}"
    )


def _sections(found: Found) -> list[Section]:
    """The part of the page about one table."""
    table = found.part.table
    made = f"{count(len(found.part.seeds), 'seed')}, as the study {found.part.study}."
    text = "\n\n".join(filter(None, [table.passage, table.note, made]))
    sections = [Section(f"{table.title}: {table.about}", "text", text), Section("", "table", rows_table(found))]
    if len(claims := claims_table(found)):
        sections.append(Section("", "table", claims))
    if found.study is not None and (figure := found.study.find_artifact(PAIRS)) is not None:
        sections.append(Section("", "figure", (figure, "Linear top-1 with one augmentation (diagonal) or two")))
    return sections
