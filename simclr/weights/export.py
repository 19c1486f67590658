"""Write encoders in the formats of other programs.

Next to each file lies a card with the lines of Python that load it. The exported file is loaded by exactly these lines
and must give the same features. Otherwise it is removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from simclr.config import Config, to_toml
from simclr.errors import RunFailed, UserError, unknown
from simclr.files import written_whole
from simclr.model import RESNETS, VITS, ModelConfig
from simclr.weights.checkpoint import weights_bytes
from simclr.weights.encoder import Encoder


def _trace(encoder: Encoder) -> torch.export.ExportedProgram:
    images = torch.zeros(2, 3, encoder.side, encoder.side)
    return torch.export.export(encoder, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})


def _onnx(encoder: Encoder) -> bytes:
    program = torch.onnx.export(
        _trace(encoder), input_names=["images"], output_names=["features"], dynamo=True, verbose=False
    )
    assert program is not None  # it is without dynamo
    return bytes(program.model_proto.SerializeToString())


def _saved(content: object, save: Callable[[Any, BytesIO], object] = torch.save) -> bytes:
    """The bytes that a function of torch saves. On a full disk, some of torch's writers would end the process."""
    file = BytesIO()
    save(content, file)
    return file.getvalue()


def _without_classifier(resnet: nn.Module) -> nn.Sequential:
    """All parts except the classifier, numbered. Several repositories save ResNets this way."""
    return nn.Sequential(*list(resnet.children())[:-1])


def _is_standard(model: ModelConfig) -> bool:
    """Whether torchvision has this very backbone."""
    return model.stem == "imagenet" and model.width == 1 and model.backbone not in ("resnet10", *VITS)


def _is_standard_resnet(model: ModelConfig) -> bool:
    return model.backbone in RESNETS and _is_standard(model)


class Export(NamedTuple):
    """An export format. `lines` is Python code that computes `features` of `images`, with placeholders."""

    suffix: str
    content: Callable[[Encoder, str], bytes]  # of the file; the string is the digest of the data
    lines: str
    tolerance: float  # of the features, relative to the largest
    images: str  # that the lines take, with a placeholder for their side
    requires: tuple[str, ...] = ()  # optional libraries
    supports: Callable[[ModelConfig], bool] = lambda model: True


SAME_KERNELS, OTHER_KERNELS = 1e-5, 1e-4  # tolerances; other kernels are those of onnxruntime or contiguous memory

BY_ENCODER = "floats N x 3 x {side} x {side}, RGB in [0, 1] (divide bytes by 255). The file normalises them itself"
BY_LINES = "floats N x 3 x {side} x {side}, RGB in [0, 1] (divide bytes by 255). The lines below normalise them"
OF_ANY_SIZE = (
    "N x 3 x H x W (or N x 1 x H x W), floats in [0, 1] or uint8, RGB. The encoder resizes them to {side} x {side}, as "
    "in training, and normalises them itself"
)

PREPARE = """\
import numpy{torch}
from PIL import Image, ImageOps
with Image.open("photo.jpg") as image:
    image.draft("RGB", ({twice}, {twice}))  # decodes a large JPEG file at a smaller size
    image = ImageOps.exif_transpose(image).convert("RGB")
image = ImageOps.fit(image, ({stored}, {stored}), Image.Resampling.BICUBIC)
images = numpy.asarray(image, numpy.float32).transpose(2, 0, 1)[None] / 255"""  # what `pixels` does to such an image
AS_TENSOR = """
images = torch.from_numpy(images)"""
RESIZE = """
images = torch.nn.functional.interpolate(images, ({side}, {side}), mode="bilinear", antialias=True)"""  # like Network

LONGEST_BASE_NAME = 200  # bytes; file systems allow 255, with the format and the suffix

EXPORTS: dict[str, Export] = {
    "safetensors": Export(
        ".safetensors",
        lambda encoder, digest: weights_bytes(encoder.model, {"config": to_toml(encoder.config), "digest": digest}),
        """\
import torch
from simclr import load_encoder
encoder = load_encoder({file!r})
with torch.no_grad():
    features = encoder(images)""",
        SAME_KERNELS,
        OF_ANY_SIZE,
    ),
    "torchvision": Export(
        ".pth",
        lambda encoder, digest: _saved(encoder.model.encoder.state_dict()),
        """\
import torch, torchvision
encoder = torchvision.models.get_model("{backbone}"{image_size}).eval()
encoder.{classifier} = {kept_layers}
encoder.load_state_dict(torch.load({file!r}))
with torch.no_grad():
    features = encoder({normalized})""",
        OTHER_KERNELS,
        BY_LINES,
        supports=_is_standard,
    ),
    "sequential": Export(
        ".pth",
        lambda encoder, digest: _saved(_without_classifier(encoder.model.encoder).state_dict()),
        """\
import torch, torchvision
resnet = torchvision.models.get_model("{backbone}")
encoder = torch.nn.Sequential(*list(resnet.children())[:-1]).eval()
encoder.load_state_dict(torch.load({file!r}))
with torch.no_grad():
    features = encoder({normalized}).flatten(1)""",
        OTHER_KERNELS,
        BY_LINES,
        supports=_is_standard_resnet,
    ),
    "timm": Export(
        ".safetensors",
        lambda encoder, digest: save_safetensors(encoder.model.encoder.state_dict()),
        """\
import timm, torch
encoder = timm.create_model("{backbone}", num_classes=0, checkpoint_path={file!r}).eval()
with torch.no_grad():
    features = encoder({normalized})""",
        OTHER_KERNELS,
        BY_LINES,
        requires=("timm",),
        supports=_is_standard_resnet,
    ),
    "onnx": Export(
        ".onnx",
        lambda encoder, digest: _onnx(encoder),
        """\
import numpy, onnxruntime
encoder = onnxruntime.InferenceSession({file!r}, providers=["CPUExecutionProvider"])
features = encoder.run(None, {{"images": numpy.asarray(images)}})[0]""",
        OTHER_KERNELS,
        BY_ENCODER,
        requires=("onnx", "onnxscript", "onnxruntime"),
    ),
    "pt2": Export(
        ".pt2",
        lambda encoder, digest: _saved(_trace(encoder), torch.export.save),
        """\
import torch
encoder = torch.export.load({file!r}).module()
with torch.no_grad():
    features = encoder(images)""",
        SAME_KERNELS,
        BY_ENCODER,
    ),
}


def _fill_in(lines: str, file: str, encoder: Encoder) -> str:
    """The lines of an export for one file, with the placeholders replaced."""
    backbone = encoder.config.model.backbone
    mean, std = (", ".join(buffer.numpy().ravel().astype(str)) for buffer in (encoder.model.mean, encoder.model.std))
    classifier, layers = list(encoder.model.encoder.named_children())[-1]  # the layers of it that we keep
    kept = len(list(layers.children()))
    return lines.format(
        file=file,
        backbone=backbone,
        image_size=f", image_size={encoder.side}" if backbone.startswith("vit_") else "",
        classifier=classifier,
        kept_layers=f"encoder.{classifier}[:{kept}]" if kept else "torch.nn.Identity()",
        normalized=f"(images - torch.tensor([{mean}]).view(3, 1, 1)) / torch.tensor([{std}]).view(3, 1, 1)",
    )


class Parity(NamedTuple):
    """An exported file, and the difference of its features from the original's, relative to the largest one."""

    file: Path
    difference: float
    tolerance: float


@torch.no_grad()
def _compare(encoder: Encoder, lines: str) -> float:
    """The relative difference between an encoder's features and those that the lines compute."""
    images = torch.rand(3, 3, encoder.side, encoder.side, generator=torch.Generator().manual_seed(0))
    scope: dict[str, Any] = {"images": images}
    exec(lines, scope)
    h = encoder(images)
    difference = (torch.as_tensor(scope["features"]) - h).abs().max() / h.abs().max().clamp(min=1e-12)
    return float(difference)


# Names are shown literally: they may come from somebody else's file, and must not become HTML, a link or a code block.
MARKDOWN = str.maketrans({"\n": " "} | {character: f"\\{character}" for character in "\\|<>[]*`"})


def _base_name(name: str) -> str:
    """The start of a file's name, from the last part of a run's name.

    That may come from somebody else's file, so it can't choose a folder, hide the file, or be too long for a name.
    """
    last = re.sub(r'[:*?"<>|]', "_", re.split(r"[/\\]", name)[-1])  # characters that Windows doesn't allow
    return last.encode()[:LONGEST_BASE_NAME].decode(errors="ignore").strip(" .") or "encoder"


def _card(encoder: Encoder, config: Config, row: Export, facts: Mapping[str, str], parity: Parity) -> str:
    """The card of a file, with the config that trained it."""
    model, lines = encoder.config.model, _fill_in(row.lines, parity.file.name, encoder)
    stored, resize = encoder.decoding.side, encoder.decoding.side != encoder.side
    torch_too = resize or "torch" in row.lines
    prepare = PREPARE.format(stored=stored, twice=2 * stored, torch=", torch" * torch_too) + AS_TENSOR * torch_too
    if resize:
        prepare += RESIZE.format(side=encoder.side)
    listed = "".join(f"- {key}: {value.translate(MARKDOWN)}\n" for key, value in facts.items())
    return f"""\
# {encoder.config.name.translate(MARKDOWN)}: a {model.backbone} encoder

{listed}- width {model.width:g}, stem {model.stem}, without the projection head
- `images`: {row.images.format(side=encoder.side)}
- `features`: N x {encoder.features}
- The features differ from the original's by {parity.difference:.1e} of the largest one (at most {parity.tolerance:g}).

This code prepares an image of 8 bits without transparency as in training:

```python
{prepare}
```

This code computes the features:

```python
{lines}
```

It was trained with this config, whose head is not in the file:

```toml
{to_toml(config)}```
"""


def _check_export(config: Config, path: Path, name: str) -> None:
    """Raise UserError if the format does not exist, can't hold the encoder, needs a library or another file name."""
    if name not in EXPORTS:
        raise unknown("export format", name, EXPORTS)
    row, model = EXPORTS[name], config.model
    if not row.supports(model):
        able = ", ".join(other for other, each in EXPORTS.items() if each.supports(model))
        raise UserError(
            f"{name} has no {model.backbone} with stem '{model.stem}' and width {model.width:g}: choose from {able}"
        )
    if absent := [library for library in row.requires if find_spec(library) is None]:
        raise UserError(f"format '{name}' needs {', '.join(absent)}: pip install 'simclr-suite[export]'")
    if path.suffix not in ("", row.suffix) and not path.is_dir():
        raise UserError(f"{path} does not end in {row.suffix}, which '{name}' needs: rename it, or give a folder")


def export_encoder(
    weights: Mapping[str, Tensor], config: Config, path: Path, format: str, card: Mapping[str, str], name: str = ""
) -> Parity:
    """Write an encoder in one of EXPORTS, with a card next to it (same name, .md), and check it by loading the file.

    `weights` are those of the whole network, as a run saves them. `path` is a folder, or a file with the format's
    suffix. In a folder, the file is named after `name` (default: that of the config), which can't lead out of the
    folder. `card` lists what to say about the encoder, such as data and accuracies. Its "digest" is that of the data.
    The file contains neither the head nor the path of the images. Raises UserError if the format can't hold the encoder
    or needs a library, and RunFailed if the file can't be written or gives other features. No file is left then.
    """
    _check_export(config, path, format)
    row = EXPORTS[format]
    headless = config.model.model_copy(update={"head": "none"})
    config = config.model_copy(update={"data": config.data.model_copy(update={"dir": None})})
    encoder = Encoder(config.model_copy(update={"model": headless}), dict(weights))
    form = "" if format == "safetensors" else f"-{format}"  # which the suffix says; cards have one name each
    file = path if path.suffix == row.suffix else path / f"{_base_name(name or config.name)}{form}{row.suffix}"
    with written_whole(file.with_suffix(".md")) as text, written_whole(file) as scratch:
        try:
            scratch.write_bytes(row.content(encoder, card.get("digest", "")))
        except RuntimeError as error:  # torch can't trace it
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunFailed(f"can't export {file}: {reason}. Choose another format") from error
        parity = Parity(file, _compare(encoder, _fill_in(row.lines, str(scratch), encoder)), row.tolerance)
        if not parity.difference <= parity.tolerance:
            raise RunFailed(
                f"the {format} file gives different features from the encoder: they differ by {parity.difference:.1e} "
                f"of the largest, expected at most {parity.tolerance:g}. It was removed: choose another format"
            )
        text.write_text(_card(encoder, config, row, card, parity), encoding="utf-8")
    return parity
