"""Everyone's encoders: read those that other programs wrote, write ours for other programs.

Nothing in a foreign file is ever run. What is exported is loaded again, by the lines of Python that its card prints,
and gives the same features, or the file does not appear.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from .checkpoint import fill, save_weights
from .config import Config, ModelConfig, to_toml
from .encoder import Encoder
from .errors import RunFailed, UserError, unknown
from .model import RESNETS, STEMS, build_encoder

# --- import -----------------------------------------------------------------------------------------------------------


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


# --- export -----------------------------------------------------------------------------------------------------------


def _program(encoder: Encoder) -> torch.export.ExportedProgram:
    images = torch.zeros(2, 3, encoder.side, encoder.side)
    return torch.export.export(encoder, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})


def _write_suite(path: Path, encoder: Encoder, digest: str) -> None:
    save_weights(path, encoder.model, {"config": to_toml(encoder.config), "digest": digest})


def _write_onnx(path: Path, encoder: Encoder, digest: str) -> None:
    torch.onnx.export(
        _program(encoder),
        f=path,
        input_names=["images"],
        output_names=["features"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _normalized(encoder: Encoder) -> str:
    """`images`, shifted and scaled for the bare backbone, as Python."""
    mean, std = (", ".join(buffer.numpy().ravel().astype(str)) for buffer in (encoder.model.mean, encoder.model.std))
    return f"(images - torch.tensor([{mean}]).view(3, 1, 1)) / torch.tensor([{std}]).view(3, 1, 1)"


def _torchvision_lines(file: str, encoder: Encoder) -> str:
    """torchvision's network without its classifier (the last child), but with the layers that we keep of that."""
    backbone = encoder.config.model.backbone
    side = f", image_size={encoder.side}" if backbone.startswith("vit_") else ""
    name, classifier = list(encoder.model.encoder.named_children())[-1]
    kept = len(list(classifier.children()))
    layers = f"encoder.{name}[:{kept}]" if kept else "torch.nn.Identity()"
    return f"""\
import torch, torchvision
encoder = torchvision.models.get_model("{backbone}"{side}).eval()
encoder.{name} = {layers}
encoder.load_state_dict(torch.load({file!r}))
features = encoder({_normalized(encoder)})"""


def _sequential_lines(file: str, encoder: Encoder) -> str:
    return f"""\
import torch, torchvision
resnet = torchvision.models.get_model("{encoder.config.model.backbone}")
encoder = torch.nn.Sequential(*list(resnet.children())[:-1]).eval()
encoder.load_state_dict(torch.load({file!r}))
features = encoder({_normalized(encoder)}).flatten(1)"""


def _timm_lines(file: str, encoder: Encoder) -> str:
    return f"""\
import timm, torch
encoder = timm.create_model("{encoder.config.model.backbone}", num_classes=0, checkpoint_path={file!r}).eval()
features = encoder({_normalized(encoder)})"""


def _suite_lines(file: str, encoder: Encoder) -> str:
    return f"""\
from simclr import load_encoder
encoder = load_encoder({file!r})
features = encoder(images)"""


def _onnx_lines(file: str, encoder: Encoder) -> str:
    return f"""\
import onnxruntime
encoder = onnxruntime.InferenceSession({file!r}, providers=["CPUExecutionProvider"])
features = encoder.run(None, {{"images": images.numpy()}})[0]"""


def _pt2_lines(file: str, encoder: Encoder) -> str:
    return f"""\
import torch
encoder = torch.export.load({file!r}).module()
features = encoder(images)"""


def _standard(model: ModelConfig) -> bool:
    return model.stem == "imagenet" and model.width == 1 and model.backbone != "resnet10"  # which only this suite has


def _standard_resnet(model: ModelConfig) -> bool:
    return model.backbone in RESNETS and _standard(model)


def _numbered(resnet: nn.Module) -> nn.Sequential:
    """Its parts but the classifier, as several repositories keep them."""
    return nn.Sequential(*list(resnet.children())[:-1])


class Export(NamedTuple):
    """One row of EXPORTS: the file's suffix, how to write it, the Python that makes `features` of `images` with it."""

    suffix: str
    write: Callable[[Path, Encoder, str], object]  # the string is the digest of the data
    lines: Callable[[str, Encoder], str]
    tolerance: float  # of the features, relative to the largest
    needs: tuple[str, ...] = ()  # optional libraries
    holds: Callable[[ModelConfig], bool] = lambda model: True


SAME, CLOSE = 1e-5, 1e-4  # tolerances: of the kernels that we run, and of others (contiguous memory, onnxruntime)
EXPORTS: dict[str, Export] = {
    "safetensors": Export(".safetensors", _write_suite, _suite_lines, SAME),
    "torchvision": Export(
        ".pth",
        lambda path, encoder, digest: torch.save(encoder.model.encoder.state_dict(), path),
        _torchvision_lines,
        CLOSE,
        holds=_standard,
    ),
    "sequential": Export(
        ".pth",
        lambda path, encoder, digest: torch.save(_numbered(encoder.model.encoder).state_dict(), path),
        _sequential_lines,
        CLOSE,
        holds=_standard_resnet,
    ),
    "timm": Export(
        ".safetensors",
        lambda path, encoder, digest: save_file(encoder.model.encoder.state_dict(), path),
        _timm_lines,
        CLOSE,
        needs=("timm",),
        holds=_standard_resnet,
    ),
    "onnx": Export(".onnx", _write_onnx, _onnx_lines, CLOSE, needs=("onnx", "onnxscript", "onnxruntime")),
    "pt2": Export(".pt2", lambda path, encoder, digest: torch.export.save(_program(encoder), path), _pt2_lines, SAME),
}


class Parity(NamedTuple):
    """What was exported, and how far its features are from the original's, relative to the largest one."""

    file: Path
    difference: float
    tolerance: float


@torch.no_grad()
def _difference(encoder: Encoder, lines: str) -> float:
    images = torch.rand(3, 3, encoder.side, encoder.side, generator=torch.Generator().manual_seed(0))
    scope: dict[str, Any] = {"images": images}
    exec(lines, scope)
    h = encoder(images)
    difference = (torch.as_tensor(scope["features"]) - h).abs().max() / h.abs().max().clamp(min=1e-12)
    return float(difference)


def _card(encoder: Encoder, lines: str, facts: Mapping[str, str], parity: Parity) -> str:
    model, listed = encoder.config.model, "".join(f"- {key}: {value}\n" for key, value in facts.items())
    return f"""\
# {encoder.config.name}: a {model.backbone} encoder

{listed}- width {model.width:g}, stem {model.stem}; without the projection head
- `images`: float N x 3 x {encoder.side} x {encoder.side}, RGB in [0, 1]; `features`: N x {encoder.features}
- features differ from the original's by {parity.difference:.1e} of the largest one (at most {parity.tolerance:g})

```python
{lines}
```

```toml
{to_toml(encoder.config)}```
"""


def export_encoder(
    weights: Mapping[str, Tensor], config: Config, path: Path, format: str, card: Mapping[str, str]
) -> Parity:
    """Write the encoder of a network as one of EXPORTS, and a card beside it (same name, .md), checked by loading it.

    `weights` are the network's, named as a run keeps them.
    `path` is a folder, or a file with the format's suffix. `card` is what to say of the encoder: data, accuracies;
    its "digest" is that of the data. Neither the head nor the folder of the images goes into the file. Raises UserError
    for a format that can't hold the encoder or needs a library, RunFailed when the file can't be written or its
    features differ; there is no file then.
    """
    if format not in EXPORTS:
        raise unknown("export format", format, EXPORTS)
    row = EXPORTS[format]
    if not row.holds(config.model):
        able = ", ".join(name for name, other in EXPORTS.items() if other.holds(config.model))
        raise UserError(
            f"{format} has no {config.model.backbone} with stem '{config.model.stem}' and width "
            f"{config.model.width:g}: choose from {able}"
        )
    if absent := [name for name in row.needs if find_spec(name) is None]:
        raise UserError(f"format '{format}' needs {', '.join(absent)}: pip install 'simclr-suite[export]'")
    if path.suffix not in ("", row.suffix) and not path.is_dir():
        raise UserError(f"{path} does not end in {row.suffix}, as '{format}' needs: expected such a name, or a folder")
    headless = config.model.model_copy(update={"head": "none"})
    anywhere = config.data.model_copy(update={"dir": None})
    encoder = Encoder(config.model_copy(update={"model": headless, "data": anywhere}), dict(weights))
    file = path if path.suffix == row.suffix else path / f"{config.name}-{format}{row.suffix}"
    scratch = file.with_name(f".{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        row.write(scratch, encoder, card.get("digest", ""))
        parity = Parity(file, _difference(encoder, row.lines(str(scratch), encoder)), row.tolerance)
        if not parity.difference <= parity.tolerance:
            raise RunFailed(
                f"the {format} file gives other features than the encoder: they differ by {parity.difference:.1e} of "
                f"the largest, expected at most {parity.tolerance:g}; it was removed, choose another format"
            )
        file.with_suffix(".md").write_text(
            _card(encoder, row.lines(file.name, encoder), card, parity), encoding="utf-8"
        )
        os.replace(scratch, file)
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: torch's, for what it can't export too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunFailed(f"can't write {file}: {reason}; free some space, or choose another place or format") from error
    finally:
        with suppress(OSError):
            scratch.unlink()
    return parity
