"""What a figure means: the protocol, a table of settings for each evaluation, and the identity of a figure under it.

Choices (L2, learning rates) are made on validation, and the test set is used once. After that, kNN and the linear
classifier use the validation images together with the training images. Fine-tuning keeps them apart.

While the test set must not be used yet, figures are measured on validation: see `evaluated_on`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError, create_model

from simclr.config import Config
from simclr.data.dataset import Dataset
from simclr.data.parts import held_out_whole
from simclr.errors import UserError
from simclr.evaluate.evaluations import EVALUATIONS, get_evaluation
from simclr.evaluate.finetune import held_out
from simclr.evaluate.subject import BaseProtocol, hash_rows
from simclr.settings import merge, nested, parse_setting, readable

if TYPE_CHECKING:

    class Protocol(BaseProtocol):
        """How encoders are evaluated."""

        def __init__(self, **settings: Any) -> None: ...
        def __getattr__(self, section_name: str) -> Any: ...
else:
    Protocol = create_model(
        "Protocol",
        __base__=BaseProtocol,
        __doc__="How encoders are evaluated. It is immutable and versioned, and recorded with every result.",
        **{row.section_name: (row, row()) for row in EVALUATIONS.values()},
    )


def make_protocol(settings: list[str], **changes: object) -> Protocol:
    """The protocol with some settings changed, such as `knn.k=[20,200]`. Raises UserError for an invalid setting."""
    table: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    for text in settings:
        table = merge(table, nested(*parse_setting(text)))
    try:
        return Protocol.model_validate(table)
    except ValidationError as error:
        raise readable(error, Protocol) from None


# Where the parts of a data set come from, by the images that it is evaluated on: see `evaluated_on`.
ROLES = {
    "test": {"train": "train", "val": "val", "test": "test"},
    "val": {"train": "train", "val": "held out of train", "test": "val"},
}


def evaluated_on(data: Dataset, on: str) -> Dataset:
    """The data set whose part `test` contains the images to evaluate on, "test" or "val".

    On validation, a fifth of the training images takes the place of the validation images: choices are made on them. So
    the images that an accuracy is measured on are used only once here too, and the test images not at all. Copies, and
    images of one `data.group`, stay together. Raises UserError if there are no validation images.
    """
    if on == "test":
        return data
    train, val = data.parts["train"], data.parts["val"]
    if len(data.classes) > 1 and not len(val):
        raise UserError(
            "there are no validation images to evaluate on: train with data.val_fraction above 0, or evaluate on the "
            "test images with --on test"
        )
    held = held_out(data.labels, train)
    if data.units is not None and len(train):
        held = held_out_whole(train, data.labels, data.units)
    rest = np.setdiff1d(train, held)
    if len(train) and not len(rest):
        raise UserError(
            "no training images can be held out to choose settings on, because all stay together (by data.group, or as "
            "copies): evaluate on the test images with --on test"
        )
    return replace(data, parts=data.parts | {"train": rest, "val": np.sort(held), "test": val})


def describe(protocol: BaseProtocol, data: Dataset) -> dict[str, Any]:
    """The complete protocol, with the images that it is applied to (see `evaluated_on`)."""
    tables = {row.section_name: getattr(protocol, row.section_name) for row in EVALUATIONS.values()}
    settings = {name: table.model_dump(mode="json") | table.fixed for name, table in tables.items()}
    rows = {role: data.parts[part] for part, role in ROLES[protocol.on].items()}
    about = {"name": data.name, "digest": data.digest, "side": data.side, "split": hash_rows(*rows.values())}
    seen = "random crops, resized to" if protocol.crops else "whole, of"
    averaged = "averaged over the crops" if protocol.crops else "in float32"
    applied = {
        "data": about | {part: len(r) for part, r in rows.items()},
        "images": f"{seen} the side of the views, normalised as in pre-training, not augmented; features {averaged}",
    }
    return protocol.model_dump(mode="json") | settings | applied


def identity(name: str, protocol: BaseProtocol, config: Config, data: Dataset, device: torch.device) -> str:
    """Version and short hash of everything that the results of an evaluation depend on, apart from the encoder. Results
    with equal identities can be compared. `config` is that of the encoder's pre-training, and `data` is what
    `evaluated_on` gives.
    """
    evaluation, whole = get_evaluation(protocol, name), describe(protocol, data)
    more, side = evaluation.depends_on(config, data, device), config.view_size() or data.side
    if side != data.side:
        more["side"] = side
    if protocol.features != "raw":  # the only one of earlier versions
        more["features"] = protocol.features
    settings = evaluation.model_dump(mode="json", exclude=set(evaluation.in_metric_names))
    more |= {"crops": whole["crops"]} if protocol.crops else {}
    read = {key: whole[key] for key in ("version", "layer", "data", *evaluation.reads)}
    read |= {"more": more, evaluation.section_name: settings}
    if protocol.on != "test":
        read["on"] = protocol.on
    digest = hashlib.blake2b(json.dumps(read, sort_keys=True).encode(), digest_size=3).hexdigest()
    return f"{protocol.version}-{digest}"
