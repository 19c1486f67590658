"""Read the weights of other programs without running anything in their files."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck

from simclr.errors import UserError, unknown
from simclr.model import RESNETS, STEMS, ModelConfig, build_encoder
from simclr.weights.checkpoint import fill


class Inert:
    """Stands for what a file holds beyond tensors and plain values: takes any arguments and state, keeps nothing."""

    def __init__(self, *args: object) -> None: ...

    def _ignore(self, *args: object) -> None: ...

    __setstate__ = __setitem__ = append = extend = _ignore


# What a pickle may name. `__call__`: a file can set attributes of a function that it is given, but not of this.
ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2.__call__,  # type: ignore[operator]
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter.__call__,  # type: ignore[operator]
}


class TensorUnpickler(pickle.Unpickler):
    """Imports nothing: a name outside ADMITTED (torch adds its storages, as plain descriptions) is Inert."""

    def find_class(self, module: str, name: str) -> Any:
        return ADMITTED.get((module, name), Inert)


TENSORS_ONLY = SimpleNamespace(
    __name__="tensors only",
    Unpickler=TensorUnpickler,
    load=lambda file, **options: TensorUnpickler(file, **options).load(),
)


NESTS = ("state_dict", "model_state_dict", "model", "network", "net", "encoder", "backbone")


WRAPPERS = ("module", "_orig_mod")  # DataParallel and torch.compile put these into names


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # also refuses TorchScript
    except pickle.UnpicklingError:  # objects beyond tensors, as Lightning's hyper-parameters
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=TENSORS_ONLY)


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or in a checkpoint of PyTorch, at its top or under one of NESTS.

    Objects in the file are passed over without being made; WRAPPERS are taken out of names. Raises UserError for a file
    that can't be read or holds no state dict.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except Exception as error:  # both readers raise many kinds on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} can't be read ({reason}): expected a PyTorch checkpoint or a .safetensors") from None
    content = content if isinstance(content, dict) else {}
    for state in (*map(content.get, NESTS), content):
        if isinstance(state, dict) and (found := {k: v for k, v in state.items() if isinstance(v, Tensor)}):
            return {".".join(part for part in str(k).split(".") if part not in WRAPPERS): v for k, v in found.items()}
    raise UserError(
        f"{path} holds no state dict, neither at its top nor under {', '.join(NESTS)}: save model.state_dict() instead"
    )


class Layout(NamedTuple):
    """How a program names what it saves: the prefix of the encoder's entries, the prefixes of heads (left out)."""

    prefix: str
    heads: tuple[str, ...]
    children: Mapping[str, str] = {}  # its names of the encoder's parts, where they are not torchvision's
    small_stem: str = "cifar"  # which of STEMS a 3 x 3 convolution means


# nn.Sequential(*list(resnet.children())[:-1])
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


LAYOUTS: dict[str, Layout] = {
    "torchvision": Layout("", ("fc.", "classifier.", "head.", "heads.")),
    "timm": Layout("", ("fc.",)),  # its ResNets, which have torchvision's names
    "sequential": Layout("", (), NUMBERED),
    "sthalles": Layout("backbone.", ("backbone.fc.",)),
    "spijkervet": Layout("encoder.", ("projector.",)),
    "solo-learn": Layout("backbone.", ("projector.", "classifier."), small_stem="cifar_pad2"),
    "lightly": Layout("backbone.", ("projection_head.",), NUMBERED),  # its examples
    "lightly-benchmarks": Layout("backbone.", ("projection_head.", "online_classifier.")),
}


def _name(key: str, row: Layout) -> str | None:
    """What torchvision calls an entry of the encoder; None for one outside the layout's prefix."""
    if not key.startswith(row.prefix):
        return None
    part, dot, rest = key.removeprefix(row.prefix).partition(".")
    return row.children.get(part, part) + dot + rest


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def detect(keys: Iterable[str], mark: str = "conv1.weight", among: Iterable[str] = LAYOUTS) -> str:
    """Which of LAYOUTS the entries are in: that under which an encoder's first one, `mark`, is found.

    Of those that agree on where the encoder is, the one that knows most of the heads. Raises UserError when there is
    none, or encoders in several places.
    """
    keys = list(keys)
    fitting = [name for name in among if any(_name(key, LAYOUTS[name]) == mark for key in keys)]
    if len({LAYOUTS[name].prefix for name in fitting}) != 1:
        found = f"several encoders, as of {', '.join(fitting)}" if fitting else f"no encoder ('{mark}')"
        raise UserError(
            f"{found} among the entries {_shown(keys)}: name the backbone, and the layout: {', '.join(LAYOUTS)}"
        )
    return max(fitting, key=lambda name: sum(key.startswith(LAYOUTS[name].heads) for key in keys))


class Imported(NamedTuple):
    """An encoder of another program: what `model` its config needs, and all its weights (names of `build_encoder`).

    Of the entries in the file: `left_out` are of heads, `unmatched` of nothing known. `missing` ones have their initial
    values. `side` is the side of images in pixels that the weights demand (vision transformers), or None.
    """

    model: dict[str, Any]
    weights: dict[str, Tensor]
    side: int | None
    left_out: list[str]
    missing: list[str]
    unmatched: list[str]


def _resnet(state: Mapping[str, Tensor], backbone: str | None, stem: str | None, row: Layout) -> dict[str, Any]:
    """Backbone and stem (unless they are named) and width of a ResNet, from the names and shapes of its entries.

    Raises UserError for no known one.
    """
    block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
    layers = [len({key.split(".")[1] for key in state if key.startswith(f"layer{i}.")}) for i in range(1, 5)]
    backbone = backbone or next((name for name, shape in RESNETS.items() if shape == (block, layers)), None)
    if backbone is None:
        raise UserError(f"layers of {layers} {block.__name__}s are of no known ResNet: name the backbone (--backbone)")
    shape = state["conv1.weight"].shape
    stem = stem or (row.small_stem if shape[-1] == 3 else "imagenet")
    return {"backbone": backbone, "stem": stem, "width": shape[0] / 64}


def import_encoder(
    path: Path, layout: str = "auto", *, backbone: str | None = None, stem: str | None = None, partial: bool = False
) -> Imported:
    """The encoder in a file of another program; see Imported.

    `layout` is one of LAYOUTS, or auto. A ResNet's backbone, width and stem are found in its entries; `stem` is needed
    for `stride2`, which has the shapes of `cifar`. Another backbone of torchvision must be named. Raises UserError for
    a file or layout that is not understood, for weights of other shapes, and, unless `partial`, when entries of the
    encoder are absent or some are neither of it nor of a known head.
    """
    if layout not in (known := (*LAYOUTS, "auto")):
        raise unknown("layout", layout, known)
    if stem not in (None, *STEMS):
        raise unknown("stem", stem, STEMS)
    state = read_foreign(path)
    with torch.device("meta"):
        first = build_encoder(ModelConfig.model_construct(backbone=backbone or "resnet18", stem="imagenet"), 224, 0)[0]
    row = LAYOUTS[detect(state, next(iter(first.state_dict())), LAYOUTS if layout == "auto" else (layout,))]
    names = {name: key for key in state if (name := _name(key, row))}
    if backbone is None or backbone in RESNETS:
        model = _resnet({name: state[key] for name, key in names.items()}, backbone, stem, row)
    else:
        model = {"backbone": backbone, "stem": stem or "imagenet", "width": 1.0}
    model["head"] = "none"
    side = None
    if model["backbone"].startswith("vit_") and "encoder.pos_embedding" in names:  # 1 x (1 + patches) x D
        patches = state[names["encoder.pos_embedding"]].shape[1] - 1
        side = round(patches**0.5) * int(model["backbone"].rpartition("_")[2])
    encoder, _ = build_encoder(ModelConfig.model_construct(**model), side or 224, 0)
    own = encoder.state_dict()
    weights = {name: state[key] for name, key in names.items() if name in own}
    rest = [key for key in state if _name(key, row) not in own]
    left_out = [key for key in rest if key.startswith(row.heads)]
    unmatched = [key for key in rest if not key.startswith(row.heads)]
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    faults = {"absent": missing, "neither of it nor of a known head": unmatched}
    said = ", ".join(f"{len(keys)} entries are {what} ({_shown(keys)})" for what, keys in faults.items() if keys)
    if said and not partial:
        raise UserError(
            f"{path} does not fit a {model['backbone']}: {said}; name another layout or backbone, or pass --partial"
        )
    try:
        fill(encoder, own | weights)
    except UserError as error:
        raise UserError(f"{path} looks like a {model['backbone']}, but {error}: name its backbone") from None
    return Imported(model, dict(encoder.state_dict()), side, left_out, missing, unmatched)
