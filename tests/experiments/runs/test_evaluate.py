from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments.runs import compare as comparison
from experiments.runs import encoders, evaluate, pictures, train
from experiments.tracking import Store
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate.protocol import make_protocol
from simclr.evaluate.subject import random_encoder
from simclr.train.loop import Interrupted
from tests.helpers import subject_of, tiny

QUICK = ["linear.l2_values=3", "linear_sgd.epochs=1", "finetune.epochs=1", "finetune.min_steps=1", "finetune.seeds=1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two runs that differ in temperature."""
    store = Store(tmp_path_factory.mktemp("store"))
    for temperature in (0.2, 0.5):
        name = f"t{temperature}"
        train.train(tiny(name=name, loss={"temperature": temperature}, train={"epochs": 1}), store)
    return store


def judge(store: Store, run: str, names: list[str], settings: list[str], **where: str) -> evaluate.Report:
    found = encoders.find(run, store)
    layer = where.pop("layer", "h")
    subject = encoders.place(found, store, make_protocol([*QUICK, *settings], layer=layer), **where)  # type: ignore[arg-type]
    return evaluate.evaluate_encoder(found, subject, store, names, where.get("transfer"))


def test_every_figure_is_logged_with_its_protocol_baselines_and_interval(store: Store) -> None:
    report = judge(store, "t0.2-s0", ["knn", "linear", "no-labels"], ["knn.k=[1,200]"])
    run = store.find("t0.2-s0")
    for row in report.table.itertuples():
        assert run.data.metrics[f"eval/{row.metric}"] == pytest.approx(row.trained)
        assert run.data.metrics[f"ref/untrained/{row.metric}"] == pytest.approx(row.untrained)
        assert run.data.tags[f"protocol/eval/{row.metric}"] == row.protocol
    accuracies = report.table.set_index("metric").loc[["knn_top1", "knn_k1_top1", "linear_top1"]]
    assert (accuracies["low"] < accuracies["trained"]).all()
    assert (accuracies["trained"] < accuracies["high"]).all()
    assert accuracies[["pixels", "chance"]].notna().all().all()
    unlabelled = report.table.set_index("metric").filter(like="contrastive", axis=0)
    assert (unlabelled["low"] < unlabelled["trained"]).all()
    assert (unlabelled["trained"] < unlabelled["high"]).all()
    assert unlabelled["chance"].notna().all()
    assert unlabelled["pixels"].isna().all()
    stored = json.loads(store.artifact(run.info.run_id, "knn-protocol.json").read_text())
    assert stored == json.loads(json.dumps(report.protocol))
    assert stored["knn"]["k"] == [1, 200]
    assert stored["data"]["digest"] == run.data.tags["data_digest"]


def test_predictions_classes_and_confusion_agree_with_the_accuracy(store: Store) -> None:
    report = judge(store, "t0.2-s0", ["linear"], [])
    value = report.table.set_index("metric").loc["linear_top1", "trained"]
    with np.load(store.artifact(report.run_id, "linear_top1-predictions.npz")) as arrays:
        assert (arrays["predicted"] == arrays["labels"]).mean() == pytest.approx(value)
    by_class = pd.read_csv(store.artifact(report.run_id, "linear_top1-classes.csv"))
    assert (by_class["accuracy"] * by_class["images"]).sum() / by_class["images"].sum() == pytest.approx(value)
    assert store.artifact(report.run_id, "linear_top1-confusion.png").stat().st_size > 0


def test_the_same_twice_and_baselines_are_computed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = judge(store, "t0.2-s0", ["knn", "finetune"], ["finetune.fractions=[0.1]"])
    monkeypatch.setattr(evaluate, "random_encoder", lambda *_: pytest.fail("computed again"))
    second = judge(store, "t0.2-s0", ["knn", "finetune"], ["finetune.fractions=[0.1]"])
    pd.testing.assert_frame_equal(first.table, second.table)
    # The other run has the same untrained network: temperature is no part of it.
    other = judge(store, "t0.5-s0", ["knn"], [])
    assert other.table["untrained"].tolist() == first.table["untrained"].tolist()[:1]


def test_a_changed_protocol_asks_for_a_new_baseline(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    judge(store, "t0.2-s0", ["knn"], [])
    monkeypatch.setattr(evaluate, "random_encoder", lambda *_: pytest.fail("computed again"))
    for change in ("knn.temperature=0.3", "knn.k=[1,7]"):
        with pytest.raises(pytest.fail.Exception):
            judge(store, "t0.2-s0", ["knn"], [change])


def test_transfer_and_other_layers_are_kept_apart_by_name(store: Store) -> None:
    shown = judge(store, "t0.5-s0", ["knn"], ["knn.k=[20]"], layer="z")
    assert shown.table["metric"].tolist() == ["knn_k20_top1"]
    images = store.folder / "own"
    for label in ("a", "b"):
        (images / label).mkdir(parents=True)
        for n in range(30):
            pixels = np.random.default_rng(n).integers(0, 255, (12, 9, 3), dtype=np.uint8)
            pixels[..., 0] = 0 if label == "a" else 255
            Image.fromarray(pixels).save(images / label / f"{n}.png")
    report = judge(
        store, "t0.5-s0", ["knn", "finetune"], ["knn.k=[5]", "finetune.fractions=[1.0]"], transfer=str(images)
    )
    assert report.protocol["data"]["side"] == 16
    metrics = store.find("t0.5-s0").data.metrics
    elsewhere = f"eval/folder-{report.protocol['data']['digest'][:8]}"  # another folder has another name
    assert {"eval/z/knn_k20_top1", f"{elsewhere}/knn_k5_top1", f"{elsewhere}/finetune_100pct_top1"} <= set(metrics)
    assert metrics[f"{elsewhere}/knn_k5_top1"] > 0.8
    with pytest.raises(
        UserError, match=r"unknown data set \(and no folder of that name\) 'digit'.*did you mean 'digits'"
    ):
        judge(store, "t0.5-s0", ["knn"], [], transfer="digit")


def test_an_encoder_no_better_than_an_untrained_one_is_named(digits: Dataset, tmp_path: Path) -> None:
    subject = subject_of(digits)
    subject = replace(subject, model=random_encoder(subject))
    found = encoders.Found(subject.config, subject.model.state_dict(), digits.digest, tmp_path, None)
    store = Store(tmp_path / "store")
    report = evaluate.evaluate_encoder(found, subject, store, ["knn"])
    (warning,) = report.warnings
    assert warning.startswith("not above the untrained network by more than the interval: knn_top1 (")
    assert store.client.get_run(report.run_id).data.tags["kind"] == "eval"


def test_an_encoder_above_the_untrained_one_is_not_warned_of() -> None:
    table = pd.DataFrame({"metric": ["knn_top1"], "trained": [0.6], "low": [0.55], "untrained": [0.5], "chance": [0.1]})
    assert evaluate._doubts(table) == []
    assert len(evaluate._doubts(table.assign(low=0.5))) == 1


def test_labels_missing_one_class_and_deleted_weights_are_one_line(digits: Dataset, tmp_path: Path) -> None:
    store = Store(tmp_path)
    one_class = replace(digits, classes=("only",))
    for bad in (one_class, replace(digits, parts=digits.parts | {"test": digits.parts["test"][:0]})):
        subject = subject_of(bad)
        found = encoders.Found(subject.config, {}, digits.digest, tmp_path, None)
        with pytest.raises(UserError, match="--linear needs labels"):
            evaluate.evaluate_encoder(found, subject, store, ["linear"])
    train.train(tiny(train={"epochs": 1}), store)
    run = store.find(None)
    store.artifact(run.info.run_id, "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no artifact 'model\.safetensors': it was deleted"):
        encoders.find(None, store)


def test_a_run_that_did_not_finish_has_nothing_to_judge(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Interrupted):
        train.train(tiny(train={"epochs": 1}), store, stop=lambda: True)
    for name in ("tiny-s0", None):
        with pytest.raises(UserError, match=r"run tiny-s0 \(\w{8}\) has not finished .* goes on with --resume$"):
            encoders.find(name, store)


def test_a_figure_over_seeds_has_an_interval_of_its_own(store: Store) -> None:
    quick = ["finetune.fractions=[0.1]", "finetune.lr=[0.05]", "finetune.epochs=1", "finetune.min_steps=2"]
    judge(store, "t0.2-s0", ["finetune"], [*quick, "finetune.seeds=1"])
    name = "finetune_10pct_top1"
    one = comparison.compare(["t0.2-s0"], store).table.set_index("run")["t0.2-s0"][name]
    judge(store, "t0.2-s0", ["finetune"], [*quick, "finetune.seeds=2"])
    both = comparison.compare(["t0.2-s0"], store).table.set_index("run")["t0.2-s0"][name]
    spans = [[float(word) for word in re.findall(r"[\d.]+", text)] for text in (one, both)]
    for mean, low, high in spans:
        assert low < mean < high
    assert spans[0][1:] != spans[1][1:]


def test_compare_shows_what_differs_and_tests_each_pair_by_mcnemar(store: Store) -> None:
    for run in ("t0.2-s0", "t0.5-s0"):
        judge(store, run, ["knn"], [])
    result = comparison.compare(["t0.2-s0", "t0.5-s0", "t0.2-s0"], store)
    assert list(result.table.columns) == ["run", "t0.2-s0", "t0.5-s0"]
    rows = result.table.set_index("run")
    assert rows.loc["loss.temperature"].tolist() == ["0.2", "0.5"]
    assert "kNN top-1" in rows.index
    assert "optim.lr" not in rows.index
    test = result.tests.set_index("metric").loc["kNN top-1"]
    arrays = []
    for run in ("t0.2-s0", "t0.5-s0"):
        with np.load(store.artifact(store.find(run).info.run_id, "knn_top1-predictions.npz")) as file:
            arrays.append(file["predicted"] == file["labels"])
    assert test["only A right"] == (arrays[0] & ~arrays[1]).sum()
    assert test["only B right"] == (arrays[1] & ~arrays[0]).sum()


def test_figures_of_two_protocols_have_two_columns_and_no_test(store: Store) -> None:
    judge(store, "t0.2-s0", ["linear"], [])
    judge(store, "t0.5-s0", ["linear"], ["linear.standardise=false"])
    result = comparison.compare(["t0.2-s0", "t0.5-s0"], store)
    names = [name for name in result.table["run"] if name.startswith("linear top-1")]
    assert len(names) == 2
    assert "linear top-1" not in result.tests["metric"].tolist()


def test_a_run_that_was_not_evaluated_can_not_be_compared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    train.train(tiny(train={"epochs": 1}), store)
    with pytest.raises(UserError, match="has not been evaluated: simclr eval"):
        comparison.compare(["tiny-s0"], store)


def test_the_map_of_a_part_has_a_point_for_each_image_and_is_the_same_twice(digits: Dataset, tmp_path: Path) -> None:
    subject = subject_of(digits)
    draw = {"part": "test", "images": 120, "perplexity": 10.0, "seed": 0}
    note, _ = pictures.tsne(subject, tmp_path / "a", thumbnails=True, **draw)  # type: ignore[arg-type]
    assert "120 test images of digits, h" in note
    assert "on the map" in note
    table = pd.read_csv(tmp_path / "a.csv")
    assert len(table) == 120
    assert set(table["row"]) <= set(digits.parts["test"])
    assert table["class"].nunique() == 10
    pictures.tsne(subject, tmp_path / "b", thumbnails=True, **draw)  # type: ignore[arg-type]
    for suffix in (".csv", ".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with pytest.raises(UserError, match="perplexity 500 with 120 images"):
        pictures.tsne(subject, tmp_path / "a", thumbnails=False, **(draw | {"perplexity": 500.0}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown part 'tests'"):
        pictures.tsne(subject, tmp_path / "a", thumbnails=False, **(draw | {"part": "tests"}))  # type: ignore[arg-type]
