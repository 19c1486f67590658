"""The page of a run, made from the records of a run that the previous version trained."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest

from experiments.runs.report import report
from experiments.tracking.store import Store
from experiments.tracking.writing import Tracker, start_run
from tests.experiments.studies.helpers import write_previous_study


def test_a_run_is_reported_next_to_its_baselines(store: Store, tmp_path: Path) -> None:
    write_previous_study(store)
    run = store.find_reported("elsewhere-s0")
    text, notes = report(run, store, out=tmp_path)
    assert "66.02 (" in text
    assert notes == [f"report: {run.artifact('report.html')}"]
    page = (tmp_path / "report.html").read_text()
    assert "A linear classifier on the encoder&#39;s features classifies 66.0 % of the test images correctly" in page
    assert "an untrained network gives" in page
    assert f"/runs/{run.id}?workflowType" in page
    assert "<svg" in (tmp_path / "train-loss.svg").read_text()
    assert "linear_l2" not in page.split("Protocols")[0]

    Tracker(store, run.id).artifact(
        "linear_top1-classes.csv", lambda path: path.write_text("class\n" + "\n".join(f"c{i}" for i in range(10)))
    )
    for step in (1, 2):  # snapshots that were evaluated on validation, with few images
        Tracker(store, run.id).log({"snapshots/val/knn_k9_top1": 0.3 * step}, step)
    Tracker(store, run.id).flush()
    report(store.get(run.id), store, out=tmp_path)
    assert "<svg" in (tmp_path / "snapshots-val-knn_k9_top1.svg").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "of 359 test images correctly" in page
    assert "Most often confused" in page

    Tracker(store, run.id).artifact(  # with so many classes each has fewer than five of the images
        "linear_top1-classes.csv", lambda path: path.write_text("class\n" + "\n".join(f"c{i}" for i in range(100)))
    )
    text, _ = report(store.get(run.id), store, "latex", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Most often confused" not in page
    assert "359 test images are too few to say which classes" in page
    assert r"\caption{Results of elsewhere-s0 (method simclr), trained for 1 epoch on digits. " in text
    assert r"and of chance. The 95 \% intervals are Clopper and Pearson's, over the images." in text
    assert r"\label{tab:elsewhere-s0}" in text
    assert r"\begin{tabular}{llrrr}" in text


def test_a_run_that_was_trained_on_labels_says_so_in_every_form(store: Store, tmp_path: Path) -> None:
    settings = {"train.epochs": 3, "train.batch_size": 8, "method": "supcon"}
    tracker = start_run(store, "new-s0", "pretrain", settings, {"seed": "0"})
    tracker.log({"eval/knn_k9_top1": 0.5})
    tracker.tag_protocols({"knn_k9_top1": "3-aaaaaa"})
    tracker.finish("FINISHED")
    for form in ("terminal", "markdown", "csv"):
        assert "The method supcon trains on labels." in report(tracker.record(), store, form)[1]
    assert "The method supcon trains on labels." in json.loads(report(tracker.record(), store, "json")[0])["notes"]
    text, _ = report(tracker.record(), store, "latex", tmp_path)
    assert "Results of new-s0 (method supcon, trained on labels), trained for 3 epochs" in text
    page = (tmp_path / "report.html").read_text()
    assert "method supcon" in page
    assert "trained on labels" in page


def test_the_figures_of_a_run_are_numbers_in_csv_and_json(store: Store) -> None:
    write_previous_study(store)
    run = store.find_reported("elsewhere-s0")
    rows = pd.read_csv(io.StringIO(report(run, store, "csv")[0]))
    assert rows["metric"].tolist()[0].startswith("linear")
    assert rows["trained"].dtype == rows["chance"].dtype == float
    text, notes = report(run, store, "json")
    found = json.loads(text)
    assert (len(found["rows"]), found["files"], notes) == (len(rows), [str(run.artifact("report.html"))], [])


def test_the_page_of_images_without_labels_says_nothing_of_a_test_set_or_of_accuracy(
    store: Store, tmp_path: Path
) -> None:
    settings = {"train.epochs": 3, "train.batch_size": 8, "data.dataset": "folder"}
    tracker = start_run(store, "photos-s0", "pretrain", settings, {"seed": "0", "data_digest": "abc"})
    tracker.dataset("photos", "abc", "/photos", {"pretrain": 40, "test": 0})
    matches = {"eval/": 0.9, "ref/low/": 0.8, "ref/untrained/": 0.1, "ref/chance/": 1 / 15}
    tracker.log({f"{before}contrastive_h_top1": value for before, value in matches.items()})
    tracker.tag_protocols({"contrastive_h_top1": "3-aaaaaa"})
    tracker.tag({"matched": "32/40"})
    tracker.finish("FINISHED")
    report(tracker.record(), store, out=tmp_path)
    page = (tmp_path / "report.html").read_text()
    images = "the images (32 of 40 were used, in whole batches)"
    assert f"For 90.0 % of {images}, the encoder finds the other view of the same image" in page
    assert "among 15 views of 8 images" in page
    assert "clearly better at this than the untrained network" in page
    for wrong in ("test set", "Pixels (kNN)", "`"):
        assert wrong not in page.partition("How to read the table")[0].partition("<body>")[2]


@pytest.mark.parametrize(
    ("status", "finding"), [("FINISHED", "not evaluated yet"), ("KILLED", "This run was stopped before it finished.")]
)
def test_a_run_without_figures_has_a_page(status: str, finding: str, store: Store, tmp_path: Path) -> None:
    tracker = start_run(
        store, "new-s0", "pretrain", {"train.epochs": 3, "train.batch_size": 8}, {"error": "no space", "seed": "0"}
    )
    tracker.finish(status)
    for form in ("terminal", "markdown", "latex"):
        text, (said, _) = report(tracker.record(), store, form, tmp_path)
        assert text == ""
        assert finding in said
    assert report(tracker.record(), store, "csv")[0].startswith("metric,")  # which other programs can load
    assert finding in json.loads(report(tracker.record(), store, "json")[0])["notes"][0]
    assert finding in (tmp_path / "report.html").read_text()
