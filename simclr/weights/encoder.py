"""The Python door: a trained encoder from its file, its features for tensors, PIL images and image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from simclr.config import Config
from simclr.data.dataset import stored_side
from simclr.data.images import Files, bad_images, decode_files, pixels
from simclr.errors import UserError
from simclr.model import Network
from simclr.progress import SILENT, Observer
from simclr.weights.checkpoint import fill, load_weights
from simclr.weights.features import Batches


class Encoder(nn.Module):
    """The encoder f of a SimCLR: images (float N x 3 x S x S in [0, 1]) -> h (N x features).

    It normalises the images itself, and resizes them to `side`, which it was trained on. In eval mode when made; its
    parameters can be trained. Raises UserError when the weights are not of the config's network.
    """

    def __init__(self, config: Config, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.config, self.stored = config, stored_side(config.data)
        self.side = config.view_size() or self.stored
        headless = config.model.model_copy(update={"head": "none"})
        self.model = Network(headless, self.side, config.seed, (0.0,) * 3, (1.0,) * 3)
        fill(self.model, {name: tensor for name, tensor in weights.items() if not name.startswith("head.")})
        self.features = self.model.features
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        h: Tensor = self.model(images)[0]
        return h

    def transform(self, image: Image.Image) -> Tensor:
        """An image of any mode and size -> float 3 x stored x stored in [0, 1]: as training kept it (`data.side`).

        Give it the opened file: one whose pixels were loaded before is not shrunk in the same two steps (JPEG).
        """
        return torch.tensor(pixels(image, self.stored)).float().div_(255)


def load_encoder(path: str | Path) -> Encoder:
    """The encoder of a run's model.safetensors, or of one of its checkpoints, on the CPU. UserError for another file.

    Its data set is not needed.
    """
    config, weights, _ = load_weights(Path(path))
    return Encoder(config, weights)


@torch.no_grad()
def embed_files(
    encoder: Encoder,
    files: Sequence[Path],
    batch: int = 256,
    observer: Observer = SILENT,
    left_out: list[str] | None = None,
) -> Batches:
    """Features of image files, `batch` at a time: (names, float32 n x features), on the encoder's device.

    Files that can't be read as images are named in `left_out`, if there is one. Raises UserError where there is none,
    naming them, and when there are no files.
    """
    if not files:
        raise UserError("no images to embed: expected at least one image file")
    device = encoder.model.mean.device
    for start in range(0, len(files), batch):
        names = [str(file) for file in files[start : start + batch]]
        images = np.empty((len(names), 3, encoder.stored, encoder.stored), np.uint8)
        bad = dict(decode_files(Files(names, lambda name: Path(name).read_bytes()), images, SILENT, ""))
        told = [f"{names[row]} ({reason})" for row, reason in bad.items()]
        if bad and left_out is None:
            raise bad_images(told, len(files), "Remove them, or pass --on-bad-image skip")
        if left_out is not None:
            left_out += told
        kept = [row for row in range(len(names)) if row not in bad]
        if kept:
            pixels_of = torch.from_numpy(images[kept]).to(device).float().div_(255)
            shown = [names[row].encode(errors="backslashreplace").decode() for row in kept]  # a name may be no UTF-8
            yield shown, encoder(pixels_of).cpu().numpy()
        observer.progress("embedding", start + len(names), len(files))
