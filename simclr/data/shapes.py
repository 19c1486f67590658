"""Generate the data set `shapes`: small images whose class is a shape, and whose colours say nothing about it.

Each image has a foreground and a background of random colours, faint stripes, a position, a scale and a tilt. The two
colours alone nearly identify an image, so a network that may use them to match two views need not learn the shape.
Without them (colour jitter, grayscale) only the shape is left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simclr.data.images import Array
from simclr.randomness import subseed

VERSION = 1  # identifies the images: raise it when they change
SIDE = 32
TRAIN, TEST = 8000, 2000  # number of images
CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "bars")


def _polygon(x: Array, y: Array, corners: Array) -> Array:
    """Signed distance of points N x H x W to the outline of a polygon with corners K x 2, negative inside."""
    distance = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        t = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2), 0, 1)
        distance = np.minimum(distance, np.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay)))
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return np.where(inside, -distance, distance)


def _corners(points: int, inner: float = 1.0) -> Array:
    """Corners K x 2 of a regular polygon, or of a star whose inner corners lie at radius `inner`."""
    n = points * (1 if inner == 1 else 2)
    angle = 2 * np.pi * np.arange(n) / n - np.pi / 2
    radius = np.where(np.arange(n) % 2 == 1, inner, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _box(x: Array, y: Array, width: float, height: float) -> Array:
    """Signed distance to a box that reaches from -width to width and from -height to height."""
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


# Signed distance of points to the outline of each class, negative inside. A shape has a radius of about one.
OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "square": lambda x, y: _box(x, y, 0.8, 0.8),
    "triangle": lambda x, y: _polygon(x, y, 1.1 * _corners(3)),
    "star": lambda x, y: _polygon(x, y, 1.15 * _corners(5, 0.4)),
    "cross": lambda x, y: np.minimum(_box(x, y, 1.0, 0.32), _box(x, y, 0.32, 1.0)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.25,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1.0, 0.8 - np.hypot(x - 0.5, y)),
    "bars": lambda x, y: np.minimum(_box(x - 0.6, y, 0.28, 0.95), _box(x + 0.6, y, 0.28, 0.95)),
}


def _cover(labels: Array, scale: Array, centre: Array, tilt: Array) -> Array:
    """How much of each pixel the shape covers, N x 32 x 32, from 0 to 1."""
    pixel = np.arange(SIDE) + 0.5
    dx, dy = (pixel[None, None, :] - centre[0]) / scale, (pixel[None, :, None] - centre[1]) / scale
    x, y = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
    cover = np.empty(x.shape)
    for index, name in enumerate(CLASSES):
        rows = labels == index
        cover[rows] = np.clip(0.5 - OUTLINES[name](x[rows], y[rows]) * scale[rows], 0, 1)
    return cover


def render(n: int, seed: int) -> tuple[Array, Array]:
    """Draw n images from a seed. Returns uint8, n x 3 x 32 x 32, and labels (int64). The classes take turns."""
    u = np.random.default_rng(subseed(seed, "shapes"))
    labels = np.arange(n) % len(CLASSES)
    scale = u.uniform(9, 12, (n, 1, 1))  # radius in pixels
    reach = SIDE / 2 - scale
    centre = SIDE / 2 + reach * u.uniform(-1, 1, (2, n, 1, 1))
    tilt = u.uniform(-0.2, 0.2, (n, 1, 1))  # radians
    front, back = u.uniform(0, 1, (2, n, 3, 1, 1))
    luma = np.array([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    for _ in range(20):  # draw again where the brightness is too similar to see the shape without colour
        close = np.abs(((front - back) * luma).sum((1, 2, 3))) < 0.2
        front[close], back[close] = u.uniform(0, 1, (2, int(close.sum()), 3, 1, 1))
    angle, period, phase = (u.uniform(low, high, (2, n, 1, 1)) for low, high in ((0, np.pi), (4, 10), (0, 2 * np.pi)))

    images, pixel = np.empty((n, 3, SIDE, SIDE), np.uint8), np.arange(SIDE) + 0.5
    for start in range(0, n, 128):  # so few at a time stay in the processor's cache
        few = slice(start, start + 128)
        x, y = np.cos(angle[:, few]) * pixel, np.sin(angle[:, few]) * pixel[:, None]
        stripes = 0.03 * np.sin(2 * np.pi * (x + y) / period[:, few] + phase[:, few])
        cover = _cover(labels[few], scale[few], centre[:, few], tilt[few])[:, None]
        image = cover * (front[few] + stripes[0][:, None]) + (1 - cover) * (back[few] + stripes[1][:, None])
        image += u.normal(0, 0.02, image.shape)
        images[few] = (image.clip(0, 1) * 255).round()
    return images, labels
