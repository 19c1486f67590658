"""Tests of the figures of a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from analysis import trials as search
from analysis.statistics import accuracy_interval
from analysis.style import COLORS, DARK, WIDTH
from analysis.trials import pictures

PARAMETERS = pd.DataFrame(
    [
        ["optim.lr (optim.name=muon)", 0.5, True, None],
        ["train.batch_size", 0.3, False, [128, 1024]],
        ["augment.crop.scale", 0.2, False, [[0.08, 1.0], [0.2, 1.0]]],
    ],
    columns=["parameter", "importance", "log", "choices"],
)
EVERY = {"history", "importance", "slice", "parallel-coordinates", "contour"}


def table() -> pd.DataFrame:
    """Trials 0 to 5. Trial 2 was pruned, and trial 4 does not have the learning rate."""
    rows = {
        "trial": range(6),
        "accuracy": [0.5, 0.7, None, 0.6, 0.8, 0.8],
        "time": [10, 30, None, 20, 40, 50],
        "optim.lr (optim.name=muon)": [0.001, 0.1, 0.01, 0.01, None, 0.001],
        "train.batch_size": [128, 1024, 128, 1024, 128, 128],
        "augment.crop.scale": [[0.08, 1.0], [0.2, 1.0]] * 3,
    }
    return pd.DataFrame(rows, dtype=object)


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FEWEST_TRIALS", 2)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would have been saved."""
    saved: list[Figure] = []
    monkeypatch.setattr(search, "save", lambda figure, *paths: saved.append(figure))
    return saved


def draw(name: str, figures: list[Figure], objectives: tuple[str, ...] = ("accuracy",)) -> Figure:
    pictures(table(), PARAMETERS, objectives, start=0.55)[name].draw(Path("unused"))
    return figures[-1]


def test_pictures_depend_on_objectives_parameters_and_completed_trials() -> None:
    assert set(pictures(table(), PARAMETERS, ["accuracy"])) == EVERY
    assert set(pictures(table(), PARAMETERS, ["accuracy", "time"])) == EVERY | {"pareto-front"}
    assert set(pictures(table(), PARAMETERS[:1], ["accuracy"])) == EVERY - {"contour"}
    assert set(pictures(table(), PARAMETERS[:0], ["accuracy"])) == {"history"}
    assert pictures(table()[1:3], PARAMETERS, ["accuracy"]) == {}


@pytest.mark.parametrize(("fewest", "expected"), [(5, EVERY), (6, {"history", "parallel-coordinates"})])
def test_few_trials_say_nothing_of_importance(fewest: int, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FEWEST_TRIALS", fewest)
    assert set(pictures(table(), PARAMETERS, ["accuracy"])) == expected


def test_every_picture_has_a_caption_and_is_saved(tmp_path: Path) -> None:
    drawn = pictures(table(), PARAMETERS, ["accuracy", "time"])
    assert set(drawn) == set(search.CAPTIONS)
    for name, picture in drawn.items():
        picture.draw(tmp_path / f"{name}.png")
        assert picture.caption.endswith(".")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_every_picture_allows_equal_trials(figures: list[Figure]) -> None:
    same = pd.concat([table()[:1], table()[:1].assign(trial=1)])
    for picture in pictures(same, PARAMETERS, ["accuracy", "time"]).values():
        picture.draw(Path("unused"))
    assert len(figures) == 6


def test_captions_say_what_chance_does_and_how_many_settings_are_shown() -> None:
    drawn = pictures(table(), PARAMETERS, ["accuracy"], images=400, varied=11)
    low, high = accuracy_interval(320, 400)
    assert f"On 400 validation images, a single accuracy varies by about ±{50 * (high - low):.1f} points" in (
        drawn["history"].caption
    )
    assert "The thick one is trial 4, the best. Shown are 3 of 11 settings that vary, the most important." in (
        drawn["parallel-coordinates"].caption
    )
    assert "Shown are" not in pictures(table(), PARAMETERS, ["accuracy"])["parallel-coordinates"].caption


def test_names_break_at_spaces_and_longer_words_after_dots() -> None:
    assert search._wrapped("augment.color_jitter.strength") == "augment.color_jitter.\nstrength"
    assert search._wrapped("optim.lr (optim.name=muon)") == "optim.lr\n(optim.name=muon)"
    assert search._wrapped("accuracy on validation (%)") == "accuracy on validation\n(%)"


def test_history_shows_the_best_so_far_and_the_start(figures: list[Figure]) -> None:
    axes = draw("history", figures).axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[0, 50], [1, 70], [3, 60], [4, 80], [5, 80]]
    assert axes.lines[0].get_ydata().tolist() == [50, 70, 70, 80, 80]
    assert axes.lines[1].get_ydata() == pytest.approx([55, 55])
    assert [text.get_text() for text in axes.texts] == ["best so far\n80.0", "your config\n55.0"]
    assert axes.get_ylabel() == "accuracy on validation (%)"


def test_importances_are_bars_with_the_first_at_the_top(figures: list[Figure]) -> None:
    axes = draw("importance", figures).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.3, 0.2]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["0.50", "0.30", "0.20"]


def test_slices_put_ranges_and_choices_on_an_axis_from_0_to_1(figures: list[Figure]) -> None:
    rate, size, crop, _ = draw("slice", figures).axes
    points = rate.collections[0].get_offsets()
    np.testing.assert_allclose(points.filled(np.nan)[:, 0], [0, 1, 0.5, np.nan, 0])
    assert [text.get_text() for text in rate.get_xticklabels()] == ["0.001", "0.01", "0.1"]
    assert size.collections[0].get_offsets()[:, 0].tolist() == [0, 1, 1, 0, 0]
    assert [text.get_text() for text in crop.get_xticklabels()] == ["[0.08, 1.0]", "[0.2, 1.0]"]


def test_contours_show_each_pair_of_parameters(figures: list[Figure]) -> None:
    *panels, bar = draw("contour", figures).axes
    assert bar.get_xlabel() == "accuracy on validation (%)"
    assert [len(axes.collections[-1].get_offsets()) for axes in panels] == [4, 4, 5]  # trial 4 has no learning rate
    assert [axes.get_ylabel() for axes in panels] == ["train.batch_size", "augment.crop.scale", ""]


def test_contours_interpolate_between_trials() -> None:
    points, targets = np.array([[0, 0], [1, 1], [0, 0]]), np.array([[0, 0], [0.5, 0.5], [1, 1]])
    values = search._interpolate(points, np.array([0.0, 1.0, 0.0]), targets)
    np.testing.assert_allclose(values, [0, 0.5, 1], atol=0.03)


def test_parallel_lines_pass_a_missing_parameter_on_the_left_and_the_best_is_drawn_apart(figures: list[Figure]) -> None:
    axes = draw("parallel-coordinates", figures).axes[0]
    lines = np.array(axes.collections[0].get_segments())
    assert lines.shape == (4, 4, 2)
    for back, line in (("#ffffff", COLORS[0]), (DARK["#ffffff"], DARK[COLORS[0].lower()])):  # all lines can be seen
        weakest = min(color[3] for color in axes.collections[0].get_colors())
        shown = weakest * np.array(to_rgb(line)) + (1 - weakest) * np.array(to_rgb(back))
        assert np.abs(shown - to_rgb(back)).max() > 0.3
    best = axes.lines[0]
    np.testing.assert_allclose(best.get_xdata(), [1, search.ABSENT, 0, 0])  # trial 4 has no learning rate
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == ["50.0", "65.0", "80.0"]
    assert texts.count("none") == 1
    assert all(text.get_bbox_patch() is not None for text in axes.texts)  # no line crosses a value
    assert figures[-1].get_figwidth() == WIDTH


def test_the_pareto_front_leaves_out_beaten_trials(figures: list[Figure]) -> None:
    axes = draw("pareto-front", figures, ("accuracy", "time")).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[10, 50], [20, 60], [30, 70], [40, 80]]
    assert [text.get_text() for text in axes.texts] == ["0", "3", "1", "4", "Pareto\nfront"]
