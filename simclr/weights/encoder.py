"""The public Python API: load a trained encoder, and compute features of tensors, PIL images and image files."""

from __future__ import annotations

from math import isfinite
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

LOWEST, HIGHEST = -0.5, 1.5  # accepted values of images in [0, 1]: a user's augmentation may exceed that range


class Encoder(nn.Module):
    """A trained encoder: images (N x 3 x H x W, floats in [0, 1] or uint8) -> h (N x features).

    It divides uint8 by 255, normalises the images, and resizes them to `side`, the side that it was trained on. Images
    of one channel are grey. It starts in eval mode, and its parameters can be trained. Raises UserError if the weights
    don't belong to the config's network, and for images of another shape, type or range.
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
        h: Tensor = self.model(self._prepared(images))[0]
        return h

    def _prepared(self, images: Tensor) -> Tensor:
        """The images as floats in [0, 1]. An exported file doesn't check them, as its operations can't depend on them.

        On a GPU the check of floats waits for them. Training and evaluations use the network itself, without checks.
        """
        if torch.compiler.is_exporting():
            return images
        _check_images(images)
        floats = images.to(self.model.mean.dtype)
        return floats / 255 if images.dtype == torch.uint8 else floats

    def transform(self, image: Image.Image) -> Tensor:
        """Convert an image of any mode and size as in training: to float 3 x S x S, in [0, 1].

        S is the side of the training images. Pass the image as `Image.open` returns it: if its pixels were already
        loaded, a JPEG is resized differently, and of 16-bit colours only 8 bits are left. Raises ValueError for an
        image of more than 8 bits if the encoder was trained on images of 8 bits.
        """
        return torch.tensor(pixels(image, self.decoding)).float().div_(255)


def _check_images(images: Tensor) -> None:
    """Raise UserError, with the remedy, for images that `Encoder` doesn't take."""
    if not isinstance(images, Tensor):
        raise UserError(f"the images are a {type(images).__name__}: expected a tensor, as torch.from_numpy makes")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3):
        remedy = ""
        if shape[-1:] in ((1,), (3,)) and len(shape) in (3, 4):
            remedy = ": move the channels with images.permute" + (
                "(0, 3, 1, 2)" if len(shape) == 4 else "(2, 0, 1)[None]"
            )
        elif len(shape) == 3 and shape[0] in (1, 3):
            remedy = ": add a dimension with images[None]"
        raise UserError(f"the images have the shape {shape}, expected N x 3 x H x W, or N x 1 x H x W{remedy}")
    if images.dtype == torch.uint8 or not images.numel():
        return
    if not images.is_floating_point():
        remedy = (
            "convert them with .float()" if images.dtype == torch.bool else "divide by the largest value of a pixel"
        )
        raise UserError(f"the images are {images.dtype}, expected uint8, or floats in [0, 1]: {remedy}")
    low, high = (float(end) for end in images.detach().aminmax())
    if not LOWEST <= low <= high <= HIGHEST:  # nan is neither
        if not isfinite(low + high):
            remedy = "some are not finite"
        elif low < LOWEST:
            remedy = "don't normalise them, because the encoder does that"
        else:
            remedy = "divide by 255" if high <= 255 else "divide by the largest value that a pixel can have"
        raise UserError(f"the images lie between {low:g} and {high:g}, expected floats in [0, 1]: {remedy}")


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
        raise UserError("there are no images to embed: expected a folder with image files, or image files")
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
            tensor = torch.from_numpy(images[kept]).to(device)
            printable = [names[row].encode(errors="backslashreplace").decode() for row in kept]  # may not be UTF-8
            features = check_finite(encoder(tensor)).cpu()
            first = first or (images[kept[:1]], features[:1])
            check_spread(torch.from_numpy(np.concatenate([first[0], images[kept]])), torch.cat([first[1], features]))
            yield printable, features.numpy()
        observer.progress("embedding", start + len(names), len(files.names))
    if skipped and len(skipped) > most * len(files.names):
        raise too_many_skipped(skipped, len(files.names), most)
