"""Read the weights of other programs. No code in their files is ever run."""

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
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # also rejects TorchScript
    except pickle.UnpicklingError:  # other objects, such as Lightning's hyper-parameters
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=TENSORS_ONLY)


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a .safetensors file or a PyTorch checkpoint, from its top level or one of STATE_KEYS.

    Other objects in the file are never created. WRAPPERS are removed from names. Raises UserError if the file can't be
    read or has no state dict.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except Exception as error:  # both readers raise many kinds on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"can't read {path} ({reason}): expected a PyTorch checkpoint or a .safetensors file") from None
    content = content if isinstance(content, dict) else {}
    for state in (*map(content.get, STATE_KEYS), content):
        if isinstance(state, dict) and (found := {k: v for k, v in state.items() if isinstance(v, Tensor)}):
            return {".".join(part for part in str(k).split(".") if part not in WRAPPERS): v for k, v in found.items()}
    raise UserError(
        f"{path} has no state dict, neither at its top level nor under {', '.join(STATE_KEYS)}: save "
        f"model.state_dict() instead"
    )


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


def _torchvision_name(key: str, layout: Layout) -> str | None:
    """torchvision's name for a tensor of the encoder, or None if it lies outside the layout's prefix."""
    if not key.startswith(layout.prefix):
        return None
    part, dot, rest = key.removeprefix(layout.prefix).partition(".")
    return layout.children.get(part, part) + dot + rest


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def detect_layout(keys: Iterable[str], first: str = "conv1.weight", among: Iterable[str] = LAYOUTS) -> str:
    """The name of the layout in which the encoder's `first` tensor is found.

    Of several layouts with the same prefix, the one that knows most of the heads is chosen. Raises UserError if there
    is no encoder, or if there are encoders under several prefixes.
    """
    keys = list(keys)
    fitting = [name for name in among if any(_torchvision_name(key, LAYOUTS[name]) == first for key in keys)]
    if len({LAYOUTS[name].prefix for name in fitting}) != 1:
        found = f"several encoders (layouts {', '.join(fitting)})" if fitting else f"no encoder ('{first}')"
        raise UserError(
            f"found {found} among the tensors {_first_names(keys)}: set --backbone, and --layout to one of "
            f"{', '.join(LAYOUTS)}"
        )
    return max(fitting, key=lambda name: sum(key.startswith(LAYOUTS[name].heads) for key in keys))


class Imported(NamedTuple):
    """An encoder of another program."""

    model: dict[str, Any]  # settings of its ModelConfig
    weights: dict[str, Tensor]  # all of them, with the names of `build_encoder`
    side: int | None  # image side in pixels that the weights require (vision transformers)
    left_out: list[str]  # tensors in the file that belong to heads
    missing: list[str]  # tensors that the file lacks, which keep their initial values
    unmatched: list[str]  # tensors in the file that belong to nothing known


def _resnet_settings(state: Mapping[str, Tensor], backbone: str | None, stem: str | None, small: str) -> dict[str, Any]:
    """Backbone and stem (unless given) and width of a ResNet, from the names and shapes of its tensors.

    `small` is the stem that a 3 x 3 convolution stands for. Raises UserError if the depths are those of no ResNet.
    """
    block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
    layers = [len({key.split(".")[1] for key in state if key.startswith(f"layer{i}.")}) for i in range(1, 5)]
    backbone = backbone or next((name for name, shape in RESNETS.items() if shape == (block, layers)), None)
    if backbone is None:
        raise UserError(f"no known ResNet has layers of {layers} {block.__name__}s: set --backbone")
    shape = state["conv1.weight"].shape
    stem = stem or (small if shape[-1] == 3 else "imagenet")
    return {"backbone": backbone, "stem": stem, "width": shape[0] / 64}


def import_encoder(
    path: Path, layout: str = "auto", *, backbone: str | None = None, stem: str | None = None, partial: bool = False
) -> Imported:
    """Import the encoder in a file of another program.

    `layout` is one of LAYOUTS or auto. Backbone, width and stem of a ResNet are inferred, except for the stem
    `stride2`, which has the same shapes as `cifar`. Other backbones of torchvision must be given.

    Raises UserError for an unreadable file, an unknown layout or weights of other shapes. Also raises it, unless
    `partial`, if tensors of the encoder are missing, or if some belong neither to the encoder nor to a known head.
    """
    if layout not in (known := (*LAYOUTS, "auto")):
        raise unknown("layout", layout, known)
    if stem not in (None, *STEMS):
        raise unknown("stem", stem, STEMS)
    state = read_foreign(path)
    with torch.device("meta"):
        example = build_encoder(ModelConfig.model_construct(backbone=backbone or "resnet18", stem="imagenet"), 224, 0)[
            0
        ]
    first = next(iter(example.state_dict()))
    row = LAYOUTS[detect_layout(state, first, LAYOUTS if layout == "auto" else (layout,))]
    tensors = {name: state[key] for key in state if (name := _torchvision_name(key, row))}
    if backbone is None or backbone in RESNETS:
        model = _resnet_settings(tensors, backbone, stem, row.small_stem)
    else:
        model = {"backbone": backbone, "stem": stem or "imagenet", "width": 1.0}
    model["head"] = "none"
    side = None
    if model["backbone"].startswith("vit_") and "encoder.pos_embedding" in tensors:  # 1 x (1 + patches) x D
        patches = tensors["encoder.pos_embedding"].shape[1] - 1
        side = round(patches**0.5) * int(model["backbone"].rpartition("_")[2])
    encoder, _ = build_encoder(ModelConfig.model_construct(**model), side or 224, 0)
    own = encoder.state_dict()
    rest = [key for key in state if _torchvision_name(key, row) not in own]
    unmatched = [key for key in rest if not key.startswith(row.heads)]
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    if (missing or unmatched) and not partial:
        raise _mismatch(path, model["backbone"], missing, unmatched)
    try:
        fill(encoder, own | {name: tensor for name, tensor in tensors.items() if name in own})
    except UserError as error:
        raise UserError(f"{path} looks like a {model['backbone']}, but {error}. Set its --backbone") from None
    left_out = [key for key in rest if key.startswith(row.heads)]
    return Imported(model, dict(encoder.state_dict()), side, left_out, missing, unmatched)


def _mismatch(path: Path, backbone: str, missing: Sequence[str], unmatched: Sequence[str]) -> UserError:
    problems = []
    if missing:
        problems.append(f"{len(missing)} of its tensors are missing ({_first_names(missing)})")
    if unmatched:
        names = _first_names(unmatched)
        problems.append(f"{len(unmatched)} tensors belong neither to it nor to a known head ({names})")
    return UserError(
        f"{path} does not match {backbone}: {' and '.join(problems)}. Choose another --layout or --backbone, or use "
        f"--partial to import it anyway"
    )
