"""Views: the augmentations that an image goes through, and the views of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field, create_model
from torch import Tensor

from simclr.augment import AUGMENTATIONS, Crop
from simclr.augmentation import Augmentation, FractionRange
from simclr.device import send
from simclr.randomness import uniforms
from simclr.settings import Section

if TYPE_CHECKING:

    class ViewConfig(Section):
        """The settings of a view that are read by name."""

        crop: Crop = Crop()
else:
    ViewConfig = create_model(
        "ViewConfig",
        __base__=Section,
        __doc__="The settings of a view: one table for each augmentation. The defaults are the paper's.",
        **{name: (kind, Field(default_factory=kind)) for name, kind in AUGMENTATIONS.items()},
    )

MOST_VIEWS = 64


class LocalConfig(Section):
    """Smaller crops of each image in addition to its views: multi-crop, with the scale of SwAV (arXiv 2006.09882)."""

    count: int = Field(4, ge=1, le=MOST_VIEWS)  # number of crops of each image
    size: int = Field(16, ge=4, le=1024)  # side of a crop in pixels
    scale: FractionRange = (0.05, 0.14)  # area as a fraction of the image


class AugmentConfig(ViewConfig):
    """The views of an image: their number, and a table for each augmentation. The defaults are the paper's."""

    # Number of views of each image, which are all positives (default: 2).
    views: int | None = Field(None, ge=2, le=MOST_VIEWS)
    local: LocalConfig | None = None  # smaller crops as further positives (default: none)


Pipeline = dict[str, Augmentation]  # the augmentations that a view applies, by name, in the order of AUGMENTATIONS


def pipeline(section: ViewConfig) -> Pipeline:
    """The augmentations that a view applies, in order."""
    chosen: dict[str, Augmentation] = {name: getattr(section, name) for name in AUGMENTATIONS}
    return {name: applied for name, augmentation in chosen.items() if (applied := augmentation.as_applied())}


def draw(pipeline: Pipeline, n: int, seed: int, step: int, view: int) -> dict[str, Tensor]:
    """The random numbers for one view of a batch: n x (1 + draws) for each augmentation, on the CPU.

    Each augmentation has its own key, so removing one does not change the numbers of the others. A micro-batch uses its
    rows of these tensors. Those of a `shared` augmentation don't depend on the view.
    """
    return {
        name: uniforms((n, 1 + each.draws), seed, "view", step, 0 if each.shared else view, name)
        for name, each in pipeline.items()
    }


def apply(images: Tensor, pipeline: Pipeline, draws: dict[str, Tensor]) -> Tensor:
    """Make one view: uint8 N x 3 x S x S -> float32 N x 3 x S x S in [0, 1]. Row i of `draws` belongs to image i."""
    out = images.float().div_(255)
    for name, augmentation in pipeline.items():
        u = draws[name]
        chosen = (u[:, 0] < augmentation.p).nonzero().squeeze(1)  # on the CPU, so nothing waits for the accelerator
        if len(chosen) == len(u):
            out = augmentation(out, u[:, 1:])
        elif len(chosen):
            rows = send(chosen, out.device)
            out.index_copy_(0, rows, augmentation(out.index_select(0, rows), u[chosen, 1:]))
    return out


def batch_views(
    images: Tensor,
    pipelines: Sequence[Pipeline],
    seed: int,
    step: int,
    first: int = 0,
    *,
    start: int = 0,
    batch: int | None = None,
) -> Callable[[slice], Tensor]:
    """A function that makes the views of any rows of a batch (uint8 N x 3 x S x S), with the step's random numbers.

    It returns float32 V x n x 3 x S x S. The views of a row do not depend on which other rows are made in the same
    call. `first` is the number of the first view, which decides its random numbers. `images` may be a part of a batch
    of `batch` images, from its row `start` on.
    """
    own = slice(start, start + len(images))
    whole = [draw(ops, batch or len(images), seed, step, view) for view, ops in enumerate(pipelines, first)]
    draws = [{name: u[own] for name, u in one.items()} for one in whole]

    def views(rows: slice) -> Tensor:
        some, drawn = images[rows], [{name: u[rows] for name, u in one.items()} for one in draws]
        if any(each != pipelines[0] for each in pipelines):
            return torch.stack([apply(some, *view) for view in zip(pipelines, drawn, strict=True)])
        # Equal pipelines process all views at once, which launches fewer kernels.
        count, together = len(drawn), {name: torch.cat([u[name] for u in drawn]) for name in pipelines[0]}
        made: Tensor = apply(some.repeat(count, 1, 1, 1), pipelines[0], together).unflatten(0, (count, -1))
        return made

    return views
