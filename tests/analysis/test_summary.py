"""Tests of the summary of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.blocks import pooled_differences
from analysis.statistics import holm, mcnemar, mean_interval
from analysis.summary import shown, summary
from analysis.tables import FORMATS

NAN = math.nan


def records(figures: Mapping[str, Any], metric: str = "knn_top1") -> pd.DataFrame:
    """Records of cells with one value per seed, nan if that seed failed."""
    rows = [
        {"cell": name, "seed": seed, "status": "FAILED" if math.isnan(value) else "FINISHED", metric: value}
        for name, values in figures.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(error=None, seconds=60.0, images_per_second=800.0)


def cells(names: Mapping[str, Any], **expected: float | str) -> list[dict[str, Any]]:
    """Cells with the expected size or direction of their difference."""
    sizes = {name: expected.get(name) for name in names}
    return [
        {
            "cell": name,
            "paper": None if isinstance(size, str) else size,
            "direction": size if isinstance(size, str) else None,
            "against": next(iter(names)),
            "caveat": None,
            "source": None if size is None else "Table 5",
        }
        for name, size in sizes.items()
    ]


def table(figures: Mapping[str, Any], **expected: float | str) -> pd.DataFrame:
    return summary(records(figures), cells(figures, **expected), "knn_top1", {}).set_index("cell")


def studies(draw: np.random.Generator, effects: list[float], runs: int) -> np.ndarray:
    """Accuracies (studies x cells x 5 seeds) in which the seed matters far more than the noise."""
    seeds, noise = draw.normal(0.6, 0.05, (runs, 1, 5)), draw.normal(0, 0.005, (runs, len(effects), 5))
    return np.array(effects)[:, None] + seeds + noise


def test_rows_equal_scipys_intervals_and_paired_tests() -> None:
    draw = np.random.default_rng(0)
    figures = {"base": draw.normal(0.6, 0.03, 5), "b": draw.normal(0.5, 0.03, 5), "a": draw.normal(0.6, 0.03, 5)}
    result = table(figures)
    assert list(result.index) == ["base", "b", "a"]
    tests = {name: stats.ttest_rel(figures[name], figures["base"]) for name in ("b", "a")}
    for name, test in tests.items():
        x, row = figures[name], result.loc[name]
        own, pair = stats.t.interval(0.95, 4, x.mean(), stats.sem(x)), test.confidence_interval()
        wanted = [x.mean(), *own, (x - figures["base"]).mean(), pair.low, pair.high]
        columns = ["mean", "low", "high", "difference", "difference_low", "difference_high"]
        np.testing.assert_allclose(row[columns].tolist(), 100 * np.array(wanted))
        assert (row["n"], row["pairs"], row["p"]) == (5, 5, pytest.approx(test.pvalue))
        assert row["std"] == pytest.approx(100 * np.std(x, ddof=1))
    b, a = tests["b"].pvalue, tests["a"].pvalue
    assert b < a
    assert result["p_holm"].tolist() == pytest.approx([NAN, 2 * b, 2 * a], nan_ok=True)  # b may differ by the margin
    baseline = result.loc["base"]
    assert (baseline["n"], baseline["pairs"], baseline["mcnemar"], baseline["verdict"]) == (5, 0, None, "")
    assert baseline[["difference", "difference_low", "p"]].isna().all()


def test_metrics_other_than_accuracies_keep_their_unit() -> None:
    figures = {"base": [1.5, 1.6, 1.7], "a": [1.8, 1.7, 1.9]}
    result = summary(records(figures, "alignment"), cells(figures), "alignment", {})
    assert result["mean"].tolist() == pytest.approx([1.6, 1.8])
    assert shown(result, "alignment").iloc[1]["difference"] == "+0.2 (-0.04841 to +0.4484)"


def test_a_verdict_needs_a_corrected_p_below_5_percent() -> None:
    draw = np.random.default_rng(4)
    base = draw.normal(0.6, 0.02, 5)
    figures = {"base": base} | {str(n): base - 0.003 * n + draw.normal(0, 0.006, 5) for n in range(6)}
    found = table(figures, **{str(n): "lower" for n in range(6)}).iloc[1:]
    told = found["verdict"].str.startswith("can't tell")
    assert (told == ~(found["p_holm"] < 0.05)).all()
    assert 0 < told.sum() < 6
    assert (found["difference_high"] < 0).sum() > (~told).sum()  # intervals are not corrected


@pytest.mark.parametrize("seeds", [3, 5])
def test_pooled_columns_are_those_of_the_seeds_that_all_cells_have(seeds: int) -> None:
    draw = np.random.default_rng(5)
    x = draw.normal(0.6, 0.01, (4, seeds)) + draw.normal(0, 0.05, seeds)
    figures = dict(zip(["base", "a", "b", "c"], np.column_stack([x, draw.normal(size=4)]), strict=True))
    figures["b"][-1] = NAN  # so the last seed is left out
    result = table(figures | {"failed": np.full(seeds + 1, NAN)})
    expected = pooled_differences(100 * x)
    assert result["p_dunnett"].tolist() == pytest.approx([*expected.p_dunnett(), NAN], nan_ok=True)
    assert f"{3 * (seeds - 1)} degrees of freedom instead of {seeds - 1}," in result.attrs["pooled"]


def test_cells_that_vary_unequally_are_not_pooled_and_the_table_says_so() -> None:
    draw = np.random.default_rng(6)
    noisy = {name: draw.normal(0.6, size, 10) for name, size in (("base", 0.001), ("a", 0.001), ("b", 0.05))}
    result = table(noisy)
    assert result["p_dunnett"].isna().all()
    assert result.attrs["pooled"].startswith("Not pooled: the variances of the cells may differ (Bartlett's test: p = ")
    assert result["p"].notna().tolist() == [False, True, True]
    two = table({"base": [0.5, 0.6], "a": [0.4, 0.6], "b": [0.4, 0.5]})
    assert two.attrs["pooled"] == "Not pooled: that takes 3 seeds of a baseline and two or more cells."
    assert two[["low", "high", "difference_low", "p"]].isna().all(axis=None)  # no interval below three seeds
    assert two["mean"].notna().all()


def test_no_verdict_depends_on_pooling() -> None:
    draw = np.random.default_rng(7)
    names = ["base", "a", "b", "c", "d", "e"]
    x = draw.normal(0.6, 0.05, 3) + draw.normal(0, 0.005, (6, 3)) - np.array([[0], [0.018], [0], [0], [0], [0]])
    result = table(dict(zip(names, x, strict=True)), a="lower")
    assert result.loc["a", "p_holm"] > 0.05 > result.loc["a", "p_dunnett"]
    assert result.loc["a", "verdict"] == "can't tell"


def test_cells_may_be_compared_with_another_cell_than_the_baseline_or_not_at_all() -> None:
    draw = np.random.default_rng(8)
    base = draw.normal(0.6, 0.02, 5)
    figures = {name: base + size + draw.normal(0, 0.001, 5) for name, size in (("base", 0.0), ("a", 0.05), ("b", 0.02))}
    plan = cells(figures, b=-4.7)
    plan[2] |= {"against": "a"}
    plan[1] |= {"caveat": "the paper has other rates"}
    result = summary(records(figures), plan, "knn_top1", {}).set_index("cell")
    own = stats.ttest_rel(figures["b"], figures["a"])
    size = 100 * (figures["b"] - figures["a"]).mean()
    assert result.loc["b", "verdict"] == f"agrees (against a: {size:+.2f}, expected -4.70)"
    assert result.loc["a", "verdict"] == "not comparable: the paper has other rates"
    assert result["expected"].isna().all()
    assert own.pvalue < result.loc["b", "p"]
    assert result.loc["b", "p_holm"] == pytest.approx(3 * result.loc["b", "p"])


def test_cells_that_a_margin_holds_are_the_same_and_others_cannot_be_told() -> None:
    base, flip = np.array([0.60, 0.62, 0.61, 0.63, 0.59]), np.array([1, -1, 1, -1, 0.5]) / 100
    figures = {"base": base, "alike": base + flip / 5, "noisy": base + 3 * flip, "near": base - 0.003 + flip / 30}
    result = table(figures, alike="lower", noisy="lower", near="lower")
    assert result["finding"].tolist() == ["", "the same within 1 point", "can't tell", "lower, by less than 1 point"]
    assert result["verdict"].tolist() == ["", "the same within 1 point", "can't tell", "agrees"]
    one_sided = [
        max(
            stats.ttest_1samp(100 * (figures[name] - base), side, alternative=tail).pvalue
            for side, tail in ((-1, "greater"), (1, "less"))
        )
        for name in ("alike", "noisy", "near")
    ]
    expected = holm(result["p"].tolist()[1:], one_sided)
    assert np.ravel(result[["p_holm", "p_same"]].to_numpy()[1:].T) == pytest.approx(np.ravel(expected))
    strict = summary(records(figures), cells(figures), "knn_top1", {}, margin=0.1)
    assert strict["finding"].tolist() == ["", "can't tell", "can't tell", "lower"]


def test_the_first_seeds_measure_the_spread_if_they_decided_how_many_follow() -> None:
    draw = np.random.default_rng(9)
    figures = {name: draw.normal(0.6, 0.02, 8) for name in ("base", "a", "b")}
    figures["a"][1] = NAN  # one of the first
    result = summary(records(figures), cells(figures), "knn_top1", {}, first=[0, 1, 2, 3]).set_index("cell")
    for name, count in (("a", 3), ("b", 4)):
        x = 100 * (figures[name] - figures["base"])
        x = x[~np.isnan(x)]
        expected = mean_interval(x, first=count)
        row = result.loc[name, ["difference", "difference_low", "difference_high", "p"]]
        assert row.tolist() == pytest.approx(expected[:4])
    assert result.loc["base", "low"] == pytest.approx(mean_interval(100 * figures["base"], first=4).low)
    assert result["p_sign_flip"].isna().all()  # it needs a fixed number of seeds


def test_cells_are_paired_by_seed_in_any_order() -> None:
    base, cell = studies(np.random.default_rng(2), [0, -0.01], 1)[0]
    figures = {"base": base, "cell": cell}
    rows, plan = records(figures), cells(figures)
    straight = summary(rows, plan, "knn_top1", {})
    pd.testing.assert_frame_equal(straight, summary(rows.sample(frac=1, random_state=0), plan, "knn_top1", {}))
    other = rows.assign(seed=rows["seed"].where(rows["cell"] == "base", (rows["seed"] + 1) % 5))
    widths = [(t["difference_high"] - t["difference_low"])[1] for t in (straight, summary(other, plan, "knn_top1", {}))]
    assert widths[1] > 3 * widths[0]


def test_failed_seeds_reduce_n_and_pairs() -> None:
    base, a, b = [NAN, 0.5, 0.6, 0.7], [0.4, NAN, 0.5, 0.58], [NAN] * 4
    rows = records({"base": base, "a": a, "b": b})
    rows.loc[rows["cell"] == "b", "knn_top1"] = 0.9  # measured, but not finished
    result = summary(rows, cells({"base": 0, "a": 0, "b": 0}), "knn_top1", {})
    assert result["n"].tolist() == [3, 3, 0]
    assert result["pairs"].tolist() == [0, 2, 0]
    expected = stats.ttest_rel(a[2:], base[2:])
    assert result.loc[1, "difference"] == pytest.approx(-11)
    assert expected.pvalue > 0
    assert result.loc[1, ["low", "difference_low", "p"]].notna().tolist() == [True, False, False]  # two pairs
    assert result.loc[2, ["mean", "difference", "p", "p_holm", "seconds"]].isna().all()
    text = shown(result, "knn_top1")
    assert text["n"].tolist() == ["3", "3 (2 paired)", "0"]
    line = FORMATS["csv"](text, []).splitlines()[-1]
    assert line == "b,0" + (len(text.columns) - 2) * ","


@pytest.mark.parametrize("figures", [{"base": [0.5], "a": [0.4]}, {"base": [0.5, NAN], "a": [0.4, 0.3]}])
def test_one_pair_has_a_difference_but_no_verdict(figures: dict[str, list[float]]) -> None:
    row = table(figures, a="lower").loc["a"]
    assert (row["pairs"], row["difference"], row["verdict"]) == (1, pytest.approx(-10), "can't tell")
    assert row[["difference_low", "difference_high", "p", "p_holm"]].isna().all()


def test_an_unfinished_study_has_a_table_without_values() -> None:
    text = shown(table({"base": [NAN], "a": [NAN]}).reset_index(), "knn_top1")
    assert text["n"].tolist() == ["0", "0"]
    assert list(text) == ["cell", "n"]  # the others would be empty


@pytest.mark.parametrize(
    ("expected", "fall", "rise", "none"),
    [
        ("lower", "agrees", "differs", "can't tell"),
        ("higher", "differs", "agrees", "can't tell"),
        (-6.4, "agrees", "differs", "can't tell"),
        (2, "differs", "agrees", "can't tell"),
        (0.0, "differs", "differs", "can't tell"),
        (None, "", "", ""),
    ],
)
def test_verdict_is_the_side_of_0_on_which_the_interval_lies(
    expected: float | str | None, fall: str, rise: str, none: str
) -> None:
    base, some = np.array([0.5, 0.6, 0.7]), np.array([0.1, 0.11, 0.1])
    figures = {"base": base, "fall": base - some, "rise": base + some, "none": base[::-1]}
    result = table(figures, **({} if expected is None else dict.fromkeys(("fall", "rise", "none"), expected)))
    assert result["verdict"].tolist() == ["", fall, rise, none]


def test_mcnemar_uses_the_seeds_with_predictions_of_both() -> None:
    draw = np.random.default_rng(4)
    figures = {"base": [0.8, 0.8, NAN], "a": [0.6, 0.7, 0.6]}
    correct = {(name, seed): draw.random(300) < 0.7 for name in figures for seed in (0, 1, 2)}
    result = summary(records(figures), cells(figures), "knn_top1", correct)
    p = {seed: mcnemar(correct["a", seed], correct["base", seed]).p for seed in (0, 1)}
    assert result["mcnemar"].tolist() == [None, p]
    assert shown(result, "knn_top1")["p (McNemar, by seed)"].iloc[1] == f"{p[0]:.2g}, {p[1]:.2g}"
    del correct["base", 0]
    assert summary(records(figures), cells(figures), "knn_top1", correct)["mcnemar"].tolist()[1] == {1: p[1]}


def test_shown_has_percent_and_signed_points_in_every_format() -> None:
    figures = {"base": [0.60, 0.62, 0.61], "a|b": [0.50, 0.52, 0.50], "t=1": [0.61, 0.60, 0.615]}
    expected = {"a|b": -6.4, "t=1": "higher"}
    text = shown(summary(records(figures), cells(figures, **expected), "knn_top1", {}), "knn_top1")
    assert text.iloc[1].to_dict() == {
        "cell": "a|b",
        "n": "3",
        "kNN top-1 (%)": "50.67 (47.80 to 53.54)",
        "difference (points)": "-10.33 (-11.77 to -8.90)",
        "p": "0.001",
        "p (Holm)": "0.0021",
        "p (same)": "1",
        "p (Dunnett)": "0.00044",
        "finding": "lower",
        "expected": "-6.40",
        "verdict": "agrees",
        "source": "Table 5",
        "seconds": "60",
        "images/s": "800",
    }
    assert text["expected"].tolist()[2] == "higher"
    six = {"base": np.linspace(0.6, 0.62, 6), "a": np.linspace(0.5, 0.54, 6)}
    more = shown(summary(records(six), cells(six), "knn_top1", {}), "knn_top1")
    assert (more["p (sign flip)"][1], "p (Dunnett)" in more) == ("0.031", False)  # 2 / 2^6, and one cell is not pooled
    for style in FORMATS.values():
        assert "-10.33 (-11.77 to -8.90)" in style(text[["cell", "difference (points)"]], [])


def test_unknown_metrics_and_duplicate_runs_are_rejected() -> None:
    figures = {"base": [0.5, 0.6], "a": [0.4, 0.5]}
    rows = records(figures)
    with pytest.raises(
        ValueError, match=r"^the records have no metric 'knn': choose from cell, seed, status, knn_top1, error"
    ):
        summary(rows, cells(figures), "knn", {})
    with pytest.raises(ValueError, match=r"^cell 'a' with seed 1 occurs twice: give each cell its own name$"):
        summary(pd.concat([rows, rows.tail(1)]), cells(figures), "knn_top1", {})
