"""Everyone's encoders: read those that other programs wrote, write ours for other programs.

Nothing in a foreign file is ever run. What is exported is loaded again, by the lines of Python that its card prints,
and gives the same features, or the file does not appear.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from simclr.config import Config, to_toml
from simclr.errors import RunFailed, UserError, unknown
from simclr.model import RESNETS, ModelConfig
from simclr.weights.checkpoint import save_weights
from simclr.weights.encoder import Encoder


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
