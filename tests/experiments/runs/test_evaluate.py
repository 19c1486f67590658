"""Tests of experiments/runs/evaluate.py."""

from __future__ import annotations

import json
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from experiments.runs import baselines, encoders, evaluate
from experiments.runs.encoders import FoundEncoder, encoder_of, open_subject
from experiments.runs.evaluate import FIGURES_FILE, REFERENCES, evaluate_encoder, matched, references
from experiments.runs.stock import stock_encoder
from experiments.runs.use_of_test_set import describe_uses
from experiments.tracking.store import Store
from experiments.tracking.writing import start_run
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.errors import BadSettings, UserError
from simclr.evaluate.base import Outcome
from simclr.evaluate.protocol import make_protocol
from simclr.evaluate.subject import Subject, random_encoder
from simclr.model import RESNETS, Network, WideResNet
from simclr.progress import Observer
from tests.experiments.studies.helpers import leave_out_pictures
from tests.helpers import subject_of

QUICK = ["linear.l2_values=3", "linear_sgd.epochs=1", "finetune.epochs=1", "finetune.min_steps=1", "finetune.seeds=1"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)


def report_of(
    store: Store, run: str, names: list[str], settings: list[str], layer: str = "h", **where: Any
) -> evaluate.Report:
    found = encoder_of(store.find(run))
    subject = open_subject(found, store, make_protocol([*QUICK, *settings], layer=layer), **where)
    return evaluate_encoder(found, subject, store, names, where.get("transfer"))


def test_a_metric_without_a_value_does_not_count(trained: Store) -> None:
    measured = report_of(trained, "t0.5-s0", ["spectrum"], []).table.set_index("metric")["trained"]
    assert measured.notna().all()
    again = report_of(trained, "t0.5-s0", ["spectrum"], ["spectrum.ranks=[5000,6000]"]).table
    unknown = again["metric"][again["trained"].isna()].tolist()  # there are no such ranks
    assert unknown
    record = trained.find("t0.5-s0")
    assert not record.protocols.keys() & set(unknown)
    assert set(again["metric"]) - set(unknown) <= record.protocols.keys()
    assert not any(np.isnan(record.metrics[f"eval/{name}"]) for name in record.protocols)  # which reports read
    report_of(trained, "t0.5-s0", ["spectrum"], [])
    assert set(unknown) <= trained.find("t0.5-s0").protocols.keys()


def test_an_interval_that_is_not_known_is_left_out(trained: Store) -> None:
    """All draws of few labels have the same accuracy, so their spread says nothing."""
    subject = open_subject(encoder_of(trained.find("t0.2-s0")), trained, make_protocol(QUICK))
    outcome = Outcome({"few_shot_1_top1": 1.0}, samples={"few_shot_1_top1": [1.0, 1.0, 1.0]})
    (row,) = evaluate._rows(subject, "few-shot", outcome, {}, nan)
    assert np.isnan([row["low"], row["high"]]).all()


def test_the_interval_of_a_mean_over_corruptions_is_that_of_the_images_own_means(trained: Store) -> None:
    subject = open_subject(encoder_of(trained.find("t0.2-s0")), trained, make_protocol(QUICK))
    images = len(subject.labels("test"))
    right = torch.tensor([0.7, 0.8] * images)[:images].double()  # all images are about as hard, so the mean is certain
    outcome = Outcome({"robustness_knn_top1": right.mean().item()}, right={"robustness_knn_top1": right})
    (row,) = evaluate._rows(subject, "robustness", outcome, {}, nan)
    half = 1.96 * 0.05 / images**0.5
    assert (row["low"], row["high"]) == pytest.approx((0.75 - half, 0.75 + half), abs=half / 3)


def test_every_figure_is_logged_with_protocol_baselines_and_interval(trained: Store) -> None:
    report = report_of(trained, "t0.2-s0", ["knn", "linear", "no-labels"], ["knn.k=[1,200]"])
    record = trained.find("t0.2-s0")
    kept = references(record)
    for row in report.table.itertuples():
        assert record.metrics[f"eval/{row.metric}"] == pytest.approx(row.trained)
        row_kept = [kept[row.metric].get(key, nan) for key in REFERENCES]
        assert row_kept == pytest.approx([getattr(row, key) for key in REFERENCES], nan_ok=True)
        assert record.protocols[row.metric] == row.protocol
    accuracies = report.table.set_index("metric").loc[["knn_top1", "knn_k1_top1", "linear_top1"]]
    assert (accuracies["low"] < accuracies["trained"]).all()
    assert (accuracies["trained"] < accuracies["high"]).all()
    assert accuracies[["pixels", "chance"]].notna().all().all()
    assert report.matched is not None
    assert matched(record) == report.matched
    unlabelled = report.table.set_index("metric").filter(like="contrastive", axis=0)
    assert (unlabelled["low"] < unlabelled["trained"]).all()
    assert (unlabelled["trained"] < unlabelled["high"]).all()
    assert unlabelled["chance"].notna().all()
    assert unlabelled["pixels"].isna().all()
    stored = json.loads(record.artifact("knn-protocol.json").read_text())
    assert stored == json.loads(json.dumps(report.protocol))
    assert stored["knn"]["k"] == [1, 200]
    assert stored["data"]["digest"] == record.tags["data_digest"]


def test_references_are_kept_in_one_file_that_grows_and_add_no_metrics(trained: Store) -> None:
    report_of(trained, "t0.5-s0", ["knn"], ["knn.k=[7]"])
    first = references(trained.find("t0.5-s0"))["knn_k7_top1"]
    report_of(trained, "t0.5-s0", ["knn"], ["knn.k=[9]"], layer="z")
    report_of(trained, "t0.5-s0", ["knn"], ["knn.k=[9]"], layer="z")
    record = trained.find("t0.5-s0")
    table = pd.read_csv(record.artifact(FIGURES_FILE))
    assert table["metric"].is_unique
    assert {"knn_k7_top1", "z/knn_k9_top1"} <= set(table["metric"])
    assert references(record)["knn_k7_top1"] == first
    assert not [name for name in record.metrics if name.startswith("ref/")]


def test_figures_on_validation_stand_beside_those_on_test_and_ignore_the_test_images(
    trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def knn(*settings: str) -> pd.DataFrame:
        return report_of(trained, "t0.2-s0", ["knn"], list(settings)).table

    on_test, before = knn(), trained.find("t0.2-s0")
    digest = before.tags["data_digest"]
    used = describe_uses(trained, digest)
    on_val = report_of(trained, "t0.2-s0", ["knn", "linear"], ["on=val"]).table
    record = trained.find("t0.2-s0")
    assert record.metrics["eval/knn_top1"] == before.metrics["eval/knn_top1"] == pytest.approx(on_test["trained"][0])
    for metric, value in on_val.set_index("metric")["trained"].items():
        assert record.metrics[f"eval/val/{metric}"] == pytest.approx(value)
        assert record.protocols[f"val/{metric}"] != record.protocols.get(metric)
    assert len(evaluate.predictions(record, "val/linear_top1")[1]) == 144  # of validation; there are 359 of test
    assert record.metrics["eval/val/linear_top1"] > 0.3
    assert describe_uses(trained, digest) == used  # validation doesn't count, and what is measured again counts once
    knn("knn.temperature=0.2")  # replaces a figure, but the test set was used twice
    assert describe_uses(trained, digest) != used
    small = ["transformations.images=60", "transformations.epochs=1"]
    used = describe_uses(trained, digest)
    report_of(trained, "t0.2-s0", ["transformations"], [*small, "on=val"])
    assert "val/transformation_turn" in trained.find("t0.2-s0").protocols
    assert describe_uses(trained, digest) == used
    report_of(trained, "t0.2-s0", ["transformations"], small)  # needs no labels, but test images
    assert describe_uses(trained, digest) != used
    build = encoders.build_model

    def scramble(config: Config, data: Dataset, device: torch.device) -> Network:
        data.images[data.parts["test"]] = 255 - data.images[data.parts["test"]]  # in memory
        return build(config, data, device)

    monkeypatch.setattr(encoders, "build_model", scramble)
    assert knn("on=val").equals(on_val[:1])
    assert not knn().equals(on_test)
    with pytest.raises(
        UserError, match="--no-labels never uses the test images, so --on has no effect on it: run it in a command of"
    ):
        report_of(trained, "t0.2-s0", ["no-labels"], ["on=val"])


def test_references_of_earlier_versions_are_read(store: Store) -> None:
    tracker = start_run(store, "old", "pretrain", {})
    tracker.log({"ref/low/h1/linear_top1": 0.25, "ref/high/h1/linear_top1": 0.5, "ref/pixels/h1/linear_top1": nan})
    assert references(tracker.record()) == {"h1/linear_top1": {"low": 0.25, "high": 0.5}}


def test_a_damaged_file_of_references_is_an_error_of_one_line(store: Store) -> None:
    tracker = start_run(store, "run", "pretrain", {})
    for damage in ("", "a,b\n1,2\n", "\0\0"):
        tracker.artifact(FIGURES_FILE, lambda path, damage=damage: path.write_text(damage))  # type: ignore[misc]
        with pytest.raises(UserError, match=r"evaluations\.csv is damaged: run `simclr eval"):
            references(tracker.record())
    row = dict.fromkeys(evaluate.REPORT_COLUMNS, 0.5) | {"metric": "knn_top1", "protocol": "3-a"}
    evaluate._keep_figures(tracker, pd.DataFrame([row]))  # an evaluation writes it anew
    assert references(tracker.record())["knn_top1"]["low"] == 0.5


@pytest.mark.parametrize("name", ["knn", "linear", "linear-sgd", "no-labels"])
def test_a_collapsed_encoder_has_no_figures(name: str, trained: Store) -> None:
    found = encoder_of(trained.find("t0.5-s0"))
    weights = {key: torch.zeros_like(value) for key, value in found.weights.items()} | {"std": torch.ones(1, 3, 1, 1)}
    collapsed, before = found._replace(weights=weights), trained.find("t0.5-s0").metrics
    subject = open_subject(collapsed, trained, make_protocol(QUICK))
    with pytest.raises(BadSettings, match="the encoder has collapsed"):
        evaluate_encoder(collapsed, subject, trained, [name])
    assert trained.find("t0.5-s0").metrics == before


@pytest.mark.parametrize("damage", ["", "[1]", '{"knn_top1": "x"}', "\0\0"])
def test_a_damaged_baseline_is_computed_again(damage: str, store: Store, digits: Dataset) -> None:
    said: list[str] = []
    observer = Observer()
    observer.say = said.append  # type: ignore[method-assign]
    subject = replace(subject_of(digits), observer=observer)
    expected = baselines.untrained_metrics(subject, "knn", store)
    (path,) = store.folder.rglob("cache/baselines/*.json")
    whole = path.read_text()
    path.write_text(damage)
    assert baselines.untrained_metrics(subject, "knn", store) == expected
    assert path.read_text() == whole
    assert baselines.untrained_metrics(subject, "knn", store) == expected
    assert len(said) == 1
    assert f"{path} is damaged" in said[0]


def test_an_untrained_network_with_other_statistics_or_other_filters_is_another_baseline(
    store: Store, digits: Dataset
) -> None:
    def cached(subject: Subject) -> int:
        """How many baselines there are, once that of the subject is one of them."""
        baselines.untrained_metrics(subject, "knn", store)
        return len(list(store.folder.rglob("cache/baselines/*.json")))

    subject = subject_of(digits)
    fewer = replace(digits, parts=digits.parts | {"pretrain": digits.parts["pretrain"][:70]})
    assert [cached(each) for each in (subject, replace(subject, data=fewer), subject)] == [1, 2, 2]
    whitened = subject_of(digits, model={"stem": "whitening"})
    assert cached(whitened) == 3
    filters = whitened.model.encoder.get_submodule("conv1").get_parameter("weight")
    with torch.no_grad():
        filters.mul_(2)
    assert cached(whitened) == 4


def test_a_stock_encoder_whose_stem_its_weights_do_not_show_is_a_warning(digits: Dataset, tmp_path: Path) -> None:
    path, noted = tmp_path / "theirs.pth", list[str]()
    observer = Observer()
    observer.note = lambda text, folder=None: noted.append(text)  # type: ignore[method-assign]
    for stem in ("imagenet", "cifar"):
        torch.save(WideResNet(*RESNETS["resnet10"], 0.125, stem).state_dict(), path)
        stock_encoder(str(path), replace(subject_of(digits), observer=observer))
    (warning,) = noted
    assert warning.startswith("warning: the weights fit the stem cifar, but also cifar_no_relu or cifar_pad2 or")
    assert f"`simclr import {path} --stem STEM`" in warning


def test_predictions_classes_and_confusion_matrix_agree_with_the_accuracy(
    trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # this evaluation has its picture
    report = report_of(trained, "t0.2-s0", ["linear"], [])
    value = report.table.set_index("metric").loc["linear_top1", "trained"]
    record = trained.get(report.run_id)
    predicted, labels = evaluate.predictions(record, "linear_top1")
    assert (predicted == labels).mean() == pytest.approx(value)
    by_class = pd.read_csv(record.artifact("linear_top1-classes.csv"))
    assert (by_class["accuracy"] * by_class["images"]).sum() / by_class["images"].sum() == pytest.approx(value)
    assert record.artifact("linear_top1-confusion.png").stat().st_size > 0


def test_damaged_predictions_are_an_error_of_one_line(trained: Store) -> None:
    report = report_of(trained, "t0.5-s0", ["knn"], ["knn.k=[3]"])
    record = trained.get(report.run_id)
    path = record.artifact("knn_k3_top1-predictions.npz")
    whole = path.read_bytes()
    path.write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=f"is damaged: run `simclr eval {record.name}` again"):
        evaluate.predictions(record, "knn_k3_top1")
    path.write_bytes(whole)  # other tests compare these runs


def test_figures_are_reproducible_and_baselines_computed_once(trained: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = report_of(trained, "t0.2-s0", ["knn", "finetune"], ["finetune.fractions=[0.1]"])
    monkeypatch.setattr(baselines, "random_encoder", lambda *_: pytest.fail("computed again"))
    second = report_of(trained, "t0.2-s0", ["knn", "finetune"], ["finetune.fractions=[0.1]"])
    pd.testing.assert_frame_equal(first.table, second.table)
    # The other run has the same untrained network, which does not depend on the temperature.
    other = report_of(trained, "t0.5-s0", ["knn"], [])
    assert other.table["untrained"].tolist() == first.table["untrained"].tolist()[:1]
    for change in ("knn.temperature=0.3", "knn.k=[1,7]"):
        with pytest.raises(pytest.fail.Exception):
            report_of(trained, "t0.2-s0", ["knn"], [change])


def test_other_data_sets_and_layers_have_names_of_their_own(trained: Store) -> None:
    shown = report_of(trained, "t0.5-s0", ["knn"], ["knn.k=[20]"], layer="z")
    assert shown.table["metric"].tolist() == ["knn_k20_top1"]
    images = trained.folder / "own"
    for label in ("a", "b"):
        (images / label).mkdir(parents=True)
        for n in range(30):
            pixels = np.random.default_rng(n).integers(0, 255, (12, 9, 3), dtype=np.uint8)
            pixels[..., 0] = 0 if label == "a" else 255
            Image.fromarray(pixels).save(images / label / f"{n}.png")
    settings = ["knn.k=[5]", "finetune.fractions=[1.0]"]
    report = report_of(trained, "t0.5-s0", ["knn", "finetune"], settings, transfer=str(images))
    assert report.protocol["data"]["side"] == 16
    metrics = trained.find("t0.5-s0").metrics
    elsewhere = f"eval/folder-{report.protocol['data']['digest'][:8]}"  # another folder has another name
    assert {"eval/z/knn_k20_top1", f"{elsewhere}/knn_k5_top1", f"{elsewhere}/finetune_100pct_top1"} <= set(metrics)
    assert metrics[f"{elsewhere}/knn_k5_top1"] > 0.8
    run = trained.find("t0.5-s0")
    assert evaluate.other_images(run, f"{elsewhere.removeprefix('eval/')}/knn_k5_top1") == "own"
    assert evaluate.other_images(run, "folder-0123/knn_k5_top1") == "images 0123"  # recorded by an earlier version
    assert evaluate.other_images(run, "z/knn_k20_top1") is None


def test_an_encoder_no_better_than_an_untrained_one_gives_a_warning(digits: Dataset, store: Store) -> None:
    subject = subject_of(digits)
    subject = replace(subject, model=random_encoder(subject))
    found = FoundEncoder(subject.config, subject.model.state_dict(), digits.digest, Path(), None)
    report = evaluate_encoder(found, subject, store, ["knn"])
    warning, *_ = report.warnings
    assert warning == "no clear gain over the untrained network in knn_top1: train for longer, or on more images"
    assert store.get(report.run_id).kind == "eval"


def test_an_encoder_above_the_untrained_one_gives_none() -> None:
    row = {"metric": "knn_top1", "trained": 0.6, "low": 0.55, "untrained": 0.5, "start": np.nan, "chance": 0.1}
    table = pd.DataFrame([row | {"pixels": 0.5}])
    assert evaluate._warnings(table, 100) == []
    assert len(evaluate._warnings(table.assign(low=0.5), 100)) == 1
    assert evaluate._warnings(table.assign(low=0.5), 10) == [  # longer training is no remedy for that
        "no clear gain over the untrained network in knn_top1, but 10 test images are too few to tell: label more"
    ]
    assert evaluate._warnings(table.assign(low=0.09, pixels=0.7), 100) == [
        "no better than chance in knn_top1: train for longer, or on more images, or check that the images show what "
        "the labels mean"
    ]
    matches = table.assign(low=0.5, metric="contrastive_h_top1")
    assert evaluate._warnings(matches, 0)[0].endswith("train for longer, or on more images")
    (warning,) = evaluate._warnings(table.assign(pixels=0.7), 100)
    assert warning.startswith("worse than kNN on the raw pixels in knn_top1: train for longer")
    (warning,) = evaluate._warnings(table.assign(start=0.55), 100)
    assert warning.startswith("no clear gain over the weights that it started from in knn_top1: train for longer")


def test_labels_are_needed(digits: Dataset, store: Store) -> None:
    one_class = replace(digits, classes=("only",))
    for bad in (one_class, replace(digits, parts=digits.parts | {"test": digits.parts["test"][:0]})):
        subject = subject_of(bad)
        found = FoundEncoder(subject.config, {}, digits.digest, Path(), None)
        with pytest.raises(UserError, match="--linear needs labels"):
            evaluate_encoder(found, subject, store, ["linear"])
