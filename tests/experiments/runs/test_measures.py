"""Which runs are ordered together, and by what."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy

from analysis.agreement import kendall
from experiments.runs.measures import rank_measures
from experiments.tracking.store import Store
from experiments.tracking.writing import copy_run, start_run
from simclr.errors import UserError


def add(store: Store, name: str, figures: dict[str, tuple[float, str]], **what: str) -> None:
    """A finished run with figures under protocols."""
    settings, tags = json.loads(what.get("settings", "{}")), {"config_key": name} if "settings" in what else {}
    tracker = start_run(store, name, what.get("kind", "pretrain"), settings, tags, parent=what.get("parent"))
    tracker.log({f"eval/{metric}": value for metric, (value, _) in figures.items()})
    tracker.tag_protocols({metric: protocol for metric, (_, protocol) in figures.items()})
    tracker.finish("FINISHED")


def test_encoders_are_ordered_together_under_the_same_protocols_only(store: Store) -> None:
    with pytest.raises(UserError, match="no encoder has both linear_top1 and a label-free metric"):
        rank_measures(store, "linear_top1")
    draw = np.random.default_rng(0)
    accuracy = draw.random(8)
    rank, uniform = accuracy + 0.3 * draw.random(8), -accuracy
    study = start_run(store, "study", "study", {})
    for number in range(8):
        figures = {"linear_top1": (accuracy[number], "3-l"), "uniformity_h": (uniform[number], "3-u")}
        figures["spectrum_rank_h"] = (rank[number], "3-s" if number < 6 else "3-other")
        add(store, f"r{number}", figures, **({"parent": study.run_id} if number < 5 else {}))
    add(store, "elsewhere", {"linear_top1": (0.0, "3-other"), "uniformity_h": (0.0, "3-u")})
    add(store, "copy", {"linear_top1": (0.0, "3-l"), "uniformity_h": (0.0, "3-u")}, kind="cell")
    ranking = rank_measures(store, "linear_top1")
    rows = {row["measure"]: row for row in ranking.rows}
    assert list(rows) == ["uniformity_h", "spectrum_rank_h"]  # the best first, whatever its sign
    assert (rows["uniformity_h"]["tau"], rows["uniformity_h"]["n"]) == (pytest.approx(-1), 8)
    peer = scipy.stats.kendalltau(rank[:6], accuracy[:6]).statistic
    assert (rows["spectrum_rank_h"]["tau"], rows["spectrum_rank_h"]["n"]) == (pytest.approx(peer), 6)
    assert "2 groups of encoders (1 to 2 in each) that share a protocol" in ranking.notes[-1]
    assert [row["n"] for row in rank_measures(store, "linear_top1", ["study"]).rows] == [5, 5]
    for number in range(5, 8):  # runs that the study reused
        copy_run(store, store.find(f"r{number}"), "cell", {"cell": f"c{number}"}, parent=study.run_id)
    assert [row["n"] for row in rank_measures(store, "linear_top1", ["study"]).rows] == [8, 6]
    with pytest.raises(UserError, match=r"`simclr eval RUN --linear --knn --on val` and `simclr eval RUN --no-labels"):
        rank_measures(store, "val/linear_top1")
    with pytest.raises(UserError, match=r"at least 5 encoders that differ .* with linear top-1 .* at most 2"):
        rank_measures(store, "linear_top1", ["r6", "r7"])
    with pytest.raises(UserError, match="no run has the name 'nothing'"):
        rank_measures(store, "linear_top1", ["nothing"])


def test_seeds_of_a_config_count_as_one_encoder_with_their_mean(store: Store) -> None:
    draw = np.random.default_rng(1)
    accuracies, ranks = draw.random((2, 6, 3))
    for config, seed in np.ndindex(6, 3):
        figures = {"linear_top1": (accuracies[config, seed], "3-l"), "spectrum_rank_h": (ranks[config, seed], "3-s")}
        settings = {"seed": seed, "data.split_seed": seed, "name": f"n{config}", "model.width": config}
        add(store, f"c{config}-s{seed}", figures, settings=json.dumps(settings, default=int))
    ((row,), _) = rank_measures(store, "linear_top1")
    assert (row["n"], row["encoders"]) == (6, 18)
    assert row["tau"] == pytest.approx(scipy.stats.kendalltau(ranks.mean(1), accuracies.mean(1)).statistic)


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_only_with_means_over_seeds_does_the_interval_hold_what_it_says(rho: float) -> None:
    """Six configs with five seeds each, whose figures vary a third as much as those of configs."""
    draw, spread, times = np.random.default_rng(2), 1 / 3, 400
    configs = draw.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=(times, 6, 1))
    x, y = np.moveaxis(configs + spread * draw.normal(size=(times, 6, 5, 2)), -1, 0)
    true = 2 / math.pi * math.asin(rho / (1 + spread**2 / 5))
    pooled, means = (
        np.mean([low <= true <= high for _, low, high, _ in map(kendall, first, second)])
        for first, second in ((x.reshape(times, 30), y.reshape(times, 30)), (x.mean(-1), y.mean(-1)))
    )
    assert pooled < 0.8
    assert 0.92 < means < 0.995
