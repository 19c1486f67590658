"""Read the weights of other programs. No code in their files is ever run."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck

from simclr.config import make
from simclr.errors import UserError, first_few, unknown
from simclr.model import RESNETS, STEMS, ModelConfig, backbones, build_encoder
from simclr.weights.checkpoint import check_archive, check_tensors


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
FEWEST_TENSORS = 10  # tensors of the smallest encoder, AlexNet's
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
    large_stem: str = "imagenet"  # the one that another convolution belongs to


def _numbered(first: int) -> dict[str, str]:
    """The names in nn.Sequential(*list(resnet.children())[:-1]), where `layer1` has the number `first`."""
    return {"0": "conv1", "1": "bn1"} | {str(first + i): f"layer{i + 1}" for i in range(4)}


NUMBERED = _numbered(4)  # torchvision's ResNets, after ReLU (2) and max-pool (3)
UNPOOLED = _numbered(3)  # without max-pool
GENERATED = _numbered(2)  # lightly's ResNetGenerator, in which ReLU is no module, and so missing from the sequence

LAYOUTS: dict[str, Layout] = {
    "torchvision": Layout("", ("fc.", "classifier.", "head.", "heads.")),
    "timm": Layout("", ("fc.",)),  # its ResNets have torchvision's names
    "sequential": Layout("", (), NUMBERED),
    "sthalles": Layout("backbone.", ("backbone.fc.",)),
    "spijkervet": Layout("encoder.", ("projector.",)),
    "solo-learn": Layout("backbone.", ("projector.", "classifier."), small_stem="cifar_pad2"),
    "lightly": Layout("backbone.", ("projection_head.",), NUMBERED),  # as in its examples
    "lightly-benchmarks": Layout("backbone.", ("projection_head.", "online_classifier.")),
    "lightly-generator": Layout(  # its ResNetGenerator in a sequence, as in its tutorials
        "backbone.", ("projection_head.",), GENERATED, small_stem="cifar_no_relu", large_stem="cifar_no_relu"
    ),
    "resnet-generator": Layout("", ("linear.",)),  # lightly's and kuangliu's ResNets
    "supcontrast": Layout("encoder.", ("head.",)),
    "leftthomas": Layout("f.", ("g.", "fc."), UNPOOLED, large_stem="imagenet_no_pool"),
}


# What torchvision calls the heads of its networks. They are not imported.
CLASSIFIERS = LAYOUTS["torchvision"].heads


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
    found: dict[tuple[str, str], Place] = {}
    for place, state in states.items():
        for children in ({}, GENERATED, UNPOOLED, NUMBERED):  # a lower number of the first layer is more specific
            numbers = {name: number for number, name in children.items()}
            start, *others = dict.fromkeys(_renamed(anchor, numbers) for anchor in anchors)
            if children and start == anchors[0]:
                continue  # it has no part that would be numbered
            for prefix in [key.removesuffix(start) for key in state if f".{key}".endswith(f".{start}")]:
                if all(prefix + other in state for other in others):
                    found.setdefault((place, prefix), Place(place, prefix, children))
    return list(found.values())


RESNET_ANCHORS = ["conv1.weight", "layer1.0.conv1.weight"]


@cache
def _anchors(backbone: str | None) -> list[str]:
    """Tensors by which an encoder is found. None: any ResNet."""
    if backbone is None or backbone in RESNETS:
        return RESNET_ANCHORS
    with torch.device("meta"):
        example, _ = build_encoder(ModelConfig.model_construct(backbone=backbone, stem="imagenet"), 224, 0)
    names = [name for name, _ in example.named_parameters()]
    return [names[0], *(name for name in names[1:-1] if name in RESNET_ANCHORS), names[-1]]


def _choose(states: Mapping[str, Mapping[str, Tensor]], layout: str, backbone: str | None, prefix: str | None) -> Place:
    """The encoder to import. Raises UserError if there is none, or if there are several and no `prefix` chooses one."""
    anchors = _anchors(backbone)
    everywhere = find_encoders(states, anchors)
    if not everywhere:
        names = first_few([place + key for place, state in states.items() for key in state])
        raise UserError(
            f"there is no {backbone or 'ResNet'} ('{anchors[0]}' and '{anchors[-1]}') among the entries {names}: "
            f"{_remedy(states, backbone)}"
        )
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
    """The layout that has the encoder at this place, and of several, the one that knows most of the heads."""
    rows = [row for row in LAYOUTS.values() if place[1:] == (row.prefix, row.children)]
    if not rows:
        alike = next(row for row in LAYOUTS.values() if row.children == place.children)  # which stem it stands for
        return alike._replace(prefix=place.prefix, heads=tuple(place.prefix + head for head in CLASSIFIERS))
    return max(rows, key=lambda row: sum(key.startswith(row.heads) for key in state))


def _row(
    states: Mapping[str, Mapping[str, Tensor]], place: Place, backbone: str | None, layout: str = "auto"
) -> Layout:
    """The layout of the encoder at a place. Other encoders below it, such as its moving average, are not imported."""
    state = states[place.state]
    row = LAYOUTS.get(layout) or detect_layout(state, place)
    found = (other.prefix for other in find_encoders({place.state: state}, _anchors(backbone)))
    return row._replace(heads=(*row.heads, *(other for other in found if other != place.prefix[: len(other)])))


def _renamed(key: str, parts: Mapping[str, str]) -> str:
    """A name with its first part replaced, and with torchvision's name of a block's shortcut."""
    part, dot, rest = key.partition(".")
    return parts.get(part, part) + dot + rest.replace("shortcut.", "downsample.")


class Imported(NamedTuple):
    """An encoder of another program."""

    model: dict[str, Any]  # settings of its ModelConfig
    weights: dict[str, Tensor]  # all of them, with the names of `build_encoder`
    side: int | None  # image side in pixels that the weights require (vision transformers)
    left_out: list[str]  # tensors in the file that belong to heads
    missing: list[str]  # tensors that the file lacks, which keep their initial values
    unmatched: list[str]  # tensors in the file that belong to nothing known
    other_stems: list[str]  # stems whose weights have the same shapes, unless the stem was given


def _resnet_settings(
    state: Mapping[str, Tensor], backbone: str | None, stem: str | None, row: Layout
) -> dict[str, Any]:
    """Backbone and stem (unless given) and width of a ResNet, from the names and shapes of its tensors.

    Raises UserError if the shapes are those of no ResNet.
    """
    shape = state["conv1.weight"].shape
    if len(shape) != 4:
        raise UserError(f"conv1.weight has the shape {tuple(shape)}: expected that of a convolution, with four sides")
    block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
    layers = [len({key.split(".")[1] for key in state if key.startswith(f"layer{i}.")}) for i in range(1, 5)]
    backbone = backbone or next((name for name, shape in RESNETS.items() if shape == (block, layers)), None)
    if backbone is None:
        raise UserError(f"no known ResNet has layers of {layers} {block.__name__}s, so this encoder can't be imported")
    stem = stem or (row.small_stem if shape[-1] == 3 else row.large_stem)
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
    row = _row(states, place, backbone, layout)
    inside = [key for key in state if key.startswith(place.prefix) and not key.startswith(row.heads)]
    check_tensors(path, {key: state[key] for key in inside})
    match = _match(state, place, row, backbone, stem)
    name, own = match.model["backbone"], match.own
    if wrong := next((name for name, tensor in match.tensors.items() if not _fits(name, tensor, own[name])), None):
        raise UserError(
            f"{path} looks like a {name}, but {wrong} is {tuple(match.tensors[wrong].shape)}, expected "
            f"{tuple(own[wrong].shape)}: {_remedy(states, backbone)}"
        )
    if (match.missing or match.unmatched) and not partial:
        # Whatever else is in the file of a whole ResNet that was found without its name, it is no other network.
        raise _mismatch(path, match, _remedy(states, backbone) if match.missing or backbone else "")
    encoder, _ = build_encoder(make({"model": match.model}).model, match.side or 224, 0)
    whole = {
        name: t if t.shape == own[name].shape else t.view(-1, len(own[name])).mean(0)
        for name, t in match.tensors.items()
    }
    encoder.load_state_dict(encoder.state_dict() | whole)
    others = _same_shaped(match.model["stem"]) if stem is None and name in RESNETS else []
    return Imported(
        match.model, dict(encoder.state_dict()), match.side, match.left_out, match.missing, match.unmatched, others
    )


def _same_shaped(stem: str) -> list[str]:
    """The other stems whose weights have the shapes of this one. The ImageNet stem is taken for what it looks like."""
    shapes = {name: build(1)[0].weight.shape for name, build in STEMS.items()}
    return [name for name in STEMS if "imagenet" not in stem and name != stem and shapes[name] == shapes[stem]]


class Match(NamedTuple):
    """The tensors of a file compared with the network that they seem to belong to."""

    model: dict[str, Any]  # settings of its ModelConfig
    side: int | None  # as in Imported
    own: dict[str, Tensor]  # the network's tensors, without their numbers
    tensors: dict[str, Tensor]  # those of the file that belong to it, by the names in the network
    left_out: list[str]  # these three as in Imported
    missing: list[str]
    unmatched: list[str]


def _match(state: Mapping[str, Tensor], place: Place, row: Layout, backbone: str | None, stem: str | None) -> Match:
    """Compare the encoder at a place with the named network, or with the ResNet that it seems to be.

    Reads no number. Raises UserError if it is no known ResNet.
    """
    inside = [key for key in state if key.startswith(place.prefix)]
    keys = {_renamed(key.removeprefix(place.prefix), place.children): key for key in inside}
    tensors = {name: state[key] for name, key in keys.items()}
    if backbone is None or backbone in RESNETS:
        model = _resnet_settings(tensors, backbone, stem, row)
    else:
        model = {"backbone": backbone, "stem": stem or "imagenet", "width": 1.0}
    model["head"], side = "none", None
    if model["backbone"].startswith("vit_") and "encoder.pos_embedding" in tensors:  # 1 x (1 + patches) x D
        patches = tensors["encoder.pos_embedding"].shape[1] - 1
        side = round(patches**0.5) * int(model["backbone"].rpartition("_")[2])
    with torch.device("meta"):
        outline, _ = build_encoder(make({"model": model}).model, side or 224, 0)
    own = outline.state_dict()
    used = {name: tensor for name, tensor in tensors.items() if name in own}
    rest = [key for key in state if key not in {keys[name] for name in used}]
    left_out = [key for key in rest if key.startswith(row.heads) or not key.startswith(place.prefix)]
    missing = [name for name in own if name not in used and not name.endswith("num_batches_tracked")]
    return Match(model, side, own, used, left_out, missing, [key for key in rest if key not in left_out])


def _fits(name: str, tensor: Tensor, own: Tensor) -> bool:
    """Whether a tensor can become one of a network.

    Of running statistics there may be several sets, one after the other: lightly's SplitBatchNorm has one for each part
    of a batch, and evaluates with their mean.
    """
    sets = name.endswith((".running_mean", ".running_var")) and tensor.ndim == 1 and len(tensor) % len(own) == 0
    return tensor.shape == own.shape or (sets and len(tensor) > 0)


def _has_network(states: Mapping[str, Mapping[str, Tensor]], backbone: str) -> bool:
    """Whether a file has a network: all its tensors with their shapes, and no other except heads."""
    for place in find_encoders(states, _anchors(backbone)):
        state = states[place.state]
        try:
            match = _match(state, place, _row(states, place, backbone), backbone, None)
        except UserError:
            continue
        fit = all(_fits(name, tensor, match.own[name]) for name, tensor in match.tensors.items())
        if fit and not match.missing and not match.unmatched:
            return True
    return False


def _remedy(states: Mapping[str, Mapping[str, Tensor]], backbone: str | None) -> str:
    """What to do if a file doesn't have the network that was named, or a ResNet: one that it does have is tried."""
    if max(map(len, states.values())) >= FEWEST_TENSORS:
        for known in (RESNETS, [name for name in backbones() if name not in RESNETS]):  # these take seconds to build
            if found := [name for name in known if name != backbone and _has_network(states, name)]:
                return f"it is a {' or '.join(found)}, so add --backbone {found[0]}"
    return "no other network that this suite knows has its tensors"


def _mismatch(path: Path, match: Match, remedy: str) -> UserError:
    problems = []
    if match.missing:
        problems.append(f"{len(match.missing)} of its tensors are missing ({first_few(match.missing)})")
    if match.unmatched:
        names = first_few(match.unmatched)
        problems.append(f"{len(match.unmatched)} tensors belong neither to it nor to a known head ({names})")
    found = "; ".join(filter(None, [" and ".join(problems), remedy]))
    return UserError(f"{path} does not match {match.model['backbone']}: {found}. Add --partial to import it anyway")
