"""What holds for every evaluation: it leaves the encoder as it was, and says what it needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr.data.dataset import Dataset
from simclr.errors import RunFailed, UserError
from simclr.evaluate.base import Outcome
from simclr.evaluate.evaluations import EVALUATIONS, check, evaluate
from simclr.evaluate.knn import Knn
from simclr.evaluate.subject import Subject, model_fingerprint, random_encoder
from tests.helpers import subject_of

QUICK = [
    *("linear.l2_values=3", "linear_sgd.epochs=1", "finetune.epochs=1", "finetune.min_steps=1"),
    *("finetune.seeds=1", "finetune.lr=[0.1]", "finetune.fractions=[0.1]", "few_shot.draws=3", "lidar.views=2"),
    *("robustness.images=50", "lidar.images=50", "transformations.images=100", "transformations.epochs=1"),
]


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_leave_the_encoder_as_it_was(name: str, digits: Dataset) -> None:
    subject = subject_of(digits, QUICK)
    subject.model.train()
    before = model_fingerprint(subject.model)
    outcome = evaluate(subject, name)
    assert model_fingerprint(subject.model) == before
    assert subject.model.training
    assert outcome.metrics
    assert all(0 <= v <= 1 for k, v in outcome.metrics.items() if k.endswith(("_top1", "_top5")))
    for metric, predicted in outcome.predictions.items():
        right = (predicted == subject.labels("test")).float().mean().item()
        assert outcome.metrics[metric] == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_network_gets_images_of_the_size_of_its_views(name: str, digits: Dataset) -> None:
    subject = subject_of(digits, QUICK, augment={"crop": {"size": 12}})
    sides = set()
    subject.model.encoder.register_forward_pre_hook(lambda _, given: sides.update(given[0].shape[2:]))
    random_encoder(subject)
    evaluate(subject, name)
    assert digits.side != 12
    assert sides == {12}


def test_an_evaluation_that_changes_the_encoder_fails(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(_: Knn, subject: Subject) -> Outcome:
        subject.model.train()(torch.rand(8, 3, 8, 8))  # batch norm updates its statistics
        return Outcome({})

    monkeypatch.setattr(Knn, "run", careless)
    with pytest.raises(RunFailed, match="'knn' changed the frozen encoder"):
        evaluate(subject_of(digits), "knn")


def test_what_can_not_be_measured_is_named(digits: Dataset) -> None:
    bare = replace(digits, classes=(), parts=digits.parts | {"train": digits.parts["train"][:0]})
    check(subject_of(bare), ["no-labels"])
    for name in (each for each, row in EVALUATIONS.items() if row.needs_labels):
        with pytest.raises(UserError, match=f"--{name} needs labels.*Use --no-labels, or "):
            check(subject_of(bare), ["no-labels", name])
    with pytest.raises(UserError, match=r"unknown layer 'head\.9'"):
        check(subject_of(digits, layer="head.9"), ["knn"])
    check(subject_of(digits, ["crops.count=2"]), ["knn", "linear"])
    for name in ("linear-sgd", "finetune", "robustness", "no-labels"):
        with pytest.raises(UserError, match=f"--{name} can't average over crops: use --knn or --linear"):
            check(subject_of(digits, ["crops.count=2"]), ["knn", name])
    for name in ("no-labels", "spectrum", "lidar"):
        with pytest.raises(UserError, match=f"--{name} always evaluates h and z: leave out --layer z"):
            check(subject_of(digits, layer="z"), [name])
    check(subject_of(digits, ["features=whitened"]), ["knn", "linear", "few-shot", "retrieval", "robustness"])
    for name in ("linear-sgd", "finetune", "no-labels", "spectrum", "lidar"):
        with pytest.raises(UserError, match=f"features = whitened has no effect on --{name}, only on --knn"):
            check(subject_of(digits, ["features=whitened"]), [name])
    twice = ["features=standardised", "robustness.classifier=linear"]
    check(subject_of(digits, twice), ["knn"])
    check(subject_of(digits, [*twice, "linear.standardise=false"]), ["linear", "robustness"])
    for name in ("linear", "robustness"):
        with pytest.raises(
            UserError, match="has no effect on the linear classifier, which standardises features itself"
        ):
            check(subject_of(digits, twice), [name])


def test_without_validation_images_nothing_can_be_chosen_on_them(digits: Dataset) -> None:
    parts = digits.parts | {"train": np.concatenate([digits.parts["train"], digits.parts["val"]])}
    whole = replace(digits, parts=parts | {"val": digits.parts["val"][:0]})
    several = ["linear_sgd.lr=[0.1,0.2]", "robustness.classifier=linear"]
    for name in ("linear", "linear-sgd", "robustness"):
        with pytest.raises(UserError, match=f"--{name} chooses .* on validation images, but .*Use --knn"):
            check(subject_of(whole, several), ["knn", name])
    fixed = ["linear.l2_values=1", "linear.l2_max=1", "robustness.classifier=linear", "linear_sgd.epochs=1"]
    check(subject_of(whole, fixed), ["knn", "linear", "linear-sgd", "robustness"])
    assert evaluate(subject_of(whole, fixed), "linear-sgd").metrics["linear_sgd_lr"] == 0.1
    for name in ("knn", "linear"):  # both use train and validation images together, so nothing changes
        assert evaluate(subject_of(whole, fixed), name).metrics == pytest.approx(
            evaluate(subject_of(digits, fixed), name).metrics, abs=0.01
        )
    untested = replace(whole, parts=whole.parts | {"test": whole.parts["val"]})
    with pytest.raises(
        UserError, match=r"0 val, 0 test\. Use --no-labels, or add a folder of test images, or train with"
    ):
        check(subject_of(untested), ["knn"])
