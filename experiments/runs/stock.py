"""A stock encoder, such as torchvision's, as one more baseline of an evaluation. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from simclr.build import build_model
from simclr.config import make
from simclr.errors import UserError, printable
from simclr.evaluate.subject import Subject
from simclr.model import RESNETS
from simclr.settings import merge
from simclr.weights.checkpoint import is_own
from simclr.weights.foreign import import_encoder
from simclr.weights.start import ARCHITECTURE, Start, cached_weights, warn_of_stems, with_options


class Stock(NamedTuple):
    """A stock encoder on the images of an evaluation."""

    start: Start
    subject: Subject  # whose network is untrained


def stock_encoder(name: str, subject: Subject) -> Stock:
    """The encoder in a file of another program, or one of torchvision whose weights are in torch's cache, by its name.

    It sees the same images, normalised by ImageNet's mean and deviation. Raises UserError if it isn't available, and
    for layers other than h.
    """
    if subject.protocol.layer != "h":
        raise UserError(f"--stock has no layer '{subject.protocol.layer}', only h: leave out one of the two options")
    path = Path(name)
    backbone = None
    if not path.is_file():
        path, backbone = cached_weights(name), None if name in RESNETS else name
    if is_own(path):
        raise UserError(f"{path} was written by this suite: evaluate it by itself with `simclr eval {path}`")
    try:
        found = import_encoder(path, backbone=backbone)
    except UserError as error:
        raise UserError(f"--stock: {error}. {with_options(path)} evaluate its run") from None
    remedy = f"import it with `simclr import {path} --stem STEM`, and evaluate its run"
    warn_of_stems(found, subject.observer, remedy)
    if found.side not in (None, side := subject.model.side):
        raise UserError(f"{path} takes images of {found.side} px, but these are of {side} px: choose another --stock")
    table = merge(subject.config.model_dump(mode="json"), {"data": {"normalize": "imagenet"}})
    config = make(table | {"model": found.model, "init": None})
    start = Start(printable(path.name), {key: found.model[key] for key in ARCHITECTURE}, [], found.weights)
    network = build_model(config, subject.data, subject.device)
    return Stock(start, replace(subject, config=config, model=network))
