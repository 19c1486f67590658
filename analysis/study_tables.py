"""The table of a study as papers and pages show it: the figures that matter, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.findings import compared, count, metric_words
from analysis.latex import escape, latex_table
from analysis.statistics import FEWEST_SEEDS
from analysis.summary import SAME, SIGNIFICANT
from analysis.tables import format_p, is_accuracy, metric_label, signed, with_interval

NARROW, COLUMN = 24, 0.3  # characters of names from which on they are in several lines, and the width of these


def page_table(summaries: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The cells of a study in few columns for `analysis.page`, with intervals on a line of their own.

    `summaries` are tables from `analysis.summary.summary` by metric. The first metric has a column for its difference
    from the baseline, and is compared with the paper. The others have their difference on a third line, without its
    interval, so that the table fits a narrow page.
    """
    (metric, first), *others = summaries.items()
    rows = first.to_dict("records")
    columns: dict[str, Sequence[object]] = {"Cell": first["cell"].tolist()}
    columns[_title(metric)] = [_mean(row, metric) for row in rows]
    columns[f"Difference{' (points)' if is_accuracy(metric) else ''}"] = [_difference(row, metric) for row in rows]
    for name, table in others:
        columns[_title(name)] = [_mean_and_difference(row, name) for row in table.to_dict("records")]
    if (first["verdict"] != "").any():
        columns["Paper"] = [_paper(row) for row in rows]
    return pd.DataFrame(columns, dtype=object)


def _mean(row: Mapping[Any, Any], metric: str) -> str | None:
    return with_interval(row["mean"], row["low"], row["high"], _style(metric))


def _difference(row: Mapping[Any, Any], metric: str) -> str | None:
    """The difference from the baseline with its interval, and on a third line what it shows."""
    if row["difference"] != row["difference"]:
        return "" if row["n"] else None  # the baseline has no difference from itself
    ends = row["difference_low"], row["difference_high"]
    return f"{with_interval(row['difference'], *ends, _style(metric), signed)}\n{_finding(row)}"


def _mean_and_difference(row: Mapping[Any, Any], metric: str) -> str | None:
    mean = _mean(row, metric)
    if mean is None or row["difference"] != row["difference"]:
        return mean
    return f"{mean}\n{signed(row['difference'], _style(metric))}: {_finding(row)}"


def _finding(row: Mapping[Any, Any]) -> str:
    """What a difference shows, with p (Holm) unless that is not what the finding rests on."""
    other_test = row["finding"].startswith(SAME) or row["p_holm"] != row["p_holm"]
    return str(row["finding"]) + ("" if other_test else f", p\u00a0{format_p(row['p_holm'])}")


def _paper(row: Mapping[Any, Any]) -> str:
    """What the paper leads to expect of a cell, and whether that is so."""
    verdict, mark, reason = [*re.split(r"(: | \()", row["verdict"], maxsplit=1), "", ""][:3]
    reason = reason.removesuffix(")") if mark == " (" else reason
    if (expected := row["expected"]) == expected and expected is not None:
        reason = f"expected {expected if isinstance(expected, str) else f'{expected:+.1f} points'}"
    return "\n".join(filter(None, [verdict, reason]))


def latex_summary(summaries: Mapping[str, pd.DataFrame], data: str, label: str, comment: str = "") -> str:
    """Tables of the cells of a study, given its tables from `analysis.summary.summary` by metric: one for each metric.

    Each has the mean and standard deviation over seeds, the difference from the baseline with its interval, and p
    corrected for the number of comparisons. It is no wider than the text of LaTeX's article. A mean is bold if that p
    shows it to be lower or higher than the baseline's. The caption says so, after the sentences `data` about the data.
    The label of each is the given one and the metric. `comment` is as in `latex_table`.
    """
    tables: list[str] = []
    for metric, summary in summaries.items():
        names = [_readable(cell) for cell in summary["cell"]]
        broad = max(map(len, names)) > NARROW
        comparisons, others = (summary.attrs[key] for key in ("comparisons", "others"))
        columns = 3 if comparisons else 2  # without a single p, there is no column for it
        header = ["Setting", r"mean $\pm$ std", r"\multicolumn{1}{c}{$\Delta$}", r"\multicolumn{1}{c}{$p$}"]
        rows = zip(names, _cells(summary, metric), strict=True)
        lines = [" & ".join(header[: 1 + columns]) + r" \\", r"\midrule"]
        lines += [
            " & ".join([rf"\raggedright {escape(name)}" if broad else escape(name), *texts[:columns]]) + r" \\"
            for name, texts in rows
        ]
        what = f"{metric_words(metric)}{' in percent' if is_accuracy(metric) else ''}"
        test = (
            rf" $p$: paired t test, after Holm's correction for {compared(comparisons, others)} in this metric"
            rf"{', together with tests of equivalence (Shaffer, 1986)' * is_accuracy(metric)}. Bold: lower or higher "
            rf"than the baseline, $p < {SIGNIFICANT:g}$."
        )
        interval = ""
        if summary["difference_low"].notna().any():
            interval = r", with its 95\,\% confidence interval (Student's $t$, not corrected for multiple comparisons)"
        elif summary["pairs"].max() < FEWEST_SEEDS:
            interval = rf". There are no intervals and no $p$ with fewer than {FEWEST_SEEDS} seeds"
        caption = (
            rf"{escape(data)} {escape(_capitalised(what))}: mean and standard "
            rf"deviation over {count(summary['n'].max(), 'seed')}. $\Delta$: difference from the baseline in points, "
            rf"paired by seed{interval}."
        ) + test * bool(comparisons)
        own = f"{label}-{metric}"
        tables.append(
            latex_table((rf"p{{{COLUMN}\linewidth}}" if broad else "l") + "r" * columns, lines, caption, own, comment)
        )
    return "\n\n".join(tables)


def _readable(cell: str) -> str:
    """The name of a cell as a paper writes it: `No colour jitter, temperature = 0.1`."""
    parts = [
        part.replace("=", " = ") if "=" in part else part.replace("_", " ").replace("color", "colour")
        for part in cell.split(", ")
    ]
    text = ", ".join(parts)
    return text[0].upper() + text[1:] if cell.startswith(("no ", "only ", "baseline")) else text


def _title(metric: str) -> str:
    label = metric_label(metric) + (" (%)" if is_accuracy(metric) else "")
    return _capitalised(label)


def _capitalised(text: str) -> str:
    """A text with a capital first letter, except for kNN."""
    return text if text.startswith("kNN") else text[0].upper() + text[1:]


def _style(metric: str) -> str:
    return ".1f" if is_accuracy(metric) else ".4g"


def _cells(summary: pd.DataFrame, metric: str) -> list[list[str]]:
    """Mean and standard deviation, difference with its interval, and p of each cell; -- where they are unknown."""
    style = _style(metric)
    rows = []
    for row in summary.to_dict("records"):
        mean = format(row["mean"], style)
        shown = rf"\mathbf{{{mean}}}" if row["p_holm"] < SIGNIFICANT else mean
        spread = rf" \pm {row['std']:{style}}" if row["std"] == row["std"] else ""
        difference = f"${signed(row['difference'], style)}$" if row["difference"] == row["difference"] else "--"
        if row["difference_low"] == row["difference_low"]:
            ends = (signed(row[f"difference_{end}"], style) for end in ("low", "high"))
            difference += " (${}$ to ${}$)".format(*ends)
        p = _p(row["p_holm"])
        rows.append([f"${shown}{spread}$" if row["mean"] == row["mean"] else "--", difference, p])
    return rows


def _p(p: float) -> str:
    """A p value of two digits, or -- if it is unknown."""
    if p != p:
        return "--"
    return f"${p:.2g}$" if p >= 0.001 else "$< 0.001$"
