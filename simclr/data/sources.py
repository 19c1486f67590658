"""The table of data sets.

To add a data set, write a loader (in known.py if it is a published one) and add a line to DATASETS, and one to
DOWNLOADS if it has to be downloaded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simclr.data.formats import OPTIONS, load_images
from simclr.data.images import Files, open_image
from simclr.data.known import load_cifar, load_digits, load_shapes, load_stl10, load_tiny_imagenet
from simclr.data.source import Contents, Loader


class DatasetRow(NamedTuple):
    """A data set: its loader, the default side in pixels of its stored images, and a description in one line.

    `options` are the settings of DataConfig that its loader takes by keyword.
    """

    load: Loader
    side: int
    about: str
    options: tuple[str, ...] = ()


DATASETS: dict[str, DatasetRow] = {
    "shapes": DatasetRow(load_shapes, 32, "8 shapes in colours that say nothing about the class; generated"),
    "digits": DatasetRow(load_digits, 16, "scikit-learn's 1,797 handwritten digits; built in"),
    "cifar10": DatasetRow(load_cifar, 32, "60,000 images in 10 classes; downloaded (162 MB)"),
    "cifar100": DatasetRow(load_cifar, 32, "60,000 images in 100 classes; downloaded (161 MB)"),
    "stl10": DatasetRow(load_stl10, 96, "105,000 images to pre-train on, 10 classes; downloaded (2.6 GB)"),
    "tiny-imagenet": DatasetRow(load_tiny_imagenet, 64, "110,000 images in 200 classes; downloaded (248 MB)"),
    "folder": DatasetRow(load_images, 64, "your own images (--data-dir), in any common format", OPTIONS),
}


def image_side(contents: Contents) -> int:
    """The median of the shorter sides, in pixels, of a sample of the training images before they are resized."""
    images = contents.splits["train"].images
    return median_side(images) if isinstance(images, Files) else int(min(images.shape[2:]))


def median_side(files: Files, sample: int = 64) -> int:
    """The median of the shorter sides, in pixels, of a sample of image files. 0 if none of them can be read."""
    sides = []
    for name in files.names[:: max(1, len(files.names) // sample)]:
        try:
            with open_image(files.read(name)) as image:
                sides.append(min(image.size))
        except Exception:  # PIL raises many kinds. They are reported when the images are decoded
            continue
    return int(np.median(sides)) if sides else 0
