"""A fine-tuned network in a file, which `simclr eval --keep` writes and distillation reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simclr.config import make
from simclr.data.dataset import Dataset
from simclr.errors import UserError
from simclr.evaluate.finetune import Classifier
from simclr.model import Network
from simclr.settings import parse_toml
from simclr.weights.checkpoint import check_tensors, fill
from simclr.weights.start import split_digest, weights_digest

FILE = "fine-tuned.safetensors"  # of a run
HOW = "keep one with `simclr eval RUN --finetune 0.1 --keep`"


def facts_of(classifier: Classifier, config: str, data: Dataset) -> dict[str, str]:
    """What a file must hold besides the weights: the encoder's config and layer, its data, and the side of images."""
    facts = {"config": config, "layer": classifier.layer, "side": str(classifier.model.side)}
    return facts | {"digest": data.identity, "classes": json.dumps(data.classes)}


def load_teacher(teacher: str | None) -> tuple[Classifier, list[str], str]:
    """The network in a file, which may be followed by @ and its digest; the classes that it knows; and its digest.

    Raises UserError if there is none, or if it has changed.
    """
    if teacher is None:
        raise UserError(f"method 'distill' needs a fine-tuned network: set distill.teacher to its run ({HOW})")
    path, digest = split_digest(teacher)
    facts, tensors = _read(path)
    if digest not in (None, (found := weights_digest(tensors))):
        raise UserError(
            f"the network in {path}, which distill.teacher names, has changed: its digest is {found}, and was {digest}"
        )
    heads = [tensor for name, tensor in tensors.items() if name.startswith("head.") and tensor.ndim == 2]
    try:
        config, side = make(parse_toml(facts["config"], "its config")), int(facts["side"])
        classes: list[str] = json.loads(facts["classes"])
        network = Network(config.model, side, 0, (0.0,) * 3, (1.0,) * 3)
        classifier = Classifier(network, facts["layer"], heads[0].shape[1], len(classes), len(heads) - 1)
        fill(classifier, tensors)
    except (UserError, ValueError, TypeError, RuntimeError, IndexError) as error:
        raise UserError(f"{path} can't be used as a teacher: {error}") from None
    classifier.to(memory_format=torch.channels_last)
    return classifier.eval(), classes, found


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"there is no fine-tuned network in {path} ({error}): {HOW}") from None
    if not {"config", "layer", "side", "classes"} <= facts.keys():
        raise UserError(f"{path} holds no fine-tuned network: {HOW}")
    check_tensors(path, tensors)
    return facts, tensors
