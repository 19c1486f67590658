"""Read the weights of other programs. No code in their files is ever run."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck

from simclr.config import make
from simclr.errors import UserError, unknown
from simclr.model import RESNETS, STEMS, ModelConfig, build_encoder
from simclr.weights.checkpoint import check_archive, check_shapes, check_tensors


class Inert:
    """Replaces objects that are neither tensors nor plain values. Accepts any arguments and state, and ignores them."""

    def __init__(self, *args: object) -> None: ...

    def _ignore(self, *args: object) -> None: ...

    __setstate__ = __setitem__ = append = extend = _ignore


# The functions that a pickle may call. A file can set attributes of the functions that it gets, but not of `__call__`.
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2.__call__,  # type: ignore[operator]
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter.__call__,  # type: ignore[operator]
}


class TensorUnpickler(pickle.Unpickler):
    """Imports nothing. Every name outside ALLOWED becomes Inert (torch itself handles the names of storages)."""

    def find_class(self, module: str, name: str) -> Any:
        return ALLOWED.get((module, name), Inert)


TENSORS_ONLY = SimpleNamespace(  # a pickle module for torch.load
    __name__="tensors only",
    Unpickler=TensorUnpickler,
    load=lambda file, **options: TensorUnpickler(file, **options).load(),
)

STATE_KEYS = ("state_dict", "model_state_dict", "model", "network", "net", "encoder", "backbone")
WRAPPERS = ("module", "_orig_mod")  # DataParallel and torch.compile add these to names


def _load(path: Path) -> Any:
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # also rejects TorchScript
    except pickle.UnpicklingError:  # other objects, such as Lightning's hyper-parameters
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=TENSORS_ONLY)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _state_dicts(content: Any, place: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary with tensors in the content of a file, after the place where it is, such as `teacher.`"""
    if isinstance(content, dict):
        found = {_without_wrappers(str(key)): value for key, value in content.items() if isinstance(value, Tensor)}
        if found:
            yield place, found
        for key, value in content.items():
            yield from _state_dicts(value, f"{place}{key}.")


def read_foreign(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read all state dicts of a .safetensors file or a PyTorch checkpoint, by the place in it where they are.

    Those under STATE_KEYS come first. Other objects in the file are never created. WRAPPERS are removed from names.
    Raises UserError if the file can't be read or has no tensors.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load(path)
        states = dict(_state_dicts(content))
    except Exception as error:  # both readers raise many kinds on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"can't read {path} ({reason}): expected a PyTorch checkpoint or a .safetensors file") from None
    if not states:
        raise UserError(f"{path} has no state dict (a dictionary of tensors): save model.state_dict() instead")
    first = [f"{key}." for key in STATE_KEYS if f"{key}." in states]
    return {place: states[place] for place in [*first, *states]}


class Layout(NamedTuple):
    """How a program names the tensors that it saves."""

    prefix: str  # of the encoder's tensors
    heads: tuple[str, ...]  # prefixes of heads, which are not imported
    children: Mapping[str, str] = {}  # from its names of the encoder's parts to torchvision's, where they differ
    small_stem: str = "cifar"  # the one of STEMS that a 3 x 3 convolution belongs to


# The names in nn.Sequential(*list(resnet.children())[:-1]).
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

LAYOUTS: dict[str, Layout] = {
    "torchvision": Layout("", ("fc.", "classifier.", "head.", "heads.")),
    "timm": Layout("", ("fc.",)),  # its ResNets have torchvision's names
    "sequential": Layout("", (), NUMBERED),
    "sthalles": Layout("backbone.", ("backbone.fc.",)),
    "spijkervet": Layout("encoder.", ("projector.",)),
    "solo-learn": Layout("backbone.", ("projector.", "classifier."), small_stem="cifar_pad2"),
    "lightly": Layout("backbone.", ("projection_head.",), NUMBERED),  # as in its examples
    "lightly-benchmarks": Layout("backbone.", ("projection_head.", "online_classifier.")),
}


# What torchvision calls the heads of its networks. They are not imported.
HEADS = LAYOUTS["torchvision"].heads


class Place(NamedTuple):
    """Where an encoder is in a file."""

    state: str  # of the state dict in the file
    prefix: str  # of the encoder's tensors in the state dict
    children: Mapping[str, str]  # as in Layout

    @property
    def name(self) -> str:
        """How the names of its tensors start, from the top of the file, as --prefix takes it."""
        return _without_wrappers(self.state + self.prefix)


def find_encoders(states: Mapping[str, Mapping[str, Tensor]], anchors: Sequence[str]) -> list[Place]:
    """All places under which the state dicts of a file have `anchors`, which are tensors of torchvision's encoder."""
    found = []
    for place, state in states.items():
        for children in ({}, NUMBERED):
            numbers = {name: number for number, name in children.items()}
            start, *others = dict.fromkeys(_renamed(anchor, numbers) for anchor in anchors)
            if children and start == anchors[0]:
                continue  # it has no part that would be numbered
            prefixes = [key.removesuffix(start) for key in state if f".{key}".endswith(f".{start}")]
            found += [Place(place, prefix, children) for prefix in prefixes if all(prefix + o in state for o in others)]
    return found


def _anchors(backbone: str | None) -> list[str]:
    """Tensors by which an encoder is found. None: any ResNet."""
    if backbone is None or backbone in RESNETS:
        return ["conv1.weight", "layer1.0.conv1.weight"]
    with torch.device("meta"):
        example, _ = build_encoder(ModelConfig.model_construct(backbone=backbone, stem="imagenet"), 224, 0)
    names = [name for name, _ in example.named_parameters()]
    return [names[0], names[-1]]


def _choose(states: Mapping[str, Mapping[str, Tensor]], layout: str, backbone: str | None, prefix: str | None) -> Place:
    """The encoder to import. Raises UserError if there is none, or if there are several and no `prefix` chooses one."""
    anchors = _anchors(backbone)
    everywhere = find_encoders(states, anchors)
    if not everywhere:
        names = first_names([place + key for place, state in states.items() for key in state])
        remedy = f"it is not a {backbone}, so choose another --backbone"
        if backbone is None:
            remedy = "if the encoder is not a ResNet but another of torchvision's networks, name it with --backbone"
        raise UserError(f"there is no encoder ('{anchors[0]}' and '{anchors[-1]}') among the entries {names}: {remedy}")
    row = LAYOUTS.get(layout)
    places = [place for place in everywhere if row is None or place[1:] == (row.prefix, row.children)]
    if not places:
        found = " and ".join(f"'{place.name}'" for place in everywhere)
        raise UserError(f"the encoder is not where '{layout}' has it, but under {found}: leave out --format")
    if prefix is not None:
        wanted = _without_wrappers(prefix.strip(".")) + ("." if prefix.strip(".") else "")
        chosen = [place for place in places if wanted in (place.name, place.prefix)]
    else:  # the usual state dicts come first
        usual = [place for place in places if place.state.removesuffix(".") in STATE_KEYS]
        chosen = [place for place in usual if place.state == usual[0].state] or places
    if len(chosen) != 1:
        found = f"no encoder under '{prefix}'" if not chosen else "several encoders"
        raise UserError(f"found {found}: choose one with --prefix {' or '.join(repr(place.name) for place in places)}")
    return chosen[0]


def detect_layout(state: Mapping[str, Tensor], place: Place) -> Layout:
    """The layout that has the encoder at this place, and of several, the one that knows most of the heads.

    If there is none, everything outside of the prefix counts as a head.
    """
    rows = [row for row in LAYOUTS.values() if place[1:] == (row.prefix, row.children)]
    if not rows:
        outside = [key for key in state if not key.startswith(place.prefix)]
        return Layout(place.prefix, (*(place.prefix + head for head in HEADS), *outside), place.children)
    return max(rows, key=lambda row: sum(key.startswith(row.heads) for key in state))


def _renamed(key: str, parts: Mapping[str, str]) -> str:
    """A name with its first part replaced."""
    part, dot, rest = key.partition(".")
    return parts.get(part, part) + dot + rest


def first_names(names: Sequence[str]) -> str:
    """The first five of some names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class Imported(NamedTuple):
    """An encoder of another program."""

    model: dict[str, Any]  # settings of its ModelConfig
    weights: dict[str, Tensor]  # all of them, with the names of `build_encoder`
    side: int | None  # image side in pixels that the weights require (vision transformers)
    left_out: list[str]  # tensors in the file that belong to heads
    missing: list[str]  # tensors that the file lacks, which keep their initial values
    unmatched: list[str]  # tensors in the file that belong to nothing known
    other_stems: list[str]  # stems whose weights have the same shapes, unless the stem was given


def _resnet_settings(state: Mapping[str, Tensor], backbone: str | None, stem: str | None, small: str) -> dict[str, Any]:
    """Backbone and stem (unless given) and width of a ResNet, from the names and shapes of its tensors.

    `small` is the stem that a 3 x 3 convolution stands for. Raises UserError if the shapes are those of no ResNet.
    """
    shape = state["conv1.weight"].shape
    if len(shape) != 4:
        raise UserError(f"conv1.weight has the shape {tuple(shape)}: expected that of a convolution, with four sides")
    block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
    layers = [len({key.split(".")[1] for key in state if key.startswith(f"layer{i}.")}) for i in range(1, 5)]
    backbone = backbone or next((name for name, shape in RESNETS.items() if shape == (block, layers)), None)
    if backbone is None:
        raise UserError(f"no known ResNet has layers of {layers} {block.__name__}s, so this encoder can't be imported")
    stem = stem or (small if shape[-1] == 3 else "imagenet")
    return {"backbone": backbone, "stem": stem, "width": shape[0] / 64}


def import_encoder(
    path: Path,
    layout: str = "auto",
    *,
    backbone: str | None = None,
    stem: str | None = None,
    prefix: str | None = None,
    partial: bool = False,
) -> Imported:
    """Import the encoder in a file of another program.

    `layout` is one of LAYOUTS or auto. The encoder may be anywhere in the file, under any prefix. If there are several,
    `prefix` chooses one. Backbone, width and stem of a ResNet are inferred, except for the stem `stride2`, which has
    the same shapes as `cifar`. Other backbones of torchvision must be given.

    Raises UserError for an unreadable file, an unknown layout, weights of other shapes (before memory for a network is
    taken), and weights that `check_tensors` refuses. Also raises it, unless `partial`, if tensors of the encoder are
    missing, or if some belong neither to the encoder nor to a known head.
    """
    if layout not in (known := (*LAYOUTS, "auto")):
        raise unknown("format", layout, known)
    states = read_foreign(path)
    place = _choose(states, layout, backbone, prefix)
    state = states[place.state]
    row = LAYOUTS.get(layout) or detect_layout(state, place)
    inside = {key.removeprefix(place.prefix): key for key in state if key.startswith(place.prefix)}
    keys = {_renamed(name, place.children): key for name, key in inside.items()}  # by torchvision's names
    tensors = {name: state[key] for name, key in keys.items()}
    check_tensors(path, {key: state[key] for key in inside.values() if not key.startswith(row.heads)})
    if backbone is None or backbone in RESNETS:
        model = _resnet_settings(tensors, backbone, stem, row.small_stem)
    else:
        model = {"backbone": backbone, "stem": stem or "imagenet", "width": 1.0}
    model["head"] = "none"
    settings, side = make({"model": model}).model, None
    if model["backbone"].startswith("vit_") and "encoder.pos_embedding" in tensors:  # 1 x (1 + patches) x D
        patches = tensors["encoder.pos_embedding"].shape[1] - 1
        side = round(patches**0.5) * int(model["backbone"].rpartition("_")[2])
    with torch.device("meta"):  # shapes without numbers
        outline, _ = build_encoder(settings, side or 224, 0)
    own = outline.state_dict()
    used = {name: tensor for name, tensor in tensors.items() if name in own}
    rest = [key for key in state if key not in {keys[name] for name in used}]
    unmatched = [key for key in rest if not key.startswith(row.heads)]
    missing = [name for name in own if name not in used and not name.endswith("num_batches_tracked")]
    other = "Choose another --backbone, or leave it out"
    if backbone is None:
        other = "If it is another of torchvision's networks, name it with --backbone"
    if (missing or unmatched) and not partial:
        raise _mismatch(path, model["backbone"], missing, unmatched, other)
    try:
        check_shapes(outline, own | used)
    except UserError as error:
        raise UserError(f"{path} looks like a {model['backbone']}, but {error}. {other}") from None
    encoder, _ = build_encoder(settings, side or 224, 0)
    encoder.load_state_dict(encoder.state_dict() | used)
    left_out = [key for key in rest if key.startswith(row.heads)]
    others = _same_shaped(settings.stem) if stem is None and settings.backbone in RESNETS else []
    return Imported(model, dict(encoder.state_dict()), side, left_out, missing, unmatched, others)


def _same_shaped(stem: str) -> list[str]:
    """The other stems whose weights have the shapes of this one."""
    shapes = {name: build(1)[0].weight.shape for name, build in STEMS.items()}
    return [name for name in STEMS if name != stem and shapes[name] == shapes[stem]]


def _mismatch(path: Path, backbone: str, missing: Sequence[str], unmatched: Sequence[str], other: str) -> UserError:
    problems = []
    if missing:
        problems.append(f"{len(missing)} of its tensors are missing ({first_names(missing)})")
    if unmatched:
        names = first_names(unmatched)
        problems.append(f"{len(unmatched)} tensors belong neither to it nor to a known head ({names})")
    return UserError(
        f"{path} does not match {backbone}: {' and '.join(problems)}. {other}; or add --partial to import it anyway"
    )
