"""The table of evaluations. `simclr eval` has an option of the same name for each of them."""

from __future__ import annotations

from simclr.data.dataset import Dataset
from simclr.errors import RunFailed, UserError, unknown
from simclr.evaluate.base import Evaluation, Outcome
from simclr.evaluate.few_shot import FewShot
from simclr.evaluate.finetune import Finetune, LinearSgd
from simclr.evaluate.knn import Knn
from simclr.evaluate.label_free import LabelFree
from simclr.evaluate.lidar import Lidar
from simclr.evaluate.linear import Linear
from simclr.evaluate.retrieval import Retrieval
from simclr.evaluate.robustness import Robustness
from simclr.evaluate.spectrum import Spectrum
from simclr.evaluate.subject import BaseProtocol, Subject, layer_names, model_fingerprint
from simclr.evaluate.transformations import Transformations
from simclr.progress import Observer

EVALUATIONS: dict[str, type[Evaluation]] = {
    "knn": Knn,
    "linear": Linear,
    "linear-sgd": LinearSgd,
    "finetune": Finetune,
    "few-shot": FewShot,
    "retrieval": Retrieval,
    "robustness": Robustness,
    "no-labels": LabelFree,
    "spectrum": Spectrum,
    "lidar": Lidar,
    "transformations": Transformations,
}


def get_evaluation(protocol: BaseProtocol, name: str) -> Evaluation:
    """One of EVALUATIONS with the settings that a protocol has for it."""
    evaluation: Evaluation = getattr(protocol, EVALUATIONS[name].section_name)
    return evaluation


def evaluation_of(metric: str) -> str | None:
    """The name of the evaluation that a metric is of, as the names of metrics say; None of a newer version's."""
    base = metric.rpartition("/")[2]
    named = [name for name, row in EVALUATIONS.items() if base.startswith(row.prefixes or row.section_name)]
    return max(named, key=len, default=None)  # linear-sgd, and not linear


def has_test_labels(data: Dataset) -> bool:
    """Whether accuracy on test images can be measured."""
    return len(data.classes) > 1 and len(data.parts["train"]) > 0 and len(data.parts["test"]) > 0


def usual(data: Dataset, observer: Observer) -> list[str]:
    """The evaluations that are made where none is asked for. Says so if the images have no labels, which some need."""
    if len(data.classes) > 1:
        return ["knn", "linear"]
    lack = "only one class" if data.classes else "no labels"
    observer.note(
        f"{data.title} has {lack}, so only what needs no labels is measured, as with --no-labels. For accuracies, "
        f"add --labels TABLE"
    )
    return ["no-labels"]


def check(subject: Subject, names: list[str]) -> None:
    """Raise UserError if the data or the network can't give what these evaluations need."""
    data, layer = subject.data, subject.protocol.layer
    if layer not in layer_names(subject.model):
        raise unknown("layer", layer, layer_names(subject.model))
    for name in names:
        _check_choices(subject.protocol, name)
        sizes = {part: len(data.parts[part]) for part in ("train", "val", "test")}
        images = ", ".join(f"{size} {part}" for part, size in sizes.items())
        if EVALUATIONS[name].needs_labels and not has_test_labels(data):
            remedy = "name a table of labels (--labels TABLE), or sort the images into folders, one for each class"
            if subject.config.data.unlabelled:
                remedy += " (and add --set data.unlabelled=false)"
            if len(data.classes) > 1 and not sizes["test"]:
                remedy = "add a folder of test images, or train with data.val_fraction above 0, which holds some out"
            has = f"has {len(data.classes)} classes and these labelled images: {images}"
            if not any(sizes.values()):
                has = "has none"
            raise UserError(f"--{name} needs labels, but {data.title} {has}. Use --no-labels, or {remedy}")
        get_evaluation(subject.protocol, name).check(subject)
        if (choice := get_evaluation(subject.protocol, name).chooses(subject.protocol)) and not sizes["val"]:
            raise UserError(
                f"--{name} chooses {choice} on validation images, but there are none: {images}. Use --knn, or train "
                f"with data.val_fraction above 0"
            )


def _check_choices(protocol: BaseProtocol, name: str) -> None:
    """Raise UserError if an evaluation doesn't use what the protocol chooses: images, layer or scaled features."""
    kind = EVALUATIONS[name]
    if not kind.uses_test and protocol.on != "test":
        raise UserError(
            f"--{name} never uses the test images, so --on has no effect on it: run it in a command of its own, "
            f"without --on"
        )
    if protocol.crops and not kind.takes_crops:
        able = " or ".join(f"--{each}" for each, row in EVALUATIONS.items() if row.takes_crops)
        raise UserError(f"--{name} can't average over crops: use {able}, or leave out the settings of crops")
    if kind.whole_network and protocol.layer != "h":
        raise UserError(f"--{name} always evaluates h and z: leave out --layer {protocol.layer}")
    if not kind.scales_features and protocol.features != "raw":
        using = ", ".join(f"--{each}" for each, row in EVALUATIONS.items() if row.scales_features)
        raise UserError(f"features = {protocol.features} has no effect on --{name}, only on {using}: leave it out")


def evaluate(subject: Subject, name: str) -> Outcome:
    """Run one of EVALUATIONS. Raises RunFailed if it changed a weight or a buffer of the encoder."""
    before = model_fingerprint(subject.model)
    outcome = get_evaluation(subject.protocol, name).run(subject)
    if model_fingerprint(subject.model) != before:
        raise RunFailed(f"evaluation '{name}' changed the frozen encoder, so its results are invalid: report this bug")
    return outcome
