"""Snapshots: which runs keep some, whether they fit on the disk, and accuracy against the epoch."""

from __future__ import annotations

from math import isnan
from pathlib import Path

import pandas as pd
import pytest

from experiments.runs import snapshots as module
from experiments.runs.encoders import encoder_of, load_subject
from experiments.runs.evaluate import FIGURES_FILE, evaluate_encoder
from experiments.runs.prepare import prepare
from experiments.runs.snapshots import check_space, evaluate_snapshots
from experiments.runs.train import train
from experiments.runs.use_of_test_set import TEST_TAG
from experiments.tracking.store import Store
from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate.protocol import make_protocol
from simclr.progress import Observer
from tests.helpers import tiny

KEEPING = {"epochs": 5, "keep_every": 2, "batch_size": 64}


def keeping(**train_settings: object) -> Config:
    return tiny(name="keeping", data={"limit": 256}, train=KEEPING | train_settings)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Store:
    store = Store(tmp_path_factory.mktemp("kept"))
    train(prepare(keeping(), home), store)
    return store


def test_what_is_kept_is_no_other_run_and_a_run_that_kept_none_says_so(kept: Store, home: Path) -> None:
    noted: list[str] = []
    observer = Observer()
    observer.note = noted.append  # type: ignore[method-assign]
    assert keeping(keep_every=0).key() == keeping().key()
    record = train(prepare(keeping(keep_every=1), home), kept, observer=observer)
    assert (record.id, noted) == (kept.find("keeping-s0").id, [])
    plain = train(prepare(keeping(keep_every=0, epochs=2).model_copy(update={"name": "plain"}), home), kept)
    asked = prepare(keeping(keep_every=1, epochs=2), home)
    assert train(asked, kept, observer=observer).id == plain.id
    assert noted == [f"run {plain.short_id} kept no snapshots: add --again to train one that does"]
    subject = load_subject(encoder_of(plain), asked.data, make_protocol([]), asked.device)
    with pytest.raises(UserError, match=r"kept no snapshots: to keep some, train it with --set train\.keep_every=1 "):
        evaluate_snapshots(plain, subject, kept, ["knn"])


def test_each_snapshot_is_evaluated_like_the_encoder_at_the_end(kept: Store, home: Path) -> None:
    record, data = kept.find("keeping-s0"), prepare(keeping(), home).data
    protocol = make_protocol(["knn.k=[5]"])
    found = encoder_of(record)
    subject = load_subject(found, data, protocol, prepare(keeping(), home).device)
    table = evaluate_snapshots(record, subject, kept, ["knn", "spectrum"])
    tags = {key for key in kept.find("keeping-s0").tags if key.startswith(TEST_TAG)}
    assert len(tags) == 3  # at the test images, one for each snapshot; spectrum needs none
    figures = table[table["metric"] == "knn_k5_top1"].set_index("epoch")
    assert list(figures.index) == [0, 2, 4, 5]
    report = evaluate_encoder(found, subject, kept, ["knn"]).table.set_index("metric").loc["knn_k5_top1"]
    assert {key for key in kept.find("keeping-s0").tags if key.startswith(TEST_TAG)} == tags  # the last was the same
    assert figures.loc[5, "value"] == report["trained"]
    assert figures.loc[0, "value"] == report["untrained"]
    assert (figures.loc[5, "low"], figures.loc[5, "protocol"]) == (report["low"], report["protocol"])
    history = kept.find("keeping-s0").history("snapshots/knn_k5_top1")
    per_epoch = int(record.tags["steps_per_epoch"])
    assert list(history["step"]) == [2 * per_epoch, 4 * per_epoch, 5 * per_epoch]
    assert list(history["value"]) == pytest.approx(list(figures["value"][1:]))
    written = pd.read_csv(record.artifact("snapshots.csv"))
    assert written["value"].tolist() == pytest.approx(table["value"].tolist(), nan_ok=True)
    assert record.artifact("snapshots.png").stat().st_size > 1000
    assert "snapshots" not in record.artifact(FIGURES_FILE).read_text()  # they are not figures of the encoder


def test_a_run_that_started_from_weights_has_their_figure_before_training() -> None:
    started = keeping().model_copy(update={"init": "weights.pt@0123456789abcdef"})
    assert module._before_training({"untrained": 0.1, "start": 0.6}, started) == 0.6
    assert isnan(module._before_training({"untrained": 0.1}, started))  # the weights are gone
    assert module._before_training({"untrained": 0.1}, keeping()) == 0.1


def test_snapshots_that_do_not_fit_on_the_disk_are_refused_before_training(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_space(keeping(), digits, tmp_path)
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    check_space(keeping(keep_every=0), digits, tmp_path)
    with pytest.raises(
        UserError, match=r"train.keep_every = 2 keeps 2 snapshots of the encoder, .* raise train.keep_every, or"
    ):
        check_space(keeping(), digits, tmp_path)
