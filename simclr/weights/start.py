"""The encoder that a training starts from (`init`): read from a file, and named with a digest of its tensors.

A resolved `init` is PATH@DIGEST. Only the digest is part of a run's key, so that the file may move.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models

from simclr.config import Config
from simclr.data.dataset import stored_side
from simclr.errors import UnusableWeights, UserError, unknown
from simclr.model import RESNETS, backbones
from simclr.progress import Observer
from simclr.weights.checkpoint import fill, load_weights
from simclr.weights.foreign import Imported, import_encoder

RESOLVED = re.compile(r"(.*)@([0-9a-f]{16})", re.DOTALL)
ARCHITECTURE = ("backbone", "stem", "width")  # the settings of an encoder


class Start(NamedTuple):
    """An encoder to start from."""

    name: str  # of its run, or of its file
    model: dict[str, Any]  # its ARCHITECTURE
    other_stems: list[str]  # that its weights could belong to as well
    weights: dict[str, Tensor]  # with the names of `build_encoder`
    side: int | None = None  # of the images in pixels, if the weights require one (vision transformers)


def read_start(path: Path, backbone: str) -> Start:
    """Read the encoder in a file of this suite, or in one of another program, where it is a ResNet or a `backbone`.

    Raises UserError if there is none.
    """
    try:
        config, weights, _ = load_weights(path)
    except UserError as first:  # it is another program's, or can perhaps be read like one
        try:
            found = import_encoder(path, backbone=None if backbone in RESNETS else backbone)
        except UserError as error:
            if isinstance(first, UnusableWeights):
                raise UserError(f"can't start from {path}: {first}") from None
            raise UserError(f"can't start from {path}: {error}. {with_options(path)} start from its run") from None
        model = {key: found.model[key] for key in ARCHITECTURE}
        return Start(path.name, model, found.other_stems, found.weights, found.side)
    own = {name.removeprefix("encoder."): t for name, t in weights.items() if name.startswith("encoder.")}
    model = {key: getattr(config.model, key) for key in ARCHITECTURE}
    side = _side(config) if config.model.backbone.startswith("vit_") else None
    return Start(config.run_name(), model, [], own, side)


def with_options(path: Path) -> str:
    """The remedy for a file that can be read only with options, which other commands lack, up to what to do then."""
    return f"If it takes an option to read it, add the option to `simclr import {path}`, and"


def warn_of_stems(found: Imported, observer: Observer, remedy: str) -> None:
    """Warn if the weights of an encoder don't show which stem it has. `remedy` is what to do if it has another one."""
    if found.other_stems:
        observer.note(
            f"warning: the weights fit the stem {found.model['stem']}, but also {' or '.join(found.other_stems)}: if "
            f"the encoder was trained with another stem, {remedy}"
        )


def _side(config: Config) -> int:
    return config.view_size() or stored_side(config.data)


def split_digest(text: str) -> tuple[Path, str | None]:
    """The path in PATH@DIGEST or PATH, and the digest if it is there."""
    match = RESOLVED.fullmatch(text)
    return (Path(match[1]), match[2]) if match else (Path(text), None)


def weights_digest(weights: dict[str, Tensor]) -> str:
    """Sixteen hexadecimal digits of all numbers, with their names and shapes."""
    digest = blake2b(digest_size=8)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def resolved(config: Config, path: Path) -> Config:
    """The config with the file to start from and its digest. Raises UserError as `start_of` does."""
    start = start_of(config.model_copy(update={"init": str(path)}))
    assert start is not None
    return config.model_copy(update={"init": f"{path}@{weights_digest(start.weights)}"})


def start_of(config: Config) -> Start | None:
    """The encoder that a config starts from, if it does.

    Raises UserError if the file is gone, if it holds another network than the config has, or other weights than before.
    """
    if config.init is None:
        return None
    path, digest = split_digest(config.init)
    if not path.is_file():
        raise UserError(f"there is no file {path}, which init names: restore it")
    start = read_start(path, config.model.backbone)
    own = {key: getattr(config.model, key) for key in ARCHITECTURE}
    if own["stem"] in start.other_stems:  # the weights don't show which one it is
        start.model["stem"] = own["stem"]
    differing = [
        (f"model.{key}={value}", f"model.{key}={own[key]}") for key, value in start.model.items() if value != own[key]
    ]
    if start.side not in (None, _side(config)):
        differing.append((f"augment.crop.size={start.side}", f"images of {_side(config)} px"))
    if differing:
        theirs, ours = zip(*differing, strict=True)
        raise UserError(
            f"init names the encoder {start.name}, whose network differs from that of the config ({', '.join(ours)}): "
            f"to train it, use {' '.join(f'--set {setting}' for setting in theirs)} instead"
        )
    if digest not in (None, (found := weights_digest(start.weights))):
        raise UserError(
            f"the weights in {path}, which init names, have changed: their digest is {found}, and was {digest}. "
            f"Restore the file, or name it as init = '{path}' to start from its current weights"
        )
    return start


def load_start(encoder: nn.Module, config: Config) -> None:
    """Load the weights that a config starts from, if it does, into its encoder. Raises UserError if they don't fit."""
    if (start := start_of(config)) is not None:
        try:
            fill(encoder, start.weights)
        except UserError as error:
            raise UserError(f"can't start from init = '{config.init}': {error}") from None


def cached_weights(name: str) -> Path:
    """The weights of one of torchvision's networks in torch's cache, the recommended ones if there are several."""
    if name not in list_models() or name not in backbones():
        raise unknown("file or network of torchvision", name, [each for each in backbones() if each in list_models()])
    kinds = get_model_weights(name)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    files = [folder / Path(each.url).name for each in (kinds.DEFAULT, *kinds)]
    for path in files:
        if path.is_file():
            return path
    raise UserError(
        f"the weights of {name} are not in {folder}, and this program doesn't download any: save "
        f"{kinds.DEFAULT.url} in that folder, or name a file"
    )
