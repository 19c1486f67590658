"""Judge a frozen encoder: every way the field has, by one protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from simclr.errors import RunFailed, UserError, unknown
from simclr.evaluate.finetune import finetune, linear_sgd
from simclr.evaluate.knn import check_k, knn
from simclr.evaluate.label_free import geometry, random_matches
from simclr.evaluate.linear import linear
from simclr.evaluate.subject import Outcome, Subject, fingerprint, layers


def chance(subject: Subject) -> tuple[dict[str, float], int]:
    """Accuracy of always naming the commonest classes of the test set, top-1 and top-5; and how many images it has."""
    counts = subject.labels("test").bincount().sort(descending=True).values
    total = int(counts.sum())
    return {f"top{k}": int(counts[:k].sum()) / total for k in (1, 5)}, total


class Evaluation(NamedTuple):
    """One row of EVALUATIONS: the function, whether it needs labels, what it reads, and the accuracies of guessing with
    the number of images that accuracies are of."""

    run: Callable[[Subject], Outcome]
    labels: bool
    sections: tuple[str, ...]  # of the protocol
    chance: Callable[[Subject], tuple[dict[str, float], int]] = chance


EVALUATIONS = {
    "knn": Evaluation(knn, True, ("knn",)),
    "linear": Evaluation(linear, True, ("linear",)),
    "linear-sgd": Evaluation(linear_sgd, True, ("linear_sgd",)),
    "finetune": Evaluation(finetune, True, ("finetune",)),
    "no-labels": Evaluation(geometry, False, ("views",), random_matches),
}


def check(subject: Subject, names: list[str]) -> None:
    """Raises UserError where the data or the network can't give what is asked for."""
    data, layer = subject.data, subject.protocol.layer
    if layer not in layers(subject.model):
        raise unknown("layer", layer, layers(subject.model))
    if layer != "h" and "no-labels" in names:
        raise UserError(f"--no-labels looks at h and at z: leave --layer {layer} out")
    wanting = [name for name in names if EVALUATIONS[name].labels]
    if wanting and not (data.has_labels and len(data.parts["test"])):
        images = ", ".join(f"{len(data.parts[part])} {part}" for part in ("train", "val", "test"))
        raise UserError(
            f"--{wanting[0]} needs labels, and '{data.name}' has {len(data.classes)} classes (labelled images: "
            f"{images}): give two or more folders of images, one for each class, or ask for --no-labels"
        )
    if "knn" in names:
        check_k(subject)


def evaluate(subject: Subject, name: str) -> Outcome:
    """What one of EVALUATIONS finds. Raises RunFailed if it changed a weight or a buffer of the encoder."""
    before = fingerprint(subject.model)
    outcome = EVALUATIONS[name].run(subject)
    if fingerprint(subject.model) != before:
        raise RunFailed(f"evaluation '{name}' changed the frozen encoder: its figures are not to be used")
    return outcome
