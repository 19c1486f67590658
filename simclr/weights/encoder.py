"""The public Python API: load a trained encoder, and compute features of tensors, PIL images and image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from simclr.config import Config
from simclr.data.dataset import decoding_of
from simclr.data.images import Files, bad_images, decode_files, pixels, too_many_skipped
from simclr.errors import UserError
from simclr.model import Network, check_finite, check_spread
from simclr.progress import SILENT, Observer
from simclr.weights.checkpoint import fill, load_weights
from simclr.weights.features import Batches


class Encoder(nn.Module):
    """A trained encoder: images (float N x 3 x S x S, in [0, 1]) -> h (N x features).

    It normalises the images, and resizes them to `side`, the side that it was trained on. It starts in eval mode, and
    its parameters can be trained. Raises UserError if the weights don't belong to the config's network.
    """

    def __init__(self, config: Config, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.config, self.decoding = config, decoding_of(config.data)
        self.side = config.view_size() or self.decoding.side
        headless = config.model.model_copy(update={"head": "none"})
        self.model = Network(headless, self.side, config.seed, (0.0,) * 3, (1.0,) * 3)
        fill(self.model, {name: tensor for name, tensor in weights.items() if not name.startswith("head.")})
        self.features = self.model.features
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        h: Tensor = self.model(images)[0]
        return h

    def transform(self, image: Image.Image) -> Tensor:
        """Convert an image of any mode and size as in training: to float 3 x S x S, in [0, 1].

        S is the side of the training images. Pass the image as `Image.open` returns it: if its pixels were already
        loaded, a JPEG is resized differently, and of 16-bit colours only 8 bits are left. Raises ValueError for an
        image of more than 8 bits if the encoder was trained on images of 8 bits.
        """
        return torch.tensor(pixels(image, self.decoding)).float().div_(255)


def load_encoder(path: str | Path) -> Encoder:
    """Load the encoder from a run's model.safetensors or from one of its checkpoints, on the CPU.

    The data set is not needed. Raises UserError for any other file.
    """
    config, weights, _ = load_weights(Path(path))
    return Encoder(config, weights)


@torch.no_grad()
def embed_files(
    encoder: Encoder,
    files: Files,
    batch: int = 256,
    observer: Observer = SILENT,
    skipped: list[str] | None = None,
    most: float = 1.0,
) -> Batches:
    """Compute features of image files on the encoder's device, `batch` at a time: (names, float32 n x features).

    Files that can't be read as images are left out, and added to the list `skipped` with the reason. Raises UserError
    for them without that list, if they are more than the share `most` of all files, and if there are no files. Raises
    BadSettings if features are not finite, or if images that differ have the same features.
    """
    if not files.names:
        raise UserError("there are no images to embed: give at least one image file")
    device, first = encoder.model.mean.device, None
    for start in range(0, len(files.names), batch):
        names = files.names[start : start + batch]
        images = np.empty((len(names), 3, encoder.decoding.side, encoder.decoding.side), np.uint8)
        bad = decode_files(files._replace(names=names), images, encoder.decoding, SILENT, "").failed
        reasons = [f"{names[row]} ({reason})" for row, reason in bad.items()]
        if bad and skipped is None:
            raise bad_images(reasons, len(files.names))
        if skipped is not None:
            skipped += reasons
        kept = [row for row in range(len(names)) if row not in bad]
        if kept:
            tensor = torch.from_numpy(images[kept]).to(device).float().div_(255)
            printable = [names[row].encode(errors="backslashreplace").decode() for row in kept]  # may not be UTF-8
            features = check_finite(encoder(tensor)).cpu()
            first = first or (images[kept[:1]], features[:1])
            check_spread(torch.from_numpy(np.concatenate([first[0], images[kept]])), torch.cat([first[1], features]))
            yield printable, features.numpy()
        observer.progress("embedding", start + len(names), len(files.names))
    if skipped and len(skipped) > most * len(files.names):
        raise too_many_skipped(skipped, len(files.names), most)
