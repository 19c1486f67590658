"""Identities of figures, and errors in settings of the protocol."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate.evaluations import EVALUATIONS
from simclr.evaluate.protocol import Protocol, describe, evaluated_on, identity, make_protocol
from simclr.evaluate.subject import Subject
from tests.helpers import subject_of


def identity_of(subject: Subject, name: str = "knn") -> str:
    return identity(name, subject.protocol, subject.config, subject.data, subject.device)


# Stored in records and documents, so they must never change, unless a figure gets another meaning.
STORED = [
    ("knn", [], {}, "3-6eb1a2"),
    ("linear", [], {}, "3-5eb73d"),
    ("linear-sgd", [], {}, "3-aa317f"),
    ("finetune", [], {}, "3-71506d"),
    ("no-labels", [], {}, "3-e1929b"),
    ("knn", ["knn.k=[1,20]"], {}, "3-6eb1a2"),
    ("knn", ["knn.temperature=0.2"], {}, "3-d7e29f"),
    ("knn", ["layer=z"], {}, "3-ccbc2a"),
    ("knn", [], {"augment": {"crop": {"size": 24}}}, "3-19abb4"),
    ("linear", ["linear.l2_values=3", "linear.standardise=false"], {}, "3-90b097"),
    ("linear-sgd", ["linear_sgd.head=mlp"], {"train": {"precision": "bf16"}}, "3-2adbd2"),
    ("finetune", ["finetune.fractions=[0.5]", "finetune.lr=[0.1]"], {}, "3-e153d1"),
    ("no-labels", ["views.images=100"], {"train": {"batch_size": 64}}, "3-1152e6"),
    ("no-labels", [], {"augment": {"blur": {"p": 0.0}}}, "3-e1929b"),  # blur is off by default
]


@pytest.fixture(scope="module")
def stored() -> Dataset:
    bounds = {"pretrain": (0, 40), "train": (0, 40), "val": (40, 50), "test": (50, 60)}
    return Dataset(
        name="stored",
        images=np.zeros((60, 3, 8, 8), np.uint8),
        labels=np.arange(60, dtype=np.int64) % 3,
        classes=("a", "b", "c"),
        parts={part: np.arange(*ends, dtype=np.int64) for part, ends in bounds.items()},
        digest="0123",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


@pytest.mark.parametrize(("name", "settings", "sections", "expected"), STORED)
def test_identities_are_those_of_earlier_releases(
    name: str, settings: list[str], sections: dict[str, object], expected: str, stored: Dataset
) -> None:
    assert identity_of(subject_of(stored, settings, **sections), name) == expected


def test_description_has_every_setting_and_the_images(stored: Dataset) -> None:
    described = describe(make_protocol(["knn.k=[1]"]), stored)
    assert list(described) == [
        *("version", "layer", "on", "features", "knn", "linear", "linear_sgd", "finetune", "few_shot", "retrieval"),
        *("robustness", "views", "spectrum", "lidar", "transformations", "data", "images"),
    ]
    assert described["knn"] == {"k": [1], "temperature": 0.1, "distance": "cosine"}
    assert [name for name, table in described.items() if "distance" in str(table)] == ["knn"]
    sizes = {"train": 40, "val": 10, "test": 10}
    assert described["data"] == {"name": "stored", "digest": "0123", "side": 8, "split": "197708ec3c85fabd"} | sizes


def test_on_validation_the_test_images_are_not_touched(stored: Dataset) -> None:
    judged, before = evaluated_on(stored, "val"), stored.parts
    assert evaluated_on(stored, "test") is stored
    assert np.array_equal(judged.parts["test"], before["val"])
    assert np.array_equal(np.union1d(judged.parts["train"], judged.parts["val"]), before["train"])
    assert not np.intersect1d(judged.parts["train"], judged.parts["val"]).size
    assert np.bincount(stored.labels[judged.parts["val"]]).tolist() == [2, 2, 2]  # a fifth of 14, 13 and 13
    described = describe(make_protocol(["on=val"]), judged)["data"]
    assert {name: described[name] for name in ("train", "held out of train", "val")} == {
        "train": 34,
        "held out of train": 6,
        "val": 10,
    }
    assert "test" not in described
    on_test = subject_of(stored)
    assert identity_of(on_test) != identity_of(replace(on_test, data=judged, protocol=make_protocol(["on=val"])))
    with pytest.raises(UserError, match="there are no validation images to evaluate on: train with"):
        evaluated_on(replace(stored, parts=before | {"val": before["val"][:0]}), "val")


def test_on_validation_images_that_stay_together_are_held_out_together(stored: Dataset) -> None:
    units = np.arange(60) // 4
    parts = evaluated_on(replace(stored, units=units), "val").parts
    assert len(parts["val"]) == 8  # a fifth of 40
    assert not np.intersect1d(units[parts["train"]], units[parts["val"]]).size
    assert np.array_equal(np.union1d(parts["train"], parts["val"]), stored.parts["train"])
    with pytest.raises(UserError, match="because all stay together"):
        evaluated_on(replace(stored, units=np.zeros(60)), "val")


def test_a_description_says_that_crops_are_averaged(stored: Dataset) -> None:
    described = describe(make_protocol(["crops.count=4"]), stored)
    assert described["crops"] == {"count": 4, "scale": [0.2, 1.0]}
    assert described["images"].startswith("random crops, ")
    assert described["images"].endswith("averaged over the crops")


def test_protocol_has_the_settings_of_every_evaluation() -> None:
    protocol = Protocol()
    for evaluation in EVALUATIONS.values():
        assert getattr(protocol, evaluation.section_name) == evaluation()


def test_identities_are_equal_exactly_if_figures_can_be_compared(digits: Dataset) -> None:
    base = identity_of(subject_of(digits))
    same = [
        subject_of(digits, ["linear.l2_values=3"]),  # kNN doesn't use it
        subject_of(digits, ["knn.k=[1,200]"]),  # part of the metric's name
        subject_of(digits, model={"width": 0.125}),  # encoders are what is compared
    ]
    other_split = replace(digits, parts=digits.parts | {"val": digits.parts["val"][1:]})
    different = [
        subject_of(digits, ["knn.temperature=0.2"]),
        subject_of(digits, layer="z"),
        subject_of(digits, ["crops.count=10"]),
        subject_of(digits, ["crops.count=10", "crops.scale=[0.1,1.0]"]),
        subject_of(digits, ["features=whitened"]),
        subject_of(other_split),
        subject_of(replace(digits, digest="another")),
    ]
    assert {identity_of(subject) for subject in same} == {base}
    assert len({identity_of(subject) for subject in different} | {base}) == 8
    robust = identity_of(subject_of(digits), "robustness")
    assert identity_of(subject_of(digits, ["robustness.classifier=linear"]), "robustness") == robust  # in the name
    for setting in ("knn.k=[20]", "linear.l2_values=3", "robustness.seed=1"):  # it reads their tables
        assert identity_of(subject_of(digits, [setting]), "robustness") != robust
    small, large = (subject_of(digits, train={"batch_size": size}) for size in (8, 128))
    assert identity_of(small, "no-labels") != identity_of(large, "no-labels")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("knn.k=[0]", r"knn\.k = 0: expected at least 1"),
        ("knn.kk=1", "did you mean 'knn.k'"),
        ("finetune.fractions=[2]", r"finetune\.fractions = 2: expected at most 1"),
        ("finetune.fractions=[a]", r"finetune\.fractions"),
        ("finetune.fractions=[0.5, 0.1, 0.5]", r"expected each value once"),
        ("linear.l2_max=-1", r"linear\.l2_max = -1: expected more than 0"),
        ("knn", "is not a setting"),
    ],
)
def test_invalid_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_protocol([setting])
