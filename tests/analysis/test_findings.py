"""Tests of the sentences that start a report."""

from __future__ import annotations

from math import nan
from pathlib import Path

import pandas as pd
import pytest

from analysis.findings import describe_cell, in_other_metrics, of_run, of_search, of_study
from analysis.label_free import explain
from analysis.study_tables import latex_summary, page_table
from tests.analysis.test_tables import compile_latex, log_of

COLUMNS = ["cell", "n", "mean", "std", "low", "high", "pairs", "difference", "difference_low", "difference_high"]
COLUMNS += ["p_holm", "expected", "source", "verdict"]
BASELINE = ["baseline", 3, 96.33, 0.8, 94.4, 98.3, 0, nan, nan, nan, nan, None, None, ""]
JITTER = [
    "no color_jitter",
    3,
    67.92,
    2.7,
    61.1,
    74.7,
    3,
    -28.42,
    -36.89,
    -19.94,
    0.0048,
    "lower",
    "Fig. 5: x",
    "agrees",
]
GRAY = ["no grayscale", 3, 96.0, 0.5, 94, 98, 3, -0.33, -2, 1.3, 0.4, None, None, ""]
FLIP = ["no flip", 3, 97.9, 0.5, 97, 99, 3, 1.6, 0.4, 2.8, 0.03, "lower", "Fig. 5", "differs"]


def table(*rows: list[object], finding: str = "can't tell") -> pd.DataFrame:
    """A study's table, whose rows all have the same finding."""
    made = pd.DataFrame(rows, columns=COLUMNS).assign(finding=finding)
    made.attrs |= {"comparisons": len(rows) - 1, "others": 0}
    return made


def test_the_finding_of_a_study_is_its_largest_clear_difference() -> None:
    assert of_study(table(BASELINE, GRAY, JITTER, FLIP), "linear_top1") == [
        "Without colour jitter, linear accuracy falls by 28.4 points (19.9 to 36.9), from 96.3 to 67.9, over three "
        "seeds.",
        "The paper reports the same direction (Fig. 5). Also higher: without flip (+1.6). No clear difference: without "
        "grayscale.",
    ]
    first, second = of_study(table(BASELINE, FLIP), "linear_top1")
    assert (
        first == "Without flip, linear accuracy rises by 1.6 points (0.4 to 2.8), from 96.3 to 97.9, over three seeds."
    )
    assert second == "The paper reports the opposite direction (Fig. 5)."


def test_means_over_other_seeds_than_the_difference_are_left_out() -> None:
    (first, _) = of_study(table(BASELINE, [*JITTER[:6], 2, *JITTER[7:]]), "linear_top1")
    assert first == "Without colour jitter, linear accuracy falls by 28.4 points (19.9 to 36.9), over two seeds."


def test_cells_that_differ_in_another_metric_alone_are_named() -> None:
    summaries = {"linear_top1": table(BASELINE, JITTER, GRAY), "knn_top1": table(BASELINE, JITTER, GRAY)}
    assert in_other_metrics(summaries, 1.0) == []
    summaries["knn_top1"] = table(BASELINE, JITTER, FLIP)
    told = (
        "In kNN accuracy alone, there is a significant difference from the baseline (p < 0.05, corrected within this "
        "metric): "
    )
    assert in_other_metrics(summaries, 1.0) == [f"{told}without flip (+1.6 points)."]
    summaries["linear_top1"] = table(BASELINE, JITTER, [*FLIP[:7], -1.6, *FLIP[8:]])
    assert in_other_metrics(summaries, 1.0) == [f"{told}without flip (+1.6 points)."]  # the other direction
    small = f"{told}without flip (+1.6 points, less than the study's margin of 2)."
    assert in_other_metrics(summaries, 2.0) == [small]


def test_a_study_without_a_clear_difference_says_so() -> None:
    assert of_study(table(BASELINE, GRAY), "knn_top1") == [
        "No cell differs clearly from the baseline in kNN accuracy (96.3 %), over three seeds.",
        "No p, corrected for all comparisons in this metric, is below 0.05. The largest difference is -0.3 points "
        "(-2.0 to +1.3), without grayscale.",
    ]
    assert of_study(table(BASELINE, GRAY, finding="the same within 1 point"), "knn_top1")[1].endswith(
        "without grayscale. The same within 1 point: without grayscale."
    )
    once = ["lr=0.1", 1, 90.0, nan, nan, nan, 1, -6.3, nan, nan, nan, None, None, ""]
    luck = "One seed can't tell any difference in linear accuracy from luck."
    largest = "The largest is -6.3 points, with lr = 0.1; the baseline has 96.3 %."
    repeat = f"{largest} Repeat the study with --seeds 3 or more."
    assert of_study(table(BASELINE, once), "linear_top1") == [luck, repeat]
    assert of_study(table(BASELINE, once), "linear_top1", unfinished=True) == [luck, largest]
    failed = ["lr=0.1", 0, nan, nan, nan, nan, 0, nan, nan, nan, nan, None, None, ""]
    assert of_study(table(BASELINE, failed), "linear_top1") == [
        "No cell can be compared with the baseline yet. The best result so far is 96.3 % linear accuracy, of "
        "'baseline'."
    ]


def test_a_figure_that_is_not_comparable_says_why() -> None:
    row = [*JITTER[:-1], "not comparable: the rate does not grow with the batch"]
    assert of_study(table(BASELINE, row), "linear_top1")[1] == (
        "The paper's result is not comparable: the rate does not grow with the batch."
    )


@pytest.mark.parametrize(
    ("cell", "phrase"),
    [
        ("no crop, color_jitter", "Without crop and colour jitter"),
        ("only color_jitter + grayscale", "With only colour jitter and grayscale"),
        ("head=mlp, layer z", "With head = mlp, layer z"),
        ("trial 7", "With the settings of trial 7"),
        ("1 + blur", "With 1 + blur"),
    ],
)
def test_cells_are_described_in_words(cell: str, phrase: str) -> None:
    assert describe_cell(cell) == phrase


def test_the_finding_of_a_run_has_its_baselines() -> None:
    row = {"metric": "linear_top1", "trained": 0.963, "low": 0.944, "high": 0.976}
    figures = pd.DataFrame([row | {"untrained": 0.5, "pixels": nan, "chance": 0.125}])
    assert of_run(figures, 600, "for 10 epochs on shapes", "") == [
        "A linear classifier on the encoder's features classifies 96.3 % of 600 test images correctly (94.4 to 97.6). "
        "The encoder was trained for 10 epochs on shapes.",
        "For comparison: an untrained network gives 50.0 % and chance 12.5 %.",
    ]
    assert of_run(figures.assign(untrained=0.95), None, "x", "")[1].endswith(
        "no clear gain over the untrained network."
    )
    on_validation = figures.assign(metric="val/linear_top1")
    assert of_run(on_validation, 600, "x", "")[0].startswith(
        "A linear classifier on the encoder's features classifies 96.3 % of 600 validation images correctly"
    )
    assert of_run(figures.assign(metric="val/knn_top1"), None, "x", "")[0].startswith(
        "The encoder's kNN accuracy is 96.3 % on the validation images (94.4 to 97.6)."
    )
    assert of_run(figures.iloc[:0], None, "for 2 epochs on shapes", "simclr eval a") == [
        "Trained for 2 epochs on shapes, and not evaluated yet.",
        "To evaluate it, run simclr eval a.",
    ]


def test_the_finding_of_a_run_is_about_its_own_images_first() -> None:
    row = {"low": nan, "high": nan, "untrained": 0.15, "pixels": nan, "chance": nan}
    other = row | {"metric": "folder-46436ce1/knn_k9_top1", "trained": 0.5, "elsewhere": "birds"}
    own = row | {"metric": "contrastive_h_top1", "trained": 0.4, "low": 0.35, "chance": 1 / 15, "elsewhere": None}
    assert of_run(pd.DataFrame([other]), 10, "for 4 epochs on photos", "")[0] == (
        "The encoder's kNN (k = 9) accuracy is 50.0 % on 10 test images of birds. The encoder was trained for 4 epochs "
        "on photos."
    )
    first, rest = of_run(pd.DataFrame([other, own]), 10, "for 4 epochs on photos", "")
    assert first == (
        "For 40.0 % of the images, the encoder finds the other view of the same image among 15 views of 8 images. It "
        "was trained for 4 epochs on photos."
    )
    assert rest == (
        "For comparison: untrained 15.0 % and chance 6.7 %. The encoder is clearly better at this than the untrained "
        "network, so it has learned from its images: simclr neighbours and simclr explore show which images it finds "
        "similar."
    )


def test_an_encoder_that_started_from_weights_is_compared_with_them() -> None:
    row = {"trained": 0.6, "low": 0.5, "high": 0.7, "untrained": 0.15, "start": 0.55, "pixels": nan, "chance": 0.1}
    rest = of_run(pd.DataFrame([row | {"metric": "contrastive_h_top1"}]), None, "on photos", "")[1]
    assert rest == (
        "For comparison: untrained 15.0 %, before training 55.0 % and chance 10.0 %. The encoder is clearly better at "
        "this than the untrained network, and not clearly better than the weights that it started from: train for "
        "longer, or on more images."
    )
    above = {"trained": 0.321, "low": 0.288, "untrained": 0.0677, "start": 0.1934, "metric": "contrastive_h_top1"}
    rest = of_run(pd.DataFrame([row | above]), None, "on photos", "")[1]
    assert (
        "clearly better at this than the untrained network, and clearly better than the weights that it started from, "
        "so it has learned from its images"
    ) in rest
    rest = of_run(pd.DataFrame([row | {"metric": "linear_top1"}]), 600, "on photos", "")[1]
    assert rest == (
        "For comparison: an untrained network gives 15.0 %, the weights that it started from 55.0 % and chance "
        "10.0 %. The encoder has no clear gain over the weights that it started from."
    )


@pytest.mark.parametrize(
    ("trained", "low", "untrained", "word"),
    [
        (7.5, 6.4, 5.3, "only slightly"),
        (12.0, 10.0, 5.3, "clearly"),
        (12.0, 5.0, 5.3, "not clearly"),
        (95.0, 94.0, 60.0, "clearly"),
    ],
)
def test_figures_without_labels_have_a_verdict(trained: float, low: float, untrained: float, word: str) -> None:
    row = {"metric": "contrastive_h_top1", "trained": trained, "low": low, "untrained": untrained, "chance": 0.2}
    text = explain([row], {"h": 512})[0]
    assert f"The encoder is {word} better at this than the untrained network" in text
    assert "among 500 views of 250 images (chance 0.2 %, untrained " in text
    assert explain([row | {"metric": "knn_top1"}], {"h": 512}) == []
    some = explain([row], {"h": 512}, (128, 200))[0]
    assert some.startswith(
        f"For {trained:.1f} % of the images (128 of 200 were used, in whole batches), the encoder finds"
    )
    assert explain([row], {"h": 512}, (200, 200))[0].startswith(f"For {trained:.1f} % of the images, the encoder finds")


def test_the_finding_of_a_search_says_what_is_left_with_fresh_seeds() -> None:
    trials = pd.DataFrame({"trial": [0, 1, 2], "accuracy": [0.5, None, 0.6]}, dtype=object)
    selection = pd.DataFrame({"cell": ["baseline", "trial 2"], "fresh seeds": [0.5, 0.52], "n": [3, 3]})  # of before
    assert of_search(trials, 0.55, selection) == [
        "The best of 3 trials, trial 2, reaches 60.0 % on validation, 5.0 points above your config (55.0 %).",
        "Trained again with three seeds that took no part in the choice, trial 2 is 2.0 points above your config on "
        "validation.",
    ]
    unconfirmed = "This is not confirmed with fresh seeds, and part of it is luck."
    assert of_search(trials, nan, None) == [
        f"The best of 3 trials, trial 2, reaches 60.0 % on validation. {unconfirmed}"
    ]
    assert of_search(trials, 0.6, None) == [
        "No trial beat your config (60.0 %). The best of 3 trials, trial 2, reaches 60.0 % on validation, the same as "
        "your config."
    ]
    assert of_search(trials, 0.605, None)[0].endswith("on validation, 0.5 points below your config.")
    failed = selection.assign(**{"fresh seeds": [0.5, None]})
    told = of_search(trials, 0.5, failed, 20)  # the interval is Clopper and Pearson's, of 10 of 20
    assert told == [
        "The best of 3 trials, trial 2, reaches 60.0 % on validation, 10.0 points above your config (50.0 %, 27.2 to "
        f"72.8). {unconfirmed[:-1]}, so it has no interval."
    ]
    assert of_search(trials, 0.5, selection, 20)[0].endswith("probably be lower next time, so it has no interval.")
    assert of_search(trials, nan, None, 20)[0].endswith(f"validation. {unconfirmed[:-1]}, so it has no interval.")
    assert "of several" not in of_search(trials[2:], 0.7, None, 20)[0]
    close = selection.assign(**{"in the search": [0.5, 0.6 - 3e-8]})  # the table of trials has four digits
    assert of_search(trials, 0.5, close)[1].startswith("Trained again with three seeds")
    later = pd.concat([trials, pd.DataFrame({"trial": [3], "accuracy": [0.7]}, dtype=object)])
    assert of_search(later, nan, selection.assign(**{"in the search": [0.5, 0.6]})) == [
        f"The best of 4 trials, trial 3, reaches 70.0 % on validation. {unconfirmed}"
    ]
    assert of_search(trials[1:2], 0.5, None) == ["No trial ran to the end (1 trial)."]


@pytest.mark.parametrize(
    ("n", "searched", "gain", "low", "high", "verdict"),
    [
        (
            3,
            0.05,
            0.02,
            0.01,
            0.03,
            "So the gain holds with fresh seeds, but it is smaller than in the search (+5.0), where part of it was",
        ),
        (3, 0.01, 0.02, 0.01, 0.03, "So the gain holds with fresh seeds."),
        (3, nan, 0.02, 0.01, 0.03, "So the gain holds with fresh seeds."),
        (3, 0.05, 0.02, -0.01, 0.05, "That may be chance: the gain is not confirmed."),
        (3, 0.05, -0.02, -0.03, -0.01, "So your config is better, and the gain in the search was luck."),
        (1, 0.004, 0.0225, nan, nan, "Fewer than three fresh seeds can't tell this from chance: search again with"),
    ],
    ids=["shrank", "held", "proxy", "unclear", "lost", "one seed"],
)
def test_a_search_says_whether_its_gain_is_real(
    n: int, searched: float, gain: float, low: float, high: float, verdict: str
) -> None:
    trials = pd.DataFrame({"trial": [0, 1], "accuracy": [0.5, 0.6]}, dtype=object)
    facts = {"cell": "trial 1", "n": n, "gain in the search": searched, "gain": gain, "gain_low": low}
    selection = pd.DataFrame([{"cell": "baseline", "n": n}, facts | {"gain_high": high}]).assign(**{"fresh seeds": 0.5})
    told = of_search(trials, 0.5, selection)[1]
    assert f"{abs(100 * gain):.1f} points {'above' if gain > 0 else 'below'} your config on validation" in told
    assert verdict in told


def test_the_table_of_a_page_has_intervals_below_and_no_difference_of_the_baseline() -> None:
    summaries = {"linear_top1": table(BASELINE, JITTER), "knn_top1": table(BASELINE, GRAY)}
    rows = page_table(summaries).to_dict("records")
    assert list(rows[0]) == ["Cell", "Linear top-1 (%)", "Difference (points)", "kNN top-1 (%)", "Paper"]
    assert rows[0]["Difference (points)"] == ""
    assert rows[1]["Linear top-1 (%)"] == "67.9\n61.1\u00a0to 74.7"
    linear, knn = (f"can't tell, p\u00a0{table['p_holm'][1]:.2g}" for table in summaries.values())
    assert rows[1]["Difference (points)"] == f"-28.4\n-36.9\u00a0to -19.9\n{linear}"
    assert rows[0]["kNN top-1 (%)"].count("\n") == 1
    assert rows[1]["kNN top-1 (%)"].endswith(f": {knn}")
    assert rows[1]["Paper"] == "agrees\nexpected lower"
    assert "Paper" not in page_table({"knn_top1": table(BASELINE, GRAY)})
    reasons = [
        [*GRAY[:-1], "not comparable: the rate doesn't grow"],
        [*GRAY[:-1], "agrees (against a: +1.20, expected higher)"],
    ]
    assert page_table({"knn_top1": table(BASELINE, *reasons)})["Paper"].tolist() == [
        "",
        "not comparable\nthe rate doesn't grow",
        "agrees\nagainst a: +1.20, expected higher",
    ]


def test_a_table_for_a_paper_has_in_bold_what_differs_from_the_baseline_and_no_noise(tmp_path: Path) -> None:
    broad = ["no color_jitter, temperature=0.1", *JITTER[1:]]
    summaries = {"linear_top1": table(BASELINE, JITTER, GRAY), "val/knn_top1": table(BASELINE, broad, FLIP)}
    text = latex_summary(summaries, "50 % of_x.", "a study/1", "Digest of the data: 01.")
    linear, knn = text.split("\n\n")
    assert linear.startswith("% needs \\usepackage{booktabs}\n% Digest of the data: 01.\n\\begin{table}")
    assert r"\caption{50 \% of\_x. Linear accuracy in percent: mean and standard deviation over 3 seeds." in linear
    assert "paired t test, after Holm's correction for 2 comparisons in this metric, together with tests of" in linear
    assert r"\label{tab:a-study-1-linear-top1}" in linear
    assert r"\label{tab:a-study-1-val-knn-top1}" in knn
    baseline, clear, noise = (line.strip().split(" & ") for line in linear.splitlines()[-6:-3])
    assert baseline == ["Baseline", "$96.3 \\pm 0.8$", "--", r"-- \\"]
    assert clear == ["No colour jitter", r"$\mathbf{67.9} \pm 2.7$", "$-28.4$ ($-36.9$ to $-19.9$)", r"$0.0048$ \\"]
    assert noise == ["No grayscale", r"$96.0 \pm 0.5$", "$-0.3$ ($-2.0$ to $+1.3$)", r"$0.4$ \\"]
    assert r"No colour jitter, temperature = 0.1 & $\mathbf{67.9}" in knn
    wide = [broad[0], 3, 67.92, 12.7, *JITTER[4:10], 0.0001, *JITTER[11:]]  # as wide as a row gets
    compile_latex(latex_summary({"linear_top1": table(BASELINE, wide)}, "", "a"), tmp_path)
    assert "Overfull" not in log_of(tmp_path)


def test_crossed_cells_are_described_by_what_was_left_out_and_what_was_set() -> None:
    assert describe_cell("no crop, temperature=0.1") == "Without crop, with temperature = 0.1"
    assert describe_cell("only crop, color_jitter, epochs=10") == "With only crop and colour jitter, with epochs = 10"


def test_matching_views_is_not_called_classification() -> None:
    figures = pd.DataFrame([{"metric": "contrastive_h_top1", "trained": 0.7, "low": 0.6, "untrained": 0.1}])
    assert of_run(figures, None, "for 10 epochs", "`simclr eval`")[0].startswith(
        "For 70.0 % of the images, the encoder"
    )
