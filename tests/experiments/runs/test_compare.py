"""Tests of experiments/runs/compare.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.label_free import MATCHES
from analysis.tables import has_other_interval
from experiments.runs.compare import chance_level, compare, curve_label, loss_caveat, plot_metric
from experiments.runs.evaluate import predictions
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr.errors import UserError
from simclr.methods.ntxent import chance_loss
from tests.experiments.runs.test_evaluate import report_of
from tests.helpers import tiny


def test_compare_shows_what_differs_and_tests_each_pair(trained: Store) -> None:
    for run in ("t0.2-s0", "t0.5-s0"):
        report_of(trained, run, ["knn"], [])
    result = compare(["t0.2-s0", "t0.5-s0", "t0.2-s0"], trained)
    assert list(result.table.columns) == ["run", "t0.2-s0", "t0.5-s0"]
    rows = result.table.set_index("run")
    assert rows.loc["loss.temperature"].tolist() == ["0.2", "0.5"]
    assert "kNN top-1" in rows.index
    assert "optim.lr" not in rows.index
    test = result.tests.set_index("metric").loc["kNN top-1"]
    correct = [np.equal(*predictions(trained.find(run), "knn_top1")) for run in ("t0.2-s0", "t0.5-s0")]
    assert test["only A right"] == (correct[0] & ~correct[1]).sum()
    assert test["only B right"] == (correct[1] & ~correct[0]).sum()


def test_a_run_of_an_earlier_version_differs_only_where_its_settings_do(store: Store) -> None:
    blurred = {"augment.crop.p": "1.0", "augment.blur.p": "0.5", "augment.blur.sigma": "[0.1, 2.0]", "seed": "0"}
    plain = tiny(augment={"blur": {"p": 0.0}}).flat() | {"name": "new"}
    before = {key: value for key, value in plain.items() if not (key.startswith("augment.") and value == 0.0)}
    for name, params in {"new": plain, "old": before, "blurred": blurred}.items():
        tracker = start_run(store, name, "pretrain", params)
        tracker.log({"eval/linear_l2": 0.5, "eval/lidar_h": 9.0})
        tracker.tag_protocols({"linear_l2": "3-aaaaaa", "lidar_h": "3-aaaaaa"})
        tracker.finish("FINISHED")
    assert compare(["new", "old"], store).table["run"].tolist() == ["lidar_h"]
    result = compare(["new", "blurred"], store)
    rows = result.table.set_index("run")
    assert rows.loc["augment.blur.p"].tolist() == ["0.0", "0.5"]
    assert "augment.blur.sigma" not in rows.index  # one run doesn't blur
    assert "share no accuracy on the same images and protocol. Run `simclr eval new` and `simclr" in result.notes[0]
    assert "bootstrap" not in " ".join(result.notes)


def test_only_an_evaluation_that_can_help_is_suggested(store: Store) -> None:
    def evaluated(name: str, metric: str = "lidar_h", digest: str = "abc", **settings: object) -> None:
        params = {f"data.{key}": value for key, value in settings.items()}
        tracker = start_run(store, name, "pretrain", params, {"data_digest": digest})
        about = {"data": {"train": settings.get("limit", 900), "split": name}}
        classes = np.zeros(10, np.int64)
        tracker.log({f"eval/{metric}": 1.0})
        tracker.artifact("knn-protocol.json", lambda path: path.write_text(json.dumps(about)))
        tracker.artifact(f"{metric}-predictions.npz", lambda path: np.savez(path, predicted=classes, labels=classes))
        tracker.tag_protocols({metric: f"3-{name}"})
        tracker.finish("FINISHED")

    def untested(*names: str) -> str:
        (note,) = (note for note in compare(names, store).notes if "McNemar's test is left out" in note)
        return note

    evaluated("whole")
    evaluated("limited", limit=400)
    evaluated("less", limit=400, split_seed=0, normalize="half")
    evaluated("other", digest="def", dir="/other")
    evaluated("changed", digest="def")
    evaluated("labelled", digest="ghi", labels="/table.csv")
    assert "can't be compared: data.limit is not set and 400 (whole and limited)." in untested("whole", "limited")
    assert "data.dir is not set and /other (whole and other)" in untested("whole", "other")
    assert "the images or their labels have changed (whole and changed)" in untested("whole", "changed")
    assert "Run `simclr eval limited` and `simclr eval less`." in untested("whole", "limited", "less")
    assert untested("whole", "labelled").endswith("Run `simclr eval whole` and `simclr eval labelled`.")
    evaluated("by-knn", "knn_top1")
    evaluated("by-linear", "linear_top1")
    assert untested("by-knn", "by-linear").endswith("Run `simclr eval by-knn`.")
    evaluated("by-knn-of-400", "knn_top1", limit=400)
    assert compare(["by-knn", "by-knn-of-400"], store).notes[0] == (
        "kNN top-1 can't be compared between by-knn and by-knn-of-400: the number of training images is 900 and 400 "
        "(data.limit)"
    )


def test_intervals_are_called_what_they_are_and_settings_are_no_results(store: Store) -> None:
    def evaluated(name: str, *metrics: str) -> str:
        tracker = start_run(store, name, "pretrain", {})
        ends = [metric for metric in metrics if metric.endswith(("_top1", "_map"))]
        tracker.log({f"eval/{metric}": 0.5 for metric in metrics})
        tracker.log({f"ref/{end}/{metric}": 0.5 for metric in ends for end in ("low", "high")})
        tracker.tag_protocols(dict.fromkeys(metrics, "3-aaaaaa"))
        tracker.finish("FINISHED")
        return " ".join(compare([name], store).notes)

    drawn = evaluated("drawn", "few_shot_5_top1", "retrieval_map", "contrastive_h_top1")
    assert "Clopper and Pearson's, over the images (for accuracies)" in drawn
    assert "Student's, over the draws of labelled images (for few-shot accuracies)" in drawn
    assert "Student's, over the queries (for mean average precision)" in drawn
    over_images = "The 95 % intervals are Korn and Graubard's, over the images."
    assert over_images in evaluated("averages", "robustness_knn_top1", "val/robustness_knn_blur_top1")
    assert has_other_interval("finetune_10pct_top1")  # so it isn't taken for a bootstrap interval
    few = evaluated("few", "few_shot_5_top1", "linear_l2", "lidar_h")
    assert "The 95 % intervals are Student's, over the draws of labelled images." in few
    assert "Clopper" not in few
    assert "linear_l2" not in few


def test_figures_of_two_protocols_have_two_rows_and_no_test(trained: Store) -> None:
    report_of(trained, "t0.2-s0", ["linear"], [])
    report_of(trained, "t0.5-s0", ["linear"], ["linear.standardise=false"])
    result = compare(["t0.2-s0", "t0.5-s0"], trained)
    assert len([name for name in result.table["run"] if name.startswith("linear top-1 [")]) == 2  # of a protocol each
    assert result.tests.empty or "linear top-1" not in result.tests["metric"].tolist()
    (why,) = (note for note in result.notes if "can't be compared" in note)  # one for all metrics
    assert re.match(r"linear top-1, .*can't be compared between t0.2-s0 and t0.5-s0: linear.standardise is T", why)


def test_a_figure_over_seeds_has_its_own_interval(trained: Store) -> None:
    quick = ["finetune.fractions=[0.1]", "finetune.lr=[0.05]", "finetune.epochs=1", "finetune.min_steps=2"]
    shown = []
    for seeds in (1, 2):
        report_of(trained, "t0.2-s0", ["finetune"], [*quick, f"finetune.seeds={seeds}"])
        shown.append(
            compare(["t0.2-s0"], trained).table.set_index("run")["t0.2-s0"]["fine-tuned on 10 % of labels, top-1"]
        )
    spans = [[float(word) for word in re.findall(r"[\d.]+", text)] for text in shown]
    for mean, low, high in spans:
        assert low < mean < high
    assert spans[0][1:] != spans[1][1:]


def test_runs_without_labels_are_compared_by_how_often_they_find_the_other_view(store: Store) -> None:
    def evaluated(name: str, found: float, params: dict[str, str], protocol: str = "3-aaaaaa") -> None:
        tracker = start_run(store, name, "pretrain", {"train.batch_size": "64", **params}, {"start": "theirs-s0"})
        tracker.log({f"eval/{MATCHES}": found, f"ref/low/{MATCHES}": found - 0.03, f"ref/high/{MATCHES}": found + 0.03})
        tracker.tag_protocols({MATCHES: protocol})
        tracker.finish("FINISHED")

    evaluated("a", 0.20, {"init": "/far/away/model.safetensors@0123456789abcdef"})
    evaluated("b", 0.30, {"init": "None"})
    evaluated("near", 0.24, {})
    evaluated("other", 0.24, {"train.batch_size": "128"}, "3-bbbbbb")
    result = compare(["a", "b"], store)
    assert result.notes[0] == (
        "b finds the other view of an image more often than a (30.0 and 20.0 % of the images). This is clear: the "
        "intervals don't overlap."
    )
    assert "McNemar's test is left out" not in " ".join(result.notes)
    assert result.table.set_index("run").loc["init"].tolist() == ["theirs-s0 (01234567)", "None"]
    assert compare(["a", "near"], store).notes[0].endswith("This may be chance: the intervals overlap.")
    three = compare(["a", "b", "near"], store).notes[0]
    assert three.startswith("b finds the other view of an image most often, followed by near (30.0 and 24.0 %")
    assert compare(["a", "other"], store).notes[0] == (
        f"{MATCHES} can't be compared between a and other: train.batch_size is 64 and 128"
    )
    tracker = start_run(store, "spectrum", "pretrain", {"method": "supcon"})
    tracker.log({"eval/spectrum_rank_h": 9.0})
    tracker.tag_protocols({"spectrum_rank_h": "3-cccccc"})
    tracker.finish("FINISHED")
    told = compare(["a", "spectrum"], store).notes
    assert "To compare these runs without labels, run `simclr eval spectrum --no-labels`." in told
    assert "Trained on labels: spectrum." in told


def test_a_run_that_was_not_evaluated_cannot_be_compared(store: Store) -> None:
    start_run(store, "tiny-s0", "pretrain", {}).finish("FINISHED")
    with pytest.raises(UserError, match="has not been evaluated: run `simclr eval"):
        compare(["tiny-s0"], store)


def test_curves_of_runs_are_drawn_with_their_points(trained: Store, tmp_path: Path) -> None:
    plotted = plot_metric("loss", ["t0.2-s0", "t0.5-s0"], trained, tmp_path / "curves", 0)
    files = plotted["files"]
    assert plotted["note"].startswith("The scale of the loss depends on loss.temperature, so")
    assert plot_metric("loss", ["t0.2-s0"], trained, tmp_path / "one", 0)["note"] is None
    assert plot_metric("top1", ["t0.2-s0", "t0.5-s0"], trained, tmp_path / "top1", 0)["note"] is None
    assert [path.suffix for path in files] == [".png", ".svg", ".csv"]
    points = pd.read_csv(files[2])
    curves = [trained.find(name).history("train/loss") for name in ("t0.2-s0", "t0.5-s0")]
    assert len(points) == sum(map(len, curves))
    assert (points["images"] == 256 * points["step"]).all()
    with pytest.raises(UserError, match=r"run t0.2-s0 \(\w+\) has no curve 'lss': did you mean 'loss'"):
        plot_metric("lss", ["t0.2-s0"], trained, tmp_path / "curves", 0)


def test_chance_levels_come_from_the_method(trained: Store) -> None:
    record = trained.find("t0.2-s0")
    assert chance_level("train/loss", record) == chance_loss(256)
    assert chance_level("train/contrastive_top5", record) == pytest.approx(5 / 511)
    assert chance_level("val/knn_top1", record) == float(record.tags["val_chance"])
    assert chance_level("val/knn_k54_top1", record) == float(record.tags["val_chance"])
    assert np.isnan(chance_level("perf/images_per_second", record))
    assert curve_label("val/knn_k54_top1", record) == "kNN (k = 54) accuracy on validation"
    assert curve_label("train/loss", record) == "NT-Xent loss"


def test_curves_of_losses_with_different_scales_say_on_what_these_depend(store: Store) -> None:
    def caveat(*params: dict[str, object]) -> str:
        records = [start_run(store, "r", "pretrain", {"train.batch_size": 64, **each}).record() for each in params]
        return loss_caveat("train/loss", records)

    assert caveat({"loss.temperature": 0.5, "optim.lr": 1}, {"loss.temperature": 0.5, "optim.lr": 2}) == ""
    of_batches = caveat({"loss.temperature": 0.5}, {"loss.temperature": 0.5, "train.batch_size": 128})
    assert "depends on train.batch_size, so" in of_batches
    assert of_batches.endswith("Each chance level has the colour of its curve.")
    byol = {"method": "byol", "byol.momentum": 0.9}
    assert caveat(byol, byol | {"byol.momentum": 0.99, "train.batch_size": 128}) == ""  # whose loss has one scale
    assert "depends on the method, so" in caveat(byol, {"loss.temperature": 0.5})


def test_a_method_of_a_newer_version_has_no_chance_level(store: Store) -> None:
    known = {"train.batch_size": 256, "loss.temperature": 0.5, "loss.newer": 1}
    record = start_run(store, "newer", "pretrain", known).record()
    assert chance_level("train/loss", record) == chance_loss(256)
    record = start_run(store, "newest", "pretrain", known | {"method": "telepathy"}).record()
    assert np.isnan(chance_level("train/loss", record))
    assert curve_label("train/loss", record) == "train/loss"
