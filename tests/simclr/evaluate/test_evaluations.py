from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from simclr.data.dataset import Dataset
from simclr.errors import RunFailed, UserError
from simclr.evaluate import evaluations as ev
from simclr.evaluate.subject import Outcome, fingerprint
from tests.helpers import subject_of

QUICK = ["linear.l2_values=3", "linear_sgd.epochs=1", "finetune.epochs=1", "finetune.min_steps=1", "finetune.seeds=1"]


@pytest.mark.parametrize("name", ev.EVALUATIONS)
def test_no_evaluation_changes_a_weight_a_buffer_or_the_mode(name: str, digits: Dataset) -> None:
    subject = subject_of(digits, QUICK)
    subject.model.train()
    before = fingerprint(subject.model)
    outcome = ev.evaluate(subject, name)
    assert fingerprint(subject.model) == before
    assert subject.model.training
    assert outcome.metrics
    assert all(0 <= v <= 1 for k, v in outcome.metrics.items() if k.endswith(("_top1", "_top5")))
    for metric, predicted in outcome.predictions.items():
        right = (predicted == subject.labels("test")).float().mean().item()
        assert outcome.metrics[metric] == pytest.approx(right, abs=1e-6)


def test_an_evaluation_that_touches_the_encoder_is_refused(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(digits)

    def careless(_: object) -> Outcome:
        subject.model.train()(torch.rand(8, 3, 8, 8))  # batch norm moves its statistics
        return Outcome({}, {})

    monkeypatch.setitem(ev.EVALUATIONS, "careless", ev.Evaluation(careless, False, ()))
    with pytest.raises(RunFailed, match="'careless' changed the frozen encoder"):
        ev.evaluate(subject, "careless")


def test_chance_is_the_share_of_the_commonest_classes(digits: Dataset) -> None:
    labels = digits.labels.copy()
    rows = digits.parts["test"]
    labels[rows] = 0
    labels[rows[:90]] = [i % 9 + 1 for i in range(90)]
    odds, images = ev.chance(subject_of(replace(digits, labels=labels)))
    assert images == len(rows)
    assert odds["top1"] == pytest.approx((len(rows) - 90) / len(rows))
    assert odds["top5"] == pytest.approx((len(rows) - 50) / len(rows))


def test_what_can_not_be_measured_is_said(digits: Dataset) -> None:
    bare = replace(digits, classes=(), parts=digits.parts | {"train": digits.parts["train"][:0]})
    ev.check(subject_of(bare), ["no-labels"])
    for name in ("knn", "linear", "linear-sgd", "finetune"):
        with pytest.raises(UserError, match=f"--{name} needs labels.*or ask for --no-labels"):
            ev.check(subject_of(bare), [name])
    with pytest.raises(UserError, match=r"unknown layer 'head\.9'"):
        ev.check(subject_of(digits, layer="head.9"), ["knn"])
